"""What a network costs, counted without computing it: multiply-accumulates (MACs), parameters, comparisons and bytes.

1 MAC = 2 FLOPs; what the paper calls FLOPs are MACs. As in the paper, convolutions and matrix products make the MACs.
Bilinear interpolation, comparisons (argmax, thresholds, max-pooling) and the exponentials of softmax have columns of
their own; norms, activations and copies show in the bytes. Bytes are what each operator would read and write if it
found its inputs in memory and left its outputs there: an upper bound, which fused kernels and caches stay below.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import pem
from analysis.arguments import json_file, parse_preset, parse_size
from analysis.results import save_json
from pem.conditions import conditions
from pem.config import PEMConfig
from pem.pixel_decoder import DeformableUpsample

# What `python -m analysis.flops` counts: the models and sizes of the paper, the default, and twins with the rival.
CASES: tuple[tuple[str, tuple[int, int], Literal["prototype", "masked"]], ...] = (
    ("cityscapes-panoptic-r50", (1024, 2048), "prototype"),
    ("cityscapes-panoptic-r50", (1024, 2048), "masked"),
    ("cityscapes-panoptic-stdc1", (1024, 2048), "prototype"),
    ("cityscapes-panoptic-stdc2", (1024, 2048), "prototype"),
    ("ade20k-panoptic-r50", (640, 640), "prototype"),
    ("ade20k-semantic-r50", (512, 512), "prototype"),
    ("ade20k-semantic-stdc1", (512, 512), "prototype"),
    ("ade20k-semantic-stdc2", (512, 512), "prototype"),
    ("default", (288, 384), "prototype"),
    ("default", (288, 384), "masked"),
)

MIB = 2**20


@dataclass(frozen=True)
class CostRow:
    stage: str  # "backbone", "pixel decoder", "decoder", "masks": the full-size mask product at the end
    part: str  # of the decoder: the attribute that holds it ("cross_attention", ...); elsewhere ""
    operator: str  # "convolution", "attention scores", "comparison", ...
    gmacs: float = 0.0
    params: int = 0
    comparisons: int = 0
    exponentials: int = 0  # of softmax
    interpolation_gmacs: float = 0.0  # bilinear: 4 per value
    read_mib: float = 0.0  # weights included
    written_mib: float = 0.0  # the activations


NOTHING = CostRow("", "", "")


@dataclass(frozen=True)
class ModelCost:
    """What one image costs. ``reference_total_gmacs`` is the total with the published code's mask products.

    Our decoder multiplies queries with mask features at full size (a quarter of the image) once, at the end; its layers
    take small products at the size of their level. The published code takes a full-size product at every depth, and
    the paper's numbers contain those. All else is the same.
    """

    rows: tuple[CostRow, ...]
    reference_total_gmacs: float

    @property
    def total_gmacs(self) -> float:
        return sum(row.gmacs for row in self.rows)

    @property
    def total_params(self) -> int:
        return sum(row.params for row in self.rows)

    def grouped(self, by: str) -> dict[str, CostRow]:
        """The rows added up by "stage" or by "operator", which are the keys; all texts in the sums are empty."""
        sums: dict[str, CostRow] = {}
        for row in self.rows:
            key = getattr(row, by)
            sums[key] = _add(sums.get(key, NOTHING), row)
        return sums


def _add(a: CostRow, b: CostRow) -> CostRow:
    """``a`` with the numbers of ``b`` added."""
    numbers = {name: value for name, value in vars(b).items() if not isinstance(value, str)}
    return replace(a, **{name: getattr(a, name) + value for name, value in numbers.items()})


def count_macs(config: PEMConfig, size: tuple[int, int] = (1024, 2048)) -> ModelCost:
    """Cost of one image of ``size`` (height, width; multiples of 32). Nothing is computed: tensors have no data.

    Raises ValueError for a size that the network cannot take.
    """
    with FakeTensorMode():
        model = pem.build_model(config)
        with mac_counter(model) as counter:
            _ = model(torch.empty(1, 3, *size)).pred_masks

    rows: dict[tuple[str, str, str], CostRow] = {}

    def add(path: str, row: CostRow) -> None:
        key = (*_stage_and_part(path), row.operator)
        rows[key] = _add(rows.get(key, CostRow(*key)), row)

    for path, row in counter.rows():
        add(path, row)
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            add(path, CostRow("", "", _parameter_operator(module), params=parameter.numel()))

    full_size = rows["masks", "", "mask product"].gmacs
    level_size = rows["decoder", "", "mask product"].gmacs
    total = sum(row.gmacs for row in rows.values())
    return ModelCost(tuple(rows.values()), total - level_size + config.num_layers * full_size)


def _stage_and_part(path: str) -> tuple[str, str]:
    """Where in a PEM a module stands. The full-size mask product is made outside of all, when it is asked for."""
    stage, *inner = path.split(".")
    if stage != "decoder":
        return stage.replace("_", " ") or "masks", ""
    return stage, (inner[2] if inner[0] == "layers" else inner[0]) if inner else ""


def _parameter_operator(module: nn.Module) -> str:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return "convolution"
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return "linear"
    if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        return "norm"
    return "deformable convolution" if isinstance(module, DeformableUpsample) else "other"


# The names that torch gives to the operators behind its functions, and what they are here.
_KINDS = {
    "comparison": ("max", "min", "amax", "amin", "argmax", "argmin", "topk", "sort", "max_pool2d_with_indices")
    + ("lt", "le", "gt", "ge", "eq", "ne", "isneginf"),
    "gather": ("gather", "index", "index_select", "embedding"),
    "softmax": ("_softmax", "_safe_softmax"),
    # Of an embedding bag: pem.deform_conv mixes the four neighbours of each sampled place by it.
    "resampling": ("_embedding_bag_forward_only", "grid_sampler_2d")
    + ("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d"),
    "norm": ("native_batch_norm", "native_layer_norm", "native_group_norm", "linalg_vector_norm"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_UNTOUCHED = ("empty", "empty_like", "empty_strided", "new_empty")  # memory that is handed out and not written


class OperatorCounter(TorchDispatchMode):
    """Adds up the work of every operator that runs, by the module that runs it. Enter it by ``mac_counter``.

    It stands where torch chooses kernels, so no way of calling an operator escapes it: every kernel of
    scaled_dot_product_attention passes here by its own name, and all are counted by the shapes of query, key and value.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.modules: list[nn.Module] = []  # those at work, from the outermost in
        self._paths = {module: path for path, module in model.named_modules()} if model else {}
        self._rows: defaultdict[tuple[str, str], CostRow] = defaultdict(lambda: NOTHING)
        # What is known of memory: it holds a weight, or what a softmax gave.
        self._holds: dict[StorageWeakRef, str] = {}

    def rows(self) -> Iterator[tuple[str, CostRow]]:
        """The path of a module in the model ("" outside of it) and what an operator did there."""
        for (path, operator), row in self._rows.items():
            yield path, replace(row, operator=operator)

    def total(self) -> CostRow:
        result = NOTHING
        for row in self._rows.values():
            result = _add(result, row)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions, such as on which device a tensor lies
            return func(*args, **kwargs)
        if func._opname not in _KIND_OF:
            # Under inference_mode, functions such as linear and matmul arrive whole; their parts are what is counted.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        namespace, name = func._schema.name.split("::")
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        is_view = name == "_unsafe_view" or (alias is not None and not alias.is_write)
        if is_view or name in ("clone", "_to_copy"):
            for tensor in outputs:
                self._mark(tensor, self._held_by(inputs[0]))
        if is_view or name in _UNTOUCHED:
            return
        if name.startswith("_scaled_dot_product"):
            return self._count_attention(args[0], args[1], args[2], inputs[3:], outputs[0])
        read, written = sum(map(num_bytes, inputs)), sum(map(num_bytes, outputs))

        operator = _KIND_OF.get(name, "other")
        macs = interpolation = comparisons = exponentials = 0
        if name == "deform_conv2d":
            operator = "deformable convolution"
            x, weight = args[0], args[1]
            macs = outputs[0].numel() * prod(weight.shape[1:])
            interpolation = 4 * x.shape[0] * x.shape[1] * prod(weight.shape[2:]) * prod(outputs[0].shape[2:])
        elif namespace not in ("aten", "prims"):
            raise ValueError(f"There is no cost formula for the operator {func}; add it to analysis/flops.py.")
        elif func._overloadpacket in flop_registry:
            macs = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result) // 2
            operator = self._product(name, inputs)
        elif name in ("mv", "dot"):  # not known to torch's counter
            macs = args[0].numel()
            operator = self._product(name, inputs)
        elif name == "max_pool2d_with_indices":
            comparisons = outputs[0].numel() * prod(args[1])
        elif operator == "comparison":
            comparisons = max(tensor.numel() for tensor in inputs)
        elif operator == "softmax":
            comparisons = exponentials = outputs[0].numel()
            self._mark(outputs[0], "softmax")
        elif operator == "gather":
            # Of the source it reads only what it picks.
            read = written + sum(num_bytes(tensor) for tensor in inputs if not tensor.is_floating_point())
        elif name in ("_embedding_bag_forward_only", "grid_sampler_2d", "upsample_bilinear2d"):
            interpolation = 4 * outputs[0].numel()
        self._add(
            operator,
            gmacs=macs / 1e9,
            comparisons=comparisons,
            exponentials=exponentials,
            interpolation_gmacs=interpolation / 1e9,
            read_mib=read / MIB,
            written_mib=written / MIB,
        )

    def _product(self, name: str, inputs: list[Tensor]) -> str:
        """What a convolution or matrix product is for."""
        if "conv" in name:
            return "convolution"
        if any(isinstance(module, DeformableUpsample) for module in self.modules):
            return "deformable convolution"  # its nine taps, sampled before
        held = {self._held_by(tensor) for tensor in inputs}
        if "weight" in held:
            return "linear"
        if any("Attention" in type(module).__name__ for module in self.modules):
            return "attention weighting" if "softmax" in held else "attention scores"
        return "mask product"

    def _count_attention(self, query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], output: Tensor) -> None:
        """Fused softmax attention: neither scores nor weights are written."""
        scores = prod(query.shape[:-1]) * key.shape[-2]
        read = num_bytes(query) + num_bytes(key) + sum(map(num_bytes, masks))
        self._add("attention scores", gmacs=scores * query.shape[-1] / 1e9, read_mib=read / MIB)
        self._add("softmax", comparisons=scores, exponentials=scores)
        self._add(
            "attention weighting",
            gmacs=scores * value.shape[-1] / 1e9,
            read_mib=num_bytes(value) / MIB,
            written_mib=num_bytes(output) / MIB,
        )

    def _add(self, operator: str, **numbers: float) -> None:
        path = self._paths.get(self.modules[-1], "") if self.modules else ""
        self._rows[path, operator] = _add(
            self._rows[path, operator],
            CostRow("", "", "", **numbers),  # type: ignore[arg-type]
        )

    def _held_by(self, tensor: Tensor) -> str:
        if isinstance(tensor, nn.Parameter):
            return "weight"
        return self._holds.get(StorageWeakRef(tensor.untyped_storage()), "")

    def _mark(self, tensor: Tensor, held: str) -> None:
        if held:
            self._holds[StorageWeakRef(tensor.untyped_storage())] = held


def num_bytes(tensor: Tensor) -> int:
    """Memory that a tensor covers; what ``expand`` repeats lies there once."""
    return tensor.element_size() * prod(n for n, step in zip(tensor.shape, tensor.stride()) if step)


@contextmanager
def mac_counter(model: nn.Module | None = None) -> Iterator[OperatorCounter]:
    """Counts all operators that run inside, without gradients; ``model`` lets the counter name its modules.

    torch's own FlopCounterMode and fvcore see 0 in the CPU's fused attention and in deform_conv2d.
    """
    counter = OperatorCounter(model)

    def enter(module: nn.Module, _: object) -> None:
        counter.modules.append(module)

    def leave(*_: object) -> None:
        counter.modules.pop()

    hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
    # nn.MultiheadAttention may otherwise run as one operator that shows nothing of its inside.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class FvcoreCount:
    """What fvcore says of the same network. ``product_gmacs`` leaves out its norms and interpolations, as we do."""

    product_gmacs: float
    other_gmacs: float
    not_counted: dict[str, int]  # operators that it has no formula for, and how often each ran


def count_with_fvcore(model: nn.Module, pixels: Tensor) -> FvcoreCount:
    """fvcore traces a real run, which takes the time and memory of one: tensors without data cannot be traced."""
    from fvcore.nn import FlopCountAnalysis  # only this comparison needs it

    class Whole(nn.Module):
        """To all class logits and the last mask logits: what no result depends on is not traced."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            output = self.model(pixels)
            return (output.pred_masks, output.pred_logits, *(earlier.pred_logits for earlier in output.aux_outputs))

    with torch.no_grad():
        analysis = FlopCountAnalysis(Whole().eval(), pixels)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    products = sum(by_operator[name] for name in ("conv", "linear", "matmul", "addmm", "bmm", "einsum"))
    return FvcoreCount(products / 1e9, (by_operator.total() - products) / 1e9, dict(analysis.unsupported_ops()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.flops", description="What PEMs cost, counted.")
    parser.add_argument("--preset", type=parse_preset, help="without it: those of the paper, and the default")
    parser.add_argument("--size", type=parse_size, default=(1024, 2048), metavar="HEIGHTxWIDTH")
    parser.add_argument("--attention", choices=("prototype", "masked"), default="prototype", help="of that preset")
    parser.add_argument("--by", choices=("stage", "operator"), default="stage")
    parser.add_argument("--fvcore", action="store_true", help="what fvcore counts beside it: runs every network once")
    parser.add_argument("--paper", action="store_true", help="our counts beside the paper's, and nothing else")
    parser.add_argument("--out", type=json_file, help="JSON file to write, with every row")
    args = parser.parse_args()
    if args.paper:
        from analysis import paper  # it stands above this module

        return paper.report(args.out)

    cases = []
    for name, size, attention in [(args.preset, args.size, args.attention)] if args.preset else CASES:
        config = replace(pem.get_config(name), attention=attention)
        cost = count_macs(config, size)
        print(
            f"{name}, {attention} attention, {size[0]}x{size[1]}: {cost.total_params / 1e6:.2f} M parameters, ", end=""
        )
        print(f"{cost.total_gmacs:.1f} GMACs, {cost.reference_total_gmacs:.1f} as published")
        print_table(cost.grouped(args.by))
        case = {
            "preset": name,
            "attention": attention,
            "size": size,
            "total_params": cost.total_params,
            "total_gmacs": cost.total_gmacs,
            "reference_total_gmacs": cost.reference_total_gmacs,
            "rows": cost.rows,
        }
        if args.fvcore:
            found = count_with_fvcore(pem.build_model(config), torch.zeros(1, 3, *size))
            case["fvcore"] = found
            missed = [f"{name} ({n} times)" for name, n in found.not_counted.items() if "attention" in name]
            gap = cost.total_gmacs - found.product_gmacs
            print(f"  fvcore: {found.product_gmacs:.3f} GMACs, {gap:.3f} too few: no formula for {', '.join(missed)}")
        cases.append(case)
    if args.out:
        save_json({"conditions": conditions("meta"), "cases": cases}, args.out)


def print_table(rows: dict[str, CostRow]) -> None:
    columns = ("GMACs", "Mparams", "Mcompar.", "Mexp", "interp.", "read MiB", "written")
    print(f"  {'':22}", *(f"{column:>9}" for column in columns))
    for name, row in rows.items():
        millions = (row.params / 1e6, row.comparisons / 1e6, row.exponentials / 1e6)
        numbers = (row.gmacs, *millions, row.interpolation_gmacs, row.read_mib, row.written_mib)
        print(f"  {name:22}", *(f"{number:9.2f}" for number in numbers))


if __name__ == "__main__":
    main()

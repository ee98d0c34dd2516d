"""Counts the work of every operator that torch runs: multiply-accumulates (MACs), comparisons, exponentials and bytes.

1 MAC = 2 FLOPs; what the paper calls FLOPs are MACs. As in the paper, convolutions and matrix products make the MACs.
Bilinear interpolation, comparisons (argmax, thresholds, max-pooling) and the exponentials of softmax have columns of
their own; norms, activations and copies show in the bytes. Bytes are what each operator would read and write if it
found its inputs in memory and left its outputs there: an upper bound, which fused kernels and caches stay below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from analysis.results import MIB
from pem.pixel_decoder import DeformableUpsample


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

    def __add__(self, other: CostRow) -> CostRow:
        """The texts of this row, and the sums of the numbers of both."""
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in NUMBERS})


NUMBERS = tuple(field.name for field in fields(CostRow) if field.name not in ("stage", "part", "operator"))
NOTHING = CostRow("", "", "")

# The kinds of operators, with torch's names for the operators behind its functions.
_KINDS = {
    "comparison": ("max", "min", "amax", "amin", "argmax", "argmin", "topk", "sort", "max_pool2d_with_indices")
    + ("lt", "le", "gt", "ge", "eq", "ne", "isneginf"),
    "gather": ("gather", "index", "index_select", "embedding"),
    "softmax": ("_softmax", "_safe_softmax"),
    # pem.fast.deform_conv mixes the four neighbours of each sampled point by an embedding bag.
    "resampling": ("_embedding_bag_forward_only", "grid_sampler_2d")
    + ("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d"),
    "norm": ("native_batch_norm", "native_layer_norm", "native_group_norm", "linalg_vector_norm"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_UNTOUCHED = ("empty", "empty_like", "empty_strided", "new_empty")  # memory that is allocated and not written


class OperatorCounter(TorchDispatchMode):
    """Adds up the work of every operator that runs, by the module that runs it. Enter it by ``mac_counter``.

    It works where torch chooses kernels, so it sees every operator, however it is called. Each kernel of
    scaled_dot_product_attention has a name of its own; all are counted by the shapes of query, key and value.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.modules: list[nn.Module] = []  # those at work, from the outermost in
        self._paths = {module: path for path, module in model.named_modules()} if model else {}
        self._rows: defaultdict[tuple[str, str], CostRow] = defaultdict(lambda: NOTHING)
        # What is known about memory: it holds a weight, or the output of a softmax.
        self._holds: dict[StorageWeakRef, str] = {}

    def rows(self) -> Iterator[tuple[str, CostRow]]:
        """The path of a module in the model ("" outside of it) and what an operator did there."""
        for (path, operator), row in self._rows.items():
            yield path, replace(row, operator=operator)

    def total(self) -> CostRow:
        return sum(self._rows.values(), NOTHING)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions, such as the device of a tensor
            return func(*args, **kwargs)
        if func._opname not in _KIND_OF:
            # Under inference_mode, functions such as linear and matmul arrive whole; count their parts.
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
            raise ValueError(f"There is no cost formula for the operator {func}; add it to analysis/counter.py.")
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
            # It reads only what it picks.
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
        self._rows[path, operator] += CostRow("", "", "", **numbers)  # type: ignore[arg-type]

    def _held_by(self, tensor: Tensor) -> str:
        if isinstance(tensor, nn.Parameter):
            return "weight"
        return self._holds.get(StorageWeakRef(tensor.untyped_storage()), "")

    def _mark(self, tensor: Tensor, held: str) -> None:
        if held:
            self._holds[StorageWeakRef(tensor.untyped_storage())] = held


def num_bytes(tensor: Tensor) -> int:
    """Memory that a tensor covers; what ``expand`` repeats counts once."""
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

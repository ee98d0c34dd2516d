"""PEM's cross-attention beside the standard one: same tensors, one run, in turns, against the machine's roofline."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from analysis.arguments import add_shared, natural, parse_grid
from analysis.closed_forms import masked_attention_macs, prototype_attention_macs
from analysis.latency import COMPILED
from analysis.results import MIB, Report
from analysis.roofline import Roofline, measure_roofline
from analysis.timing import Workload, at_precision, measure_peak_mib, measure_rounds, percentiles, whole
from pem.attention import MaskedCrossAttention, PrototypeCrossAttention
from pem.errors import first_line
from pem.fast.attention import FastPrototypeCrossAttention

DIM, NUM_HEADS = 256, 8
# PEM-CA; masked attention by torch's fused kernel with a boolean mask, spelled out, and by FlexAttention.
METHODS = ("prototype", "sdpa", "softmax", "flex")

# (query, query_embed, source, position, banned) -> the new query, as in pem.attention.
Layer = Callable[..., Tensor]


@dataclass(frozen=True)
class AttentionRow:
    """Cost of one cross-attention layer with its projections. 1 MAC = 2 FLOPs; memory without inputs and weights.

    What was not measured is None, and ``note`` says why.
    """

    method: str  # one of METHODS
    median_ms: float | None
    p10_ms: float | None
    p90_ms: float | None
    speedup: float | None  # over "sdpa": median over the rounds of its time by this method's
    gmacs: float
    moved_mib: float  # the least that must be moved: least_bytes
    peak_mib: float | None
    achieved: float | None  # share of the rate that the roofline allows
    note: str = ""


def softmax_attention(attention: MaskedCrossAttention, query: Tensor, *others: Tensor) -> Tensor:
    """What ``attention`` computes, with its weights, as matrix product, softmax, matrix product."""
    q, k, v, allowed = attention.project(query, *others)
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    attended = scores.softmax(dim=-1) @ v
    return query + attention.final(attended.transpose(1, 2).flatten(2))


def flex_attention_layer(attention: MaskedCrossAttention) -> Layer:
    """What ``attention`` computes, by FlexAttention; compiled at the first call.

    It looks the mask up score by score: every layer has a new mask, for which a block mask would have to be built.
    """

    @torch.compile(dynamic=False)
    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        def banned_to_minus_infinity(score: Tensor, b: Tensor, h: Tensor, row: Tensor, token: Tensor) -> Tensor:
            return torch.where(allowed[b, 0, row, token], score, -torch.inf)

        attended = flex_attention(q, k, v, score_mod=banned_to_minus_infinity)
        assert isinstance(attended, Tensor)
        return attended

    def layer(query: Tensor, *others: Tensor) -> Tensor:
        attended = attend(*attention.project(query, *others))
        return query + attention.final(attended.transpose(1, 2).flatten(2))

    return layer


def random_inputs(
    tokens: tuple[int, int], num_queries: int, device: torch.device, precision: str = "float32"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs of a layer for one image and a level of ``tokens`` (height, width), half of them banned.

    Memory layouts are those of the decoder, in which the tokens of ``banned`` come first. As there, only source and
    position are in half precision; the queries stay in float32.
    """
    height, width = tokens
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(device)

    dtype = getattr(torch, precision)
    query, query_embed = random(1, num_queries, DIM), random(num_queries, DIM)
    layout = torch.channels_last
    source, position = (random(1, DIM, height, width).to(dtype, memory_format=layout) for _ in range(2))
    banned = (random(1, height * width, num_queries) < 0).transpose(1, 2)
    banned[..., 0] = False  # no query is left without a token
    return query, query_embed, source, position, banned


def attention_workloads(
    tokens: tuple[int, int],
    num_queries: int,
    device: torch.device,
    methods: Sequence[str] = METHODS,
    num_heads: int = NUM_HEADS,
    precision: str = "float32",
    backward: bool = False,
    compiled: bool = False,
) -> dict[str, Workload]:
    """One layer by each method, on the same tensors, as workloads of one part.

    ``backward`` adds the gradients of queries, source and weights, with the layer in training mode. ``compiled`` has
    torch.compile make each layer, at its first run. Outputs are checked here, as they are not compiled: raises
    AssertionError when "sdpa" and "softmax" differ by more than rounding, or when a prototype is a banned token.
    """
    inputs = random_inputs(tokens, num_queries, device, precision)
    prototype = PrototypeCrossAttention(DIM, num_heads, empty_mask="reference").eval().to(device)
    fast = FastPrototypeCrossAttention(prototype)
    masked = MaskedCrossAttention(DIM, num_heads).eval().to(device)
    layers: dict[str, tuple[nn.Module, Layer]] = {
        "prototype": (prototype, lambda *inputs: (prototype if backward else fast)(*inputs)[0]),
        "sdpa": (masked, lambda *inputs: masked(*inputs)[0]),
        "softmax": (masked, partial(softmax_attention, masked)),
        "flex": (masked, flex_attention_layer(masked)),
    }
    if compiled:
        layers = {name: (module, torch.compile(layer, **COMPILED)) for name, (module, layer) in layers.items()}

    with torch.inference_mode(), at_precision(precision, device):
        rounding = 1e-3 if precision == "float32" else 5e-2
        expected = softmax_attention(masked, *inputs)
        torch.testing.assert_close(masked(*inputs)[0], expected, rtol=rounding, atol=rounding)
        index = fast(*inputs, trace=True)[1].prototype_index  # [1, h, Q]
        if inputs[-1].gather(2, index.transpose(1, 2)).any():
            raise AssertionError("A prototype is a banned token.")

    def run(module: nn.Module, layer: Layer) -> None:
        with torch.inference_mode(not backward), at_precision(precision, device):
            output = layer(*inputs)
        if backward:
            torch.autograd.grad(output, [*module.parameters(), *inputs[:3]], torch.ones_like(output))

    if backward:
        for x in inputs[:3]:  # query, query_embed, source
            x.requires_grad_()
        prototype.train()
        masked.train()
    return {name: whole(partial(run, *layers[name])) for name in methods}


def layer_macs(method: str, num_tokens: int, num_queries: int, backward: bool = False) -> int:
    """MACs of one layer for one image. The backward pass makes two products for each product of the forward pass.

    The similarity of prototypes is the exception: it only picks tokens, and a pick has no gradient.
    """
    count = prototype_attention_macs if method == "prototype" else masked_attention_macs
    macs = count(num_tokens, num_queries, DIM)
    if not backward:
        return macs
    return 3 * macs - (2 * num_tokens * num_queries * DIM if method == "prototype" else 0)


def least_bytes(method: str, num_tokens: int, num_queries: int, token_bytes: int = 4, backward: bool = False) -> int:
    """What any implementation must move: it reads every input and weight once, and writes the output once.

    Numbers of queries and weights take 4 bytes, those of source and position ``token_bytes``, those of the mask one.
    Scores and projected tokens do not count: a fused kernel keeps them on the chip. ``backward`` also reads the
    gradient of the output, and writes those of query, query_embed, source and weights (of running statistics: their
    new values).
    """
    weights = 4 * DIM**2 + (21 if method == "prototype" else 6) * DIM
    queries, level = 4 * num_queries * DIM, token_bytes * num_tokens * DIM
    forward = 3 * queries + 4 * weights + 2 * level + num_queries * num_tokens
    return forward + (3 * queries + 4 * weights + level if backward else 0)


def compare_attention(
    tokens: tuple[int, int] = (64, 128),
    num_queries: int = 100,
    device: str = "cpu",
    repeats: int = 20,
    warmup: int = 20,
    precision: str = "float32",
    backward: bool = False,
    methods: Sequence[str] = METHODS,
    roofline: Roofline | None = None,
    compiled: bool = False,
) -> list[AttentionRow]:
    """One layer of each kind, for one image, over a level of ``tokens`` (height, width), half of them banned.

    The methods take turns; ``warmup`` is the most that may precede the ``repeats`` rounds that count. ``roofline`` is
    measured unless given. "flex" is compiled first, which takes seconds; its row says so where it does not run.
    ``compiled``: each layer as a whole by torch.compile, which on a GPU replays it as a CUDA graph.
    Raises AssertionError when the methods do not compute what they should, see ``attention_workloads``.
    """
    target = torch.device(device)
    roofline = roofline or measure_roofline(target, precision)
    workloads = attention_workloads(tokens, num_queries, target, methods, NUM_HEADS, precision, backward, compiled)
    note = ""
    if "flex" in workloads and target.type == "cpu" and torch.get_num_threads() > 1:
        # With torch 2.11, 20 queries and 16x32 tokens it is right with one thread and crashes the process with two.
        note = "FlexAttention's CPU kernel writes beyond its memory with more than one thread: set OMP_NUM_THREADS=1."
        del workloads["flex"]
    elif "flex" in workloads:
        try:
            torch.compiler.reset()  # or the graphs of earlier sizes would count against its limit
            workloads["flex"](lambda: None)
        except Exception as error:  # no compiler, kernel or backward pass: each fails in its way
            note = f"FlexAttention does not run here: {first_line(error)}."
            del workloads["flex"]

    times_ms, _ = measure_rounds(workloads, target, repeats, warmup)
    num_tokens, token_bytes = tokens[0] * tokens[1], getattr(torch, precision).itemsize
    rows = []
    for method in methods:
        macs = layer_macs(method, num_tokens, num_queries, backward)
        moved = least_bytes(method, num_tokens, num_queries, token_bytes, backward)
        ran = method in times_ms
        median_ms, p10_ms, p90_ms = percentiles(times_ms[method][:, 0]) if ran else (None, None, None)
        paired = ran and "sdpa" in times_ms
        rows.append(
            AttentionRow(
                method,
                median_ms,
                p10_ms,
                p90_ms,
                speedup=float(np.median(times_ms["sdpa"] / times_ms[method])) if paired else None,
                gmacs=macs / 1e9,
                moved_mib=moved / MIB,
                peak_mib=max(measure_peak_mib(workloads[method], target)) if ran else None,
                achieved=None if median_ms is None else roofline.achieved(macs, moved, median_ms),
                note="" if ran else note,
            )
        )
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens",
        type=parse_grid,
        nargs="+",
        default=[(16, 32), (32, 64), (64, 128)],
        metavar="HEIGHTxWIDTH",
        help="default: the levels of a 512x1024 image",
    )
    parser.add_argument("--queries", type=natural, nargs="+", default=[20, 100, 300])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--compiled", action="store_true", help="forward only, replayed as CUDA graphs on a GPU")
    add_shared(parser, repeats=10, precision="float32", device="auto", out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each direction, level, number of queries and method."""
    shown = ("direction", "tokens", "num_queries", "method", "median_ms", "p10_ms", "p90_ms", "gmacs", "peak_mib")
    report = Report(*shown, "achieved", "note", device=args.device, precision=args.precision, out=args.out)
    roofline = measure_roofline(args.device, args.precision)
    print(f"roofline: {roofline.matrix_gmacs_per_s:.1f} GMAC/s, {roofline.copy_gb_per_s:.1f} GB/s")
    for backward, tokens, num_queries in product(
        [False] if args.compiled else [False, True], args.tokens, args.queries
    ):
        rows = compare_attention(
            tokens,
            num_queries,
            args.device,
            args.repeats,
            precision=args.precision,
            backward=backward,
            methods=args.methods,
            roofline=roofline,
            compiled=args.compiled,
        )
        direction = "forward+backward" if backward else "forward"
        about = {"direction": direction, "tokens": "x".join(map(str, tokens)), "num_queries": num_queries}
        for row in rows:
            report.add(about | asdict(row))
    report.save("attention-compiled" if args.compiled else "attention", repeats=args.repeats, roofline=roofline)

"""PEM's cross-attention beside the standard one: same tensors, one run, in turns."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from analysis.flops import masked_attention_macs, prototype_attention_macs
from analysis.latency import measure_ms, measure_peak_mib, percentiles
from analysis.results import conditions, save_json
from pem.attention import MaskedCrossAttention, PrototypeCrossAttention

DIM, NUM_HEADS = 256, 8


@dataclass(frozen=True)
class AttentionRow:
    """Cost of one cross-attention layer, projections included. 1 MAC = 2 FLOPs; memory without inputs and weights."""

    method: str  # "prototype": PEM-CA; "sdpa": masked attention, torch's fused kernel; "softmax": the same, spelled out
    median_ms: float
    p10_ms: float
    p90_ms: float
    gmacs: float
    peak_mib: float


def softmax_attention(
    attention: MaskedCrossAttention,
    query: Tensor,
    query_embed: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
) -> Tensor:
    """What ``attention`` computes, with its weights, as matrix product, softmax, matrix product."""
    q, k, v, allowed = attention.project(query, query_embed, source, position, banned)
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    attended = scores.softmax(dim=-1) @ v
    return query + attention.final(attended.transpose(1, 2).flatten(2))


@torch.inference_mode()
def compare_attention(
    tokens: tuple[int, int] = (64, 128),
    num_queries: int = 100,
    device: str = "cpu",
    repeats: int = 20,
    warmup: int = 3,
) -> list[AttentionRow]:
    """One layer of each kind, for one image, over a level of ``tokens`` (height, width), half of them banned.

    The methods take turns, so that a machine that slows down slows them all. Outputs are checked before timing: raises
    AssertionError when "sdpa" and "softmax" differ by more than rounding, or when a prototype is a banned token.
    """
    height, width = tokens
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(device)

    inputs = (
        random(1, num_queries, DIM),
        random(num_queries, DIM),
        random(1, DIM, height, width),
        random(1, DIM, height, width),
        random(1, num_queries, height * width) < 0,
    )
    prototype = PrototypeCrossAttention(DIM, NUM_HEADS, empty_mask="reference").eval().to(device)
    masked = MaskedCrossAttention(DIM, NUM_HEADS).eval().to(device)
    methods: dict[str, Callable[..., object]] = {
        "prototype": prototype,
        "sdpa": masked,
        "softmax": partial(softmax_attention, masked),
    }

    torch.testing.assert_close(masked(*inputs)[0], softmax_attention(masked, *inputs), rtol=1e-3, atol=1e-3)
    index = prototype(*inputs)[1]  # [1, h, Q]
    if inputs[-1].gather(2, index.transpose(1, 2)).any():
        raise AssertionError("A prototype is a banned token.")

    def run(method: str, done: Callable[[], None]) -> None:
        methods[method](*inputs)
        done()

    times_ms: dict[str, list[float]] = {name: [] for name in methods}
    for i in range(warmup + repeats):
        for name in methods:
            elapsed = measure_ms(partial(run, name), inputs[0].device)
            if i >= warmup:
                times_ms[name] += elapsed

    masked_macs = masked_attention_macs(height * width, num_queries, DIM)
    macs = {
        "prototype": prototype_attention_macs(height * width, num_queries, DIM),
        "sdpa": masked_macs,
        "softmax": masked_macs,
    }
    return [
        AttentionRow(
            name,
            *percentiles(times_ms[name]),
            gmacs=macs[name] / 1e9,
            peak_mib=max(measure_peak_mib(partial(run, name), inputs[0].device)),
        )
        for name in methods
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.attention", description="Prototype attention beside masked attention, one layer."
    )
    parser.add_argument("--tokens", type=int, nargs=2, default=(64, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()

    rows = compare_attention(tuple(args.tokens), args.queries, args.device, args.repeats)
    measured_on = conditions(args.device)
    print(f"{args.tokens[0]}x{args.tokens[1]} tokens, {args.queries} queries, {args.repeats} repeats, ", end="")
    print(f"{measured_on['device']}, {measured_on['threads']} threads, {measured_on['precision']}")
    print(f"{'method':10} {'median ms':>10} {'p10':>8} {'p90':>8} {'GMACs':>7} {'peak MiB':>9}")
    for row in rows:
        print(f"{row.method:10} {row.median_ms:10.3f} {row.p10_ms:8.3f} {row.p90_ms:8.3f} ", end="")
        print(f"{row.gmacs:7.3f} {row.peak_mib:9.1f}")
    if args.out:
        setup = {name: getattr(args, name) for name in ("tokens", "queries", "repeats")}
        save_json({"conditions": measured_on, **setup, "rows": rows}, args.out)


if __name__ == "__main__":
    main()

from __future__ import annotations

from functools import partial

import pytest
import torch

import analysis
import analysis.attention
from analysis.attention import softmax_attention
from analysis.flops import mac_counter, masked_attention_macs, prototype_attention_macs
from pem.attention import MaskedCrossAttention, PrototypeCrossAttention

Q, D, HEADS, H, W = 7, 16, 4, 3, 5


def random_inputs(device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """query, query_embed, source, position, banned; float64. Query 0 is banned from every token, query 1 from none."""
    rng = torch.Generator().manual_seed(3)
    query, query_embed, source, position = (
        torch.randn(shape, generator=rng, dtype=torch.float64)
        for shape in ((2, Q, D), (Q, D), (2, D, H, W), (1, D, H, W))
    )
    banned = torch.rand(2, Q, H * W, generator=rng) < 0.5
    banned[:, 0], banned[:, 1] = True, False
    return tuple(x.to(device) for x in (query, query_embed, source, position, banned))


def test_softmax_spells_out_sdpa() -> None:
    masked = MaskedCrossAttention(D, HEADS).double()
    inputs = random_inputs()
    torch.testing.assert_close(softmax_attention(masked, *inputs), masked(*inputs)[0], rtol=1e-12, atol=1e-12)


def test_closed_forms_equal_the_counter() -> None:
    prototype = PrototypeCrossAttention(D, HEADS, "reference").double().eval().to("meta")
    masked = MaskedCrossAttention(D, HEADS).double().to("meta")
    inputs = random_inputs("meta")
    for method, macs in (
        (prototype, prototype_attention_macs(H * W, Q, D)),
        (masked, masked_attention_macs(H * W, Q, D)),
        (partial(softmax_attention, masked), masked_attention_macs(H * W, Q, D)),
    ):
        with mac_counter() as counter:
            method(*inputs)
        # Two images: what belongs to the queries and what belongs to the tokens, twice.
        assert counter.get_total_flops() == 2 * 2 * macs


def test_per_token_costs() -> None:
    """About 93k against 182k MACs per token with 100 queries, D = 256: the constants of the paper's network."""
    assert prototype_attention_macs(1, 100) - prototype_attention_macs(0, 100) == 93_440
    assert masked_attention_macs(1, 100) - masked_attention_macs(0, 100) == 182_272


def test_rows_of_a_comparison() -> None:
    rows = analysis.compare_attention(tokens=(16, 32), num_queries=20, repeats=2, warmup=1)
    assert [row.method for row in rows] == ["prototype", "sdpa", "softmax"]
    prototype, sdpa, softmax = rows
    assert prototype.gmacs == prototype_attention_macs(512, 20) / 1e9
    assert sdpa.gmacs == softmax.gmacs == masked_attention_macs(512, 20) / 1e9
    for row in rows:
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
    # Spelled out, the scores of 8 heads, 20 queries and 512 tokens lie in memory, 4 bytes each.
    assert softmax.peak_mib > 8 * 20 * 512 * 4 / 2**20


def test_methods_take_turns_and_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake_measure_ms(run: partial, device: torch.device) -> list[float]:
        calls.append(run.args[0])
        return [float(len(calls))]

    monkeypatch.setattr(analysis.attention, "measure_ms", fake_measure_ms)
    rows = analysis.compare_attention(tokens=(2, 2), num_queries=3, repeats=2, warmup=1)
    assert calls == ["prototype", "sdpa", "softmax"] * 3
    # Calls 1 to 3 warm up; the first method is timed in calls 4 and 7.
    assert [row.median_ms for row in rows] == [5.5, 6.5, 7.5]

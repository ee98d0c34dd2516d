from __future__ import annotations

from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import analysis
import analysis.attention
from analysis.attention import attention_workloads, layer_macs, least_bytes, softmax_attention
from analysis.closed_forms import masked_attention_macs, prototype_attention_macs
from analysis.counter import mac_counter
from analysis.roofline import Roofline
from pem.attention import MaskedCrossAttention, PrototypeCrossAttention
from pem.fast.attention import FastPrototypeCrossAttention
from pem.outputs import Attended

CPU = torch.device("cpu")
WITHOUT_COMPILER = ["prototype", "sdpa", "softmax"]
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
        assert round(counter.total().gmacs * 1e9) == 2 * macs


def test_per_token_costs() -> None:
    """About 93k against 182k MACs per token with 100 queries, D = 256: the constants of the paper's network."""
    assert prototype_attention_macs(1, 100) - prototype_attention_macs(0, 100) == 93_440
    assert masked_attention_macs(1, 100) - masked_attention_macs(0, 100) == 182_272


# Of SDPA the counter sees no forward pass on a CPU; it multiplies as "softmax" does.
@pytest.mark.parametrize("method", ["prototype", "softmax"])
def test_closed_forms_of_the_backward_pass_equal_the_counter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's counter cannot follow autograd.grad; backward computes the same gradients.
    monkeypatch.setattr(torch.autograd, "grad", lambda output, wanted, gradient: output.backward(gradient))
    run = attention_workloads((H, W), Q, CPU, [method], backward=True)[method]
    with FlopCounterMode(display=False) as counter:
        run(lambda: None)
    # It takes the weight gradient of the depthwise convolution for that of a dense one, of 256 times the size.
    surplus = 255 * 9 * 256 * H * W if method == "prototype" else 0
    assert counter.get_total_flops() // 2 == layer_macs(method, H * W, Q, backward=True) + surplus


@pytest.mark.parametrize(("method", "token_bytes"), [("prototype", 4), ("sdpa", 4), ("prototype", 2)])
def test_least_bytes_are_those_of_inputs_weights_and_output(method: str, token_bytes: int) -> None:
    inputs = analysis.attention.random_inputs((H, W), Q, CPU, "float32" if token_bytes == 4 else "bfloat16")
    layer = PrototypeCrossAttention(256, 8, "reference") if method == "prototype" else MaskedCrossAttention(256, 8)
    weights = sum(tensor.nbytes for tensor in layer.state_dict().values() if tensor.is_floating_point())
    query, query_embed, source, *_ = inputs
    forward = sum(tensor.nbytes for tensor in inputs) + weights + query.nbytes
    assert least_bytes(method, H * W, Q, token_bytes) == forward
    backward = query.nbytes + (query.nbytes + query_embed.nbytes + source.nbytes) + weights
    assert least_bytes(method, H * W, Q, token_bytes, backward=True) == forward + backward


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_of_a_comparison(precision: str, backward: bool) -> None:
    rows = analysis.compare_attention(
        (16, 32), 20, repeats=2, warmup=1, precision=precision, backward=backward, methods=WITHOUT_COMPILER
    )
    assert [row.method for row in rows] == ["prototype", "sdpa", "softmax"]
    prototype, sdpa, softmax = rows
    assert prototype.gmacs == layer_macs("prototype", 512, 20, backward) / 1e9
    assert sdpa.gmacs == softmax.gmacs == layer_macs("sdpa", 512, 20, backward) / 1e9
    for row in rows:
        assert row.p10_ms is not None and row.median_ms is not None and row.p90_ms is not None
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.achieved is not None and row.achieved > 0
        assert row.speedup is not None and row.speedup > 0
    assert sdpa.speedup == 1
    # Spelled out, the scores of 8 heads, 20 queries and 512 tokens lie in memory, 4 bytes each (2 in half precision).
    assert softmax.peak_mib is not None and softmax.peak_mib > 8 * 20 * 512 * 2 / 2**20


def test_compiled_layers_are_compared_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(analysis.attention, "COMPILED", {"backend": backend, "dynamic": False, "fullgraph": True})
    rows = analysis.compare_attention((H, W), Q, repeats=2, warmup=1, methods=WITHOUT_COMPILER, compiled=True)
    assert [row.method for row in rows if row.median_ms] == WITHOUT_COMPILER
    assert len(compiled) == len(WITHOUT_COMPILER)


def test_achieved_is_a_share_of_the_roofline() -> None:
    ceilings = Roofline(matrix_gmacs_per_s=1.0, copy_gb_per_s=1e9)
    rows = analysis.compare_attention((2, 2), 3, repeats=1, warmup=0, methods=["sdpa"], roofline=ceilings)
    assert rows[0].achieved == pytest.approx(rows[0].gmacs / (rows[0].median_ms / 1e3))


def test_a_speedup_is_the_median_of_the_ratios_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine slows down ten-fold in the second round; the ratio does not see it, that of the medians (2 / 4) would.
    times_ms = {"prototype": np.array([[1.0], [10.0], [4.0]]), "sdpa": np.array([[2.0], [20.0], [2.0]])}
    monkeypatch.setattr(analysis.attention, "measure_rounds", lambda *_: (times_ms, 0))
    prototype, sdpa = analysis.compare_attention((2, 2), 3, methods=list(times_ms), roofline=Roofline(1.0, 1.0))
    assert (prototype.speedup, sdpa.speedup) == (2, 1)
    monkeypatch.setattr(analysis.attention, "measure_rounds", lambda *_: ({"prototype": times_ms["prototype"]}, 0))
    (alone,) = analysis.compare_attention((2, 2), 3, methods=["prototype"], roofline=Roofline(1.0, 1.0))
    assert alone.speedup is None


def test_a_method_that_does_not_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(attention: MaskedCrossAttention) -> analysis.attention.Layer:
        def layer(*inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("There is no compiler.\nA long trace.")

        return layer

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(analysis.attention, "flex_attention_layer", broken)
    sdpa, flex = analysis.compare_attention((2, 2), 3, repeats=1, warmup=0, methods=["sdpa", "flex"])
    assert sdpa.note == "" and sdpa.median_ms is not None
    assert flex.note == "FlexAttention does not run here: There is no compiler."
    assert flex.median_ms is flex.p10_ms is flex.p90_ms is flex.peak_mib is flex.achieved is None
    assert flex.gmacs == sdpa.gmacs


def test_flex_attention_is_left_out_where_it_would_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    _, flex = analysis.compare_attention((2, 2), 3, repeats=1, warmup=0, methods=["sdpa", "flex"])
    assert "set OMP_NUM_THREADS=1" in flex.note and flex.median_ms is None


def test_flex_attention_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same without a compiler, which takes its time.
    monkeypatch.setattr(torch, "compile", lambda function=None, **_: function or (lambda function: function))
    masked = MaskedCrossAttention(D, HEADS).double().eval()
    inputs = random_inputs()
    with torch.no_grad():
        flex = analysis.attention.flex_attention_layer(masked)(*inputs)
        torch.testing.assert_close(flex, masked(*inputs)[0], rtol=1e-12, atol=1e-12)


def test_the_number_of_heads_is_that_of_the_layers() -> None:
    one, many = (attention_workloads((2, 2), 3, CPU, ["prototype"], num_heads=n)["prototype"] for n in (1, 16))
    chosen, forward = [], FastPrototypeCrossAttention.forward

    def watched(self: FastPrototypeCrossAttention, *inputs: torch.Tensor) -> tuple[torch.Tensor, Attended]:
        result = forward(self, *inputs, trace=True)
        chosen.append(result[1].prototype_index.shape)
        return result

    with patch.object(FastPrototypeCrossAttention, "forward", watched):
        one(lambda: None)
        many(lambda: None)
    assert chosen == [(1, 1, 3), (1, 16, 3)]

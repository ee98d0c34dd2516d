"""torch.compile takes the network as one graph, so that a GPU can replay it: see analysis/README.md."""

from __future__ import annotations

import pytest
import torch
from small_model import clear_choices, small_model

import pem


@pytest.mark.parametrize(("attention", "trace"), [("prototype", False), ("prototype", True), ("masked", False)])
def test_the_network_is_one_graph_that_computes_the_same(attention: str, trace: bool) -> None:
    model = pem.accelerate(small_model(attention=attention))
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(11))
    # aot_eager: everything that torch.compile does but the code that it makes, which takes a minute.
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        expected, output = model(pixels, trace), compiled(pixels, trace)
        clear_choices(model(pixels, trace=True), model.config.num_heads)
    torch.testing.assert_close(output.pred_logits, expected.pred_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.pred_masks, expected.pred_masks, rtol=1e-4, atol=1e-5)
    assert trace == (output.trace is not None)
    for ours, theirs in zip(output.trace or (), expected.trace or (), strict=True):
        assert torch.equal(ours.prototype_index, theirs.prototype_index)

"""The network computes what the published code computes, bit by bit of arithmetic, on weights under its names."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import Golden, load_golden

import pem
from pem.outputs import PEMOutput

KINDS = ("r50", "stdc1")


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The golden case and our output, on weights that took the public way in: a detectron2-named .pth."""
    golden = load_golden(request.param)
    path = tmp_path_factory.mktemp("golden") / "model_final.pth"
    torch.save({"model": {name: torch.from_numpy(array) for name, array in golden.weights.items()}}, path)
    return golden, path, run(golden, path)


def run(golden: Golden, path: Path, device: str = "cpu") -> PEMOutput:
    model = pem.build_model(golden.config).double()
    pem.load_weights(model, path)
    with torch.no_grad():
        return model.to(device)(golden.pixels.to(device), trace=True)


@pytest.mark.parametrize("name", ["pred_logits", "pred_masks"])
def test_outputs_agree_to_a_millionth(case, name: str) -> None:
    golden, _, output = case
    expected = golden.arrays[name].astype(np.float64)
    error = np.abs(getattr(output, name)[0].numpy() - expected)
    assert error.max() <= 1e-6 * np.abs(expected).max()


def test_every_head_of_every_query_picks_the_same_token_in_every_layer(case) -> None:
    golden, _, output = case
    ours = np.stack([layer.prototype_index[0].numpy() for layer in output.trace])
    assert np.array_equal(ours, golden.arrays["prototype_index"])


def test_the_same_queries_have_empty_masks(case) -> None:
    golden, _, output = case
    ours = np.stack([(layer.allowed_fraction[0] == 0).numpy() for layer in output.trace])
    assert np.array_equal(ours, golden.arrays["empty_mask"])
    assert golden.arrays["empty_mask"].any()  # else the reference rule for them was not put to the test


def test_a_pickle_of_numpy_arrays_gives_the_same(case, tmp_path: Path) -> None:
    golden, _, output = case
    path = tmp_path / "model_final.pkl"
    with path.open("wb") as file:
        pickle.dump({"model": golden.weights, "__author__": "third_party", "matching_heuristics": True}, file)
    again = run(golden, path)
    torch.testing.assert_close(again.pred_logits, output.pred_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again.pred_masks, output.pred_masks, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees(case) -> None:
    golden, path, output = case
    on_gpu = run(golden, path, "cuda")
    assert torch.allclose(on_gpu.pred_masks.cpu(), output.pred_masks, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(on_gpu.trace, output.trace, strict=True):
        assert torch.equal(ours.prototype_index.cpu(), theirs.prototype_index)

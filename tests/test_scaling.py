from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.charts import MASKED
from analysis.scaling import BASE, Point, growth, growths, measure_point, measure_points, sweep
from pem.conditions import conditions


def row(point: Point, median_ms: float = 1.0, stage: str = "total", subject: str = "PEM") -> dict[str, Any]:
    about = {"subject": subject, "stage": stage, "median_ms": median_ms, "peak_mib": 2 * median_ms}
    return dataclasses.asdict(point) | about


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_fit_recovers_a_known_exponent(exponent: float) -> None:
    x = [20, 50, 100, 300]
    found = growth(x, [3.0 * value**exponent for value in x])
    assert found["exponent"] == pytest.approx(exponent, abs=1e-12)
    assert found["standard_error"] == pytest.approx(0, abs=1e-8)


def test_the_standard_error_covers_the_noise() -> None:
    rng = np.random.default_rng(0)
    x = np.array([20, 50, 100, 200, 300])
    errors = []
    for _ in range(300):
        found = growth(x, 3 * x**1.5 * np.exp(rng.normal(0, 0.1, len(x))))
        errors.append((found["exponent"] - 1.5) / found["standard_error"])
    # Student's t with three degrees of freedom is within one standard error in 61 % of cases.
    assert 0.5 < np.mean(np.abs(errors) < 1) < 0.72


def test_two_points_make_no_fit() -> None:
    with pytest.raises(ValueError, match="at least three"):
        growth([1, 2], [1, 2])


def test_growth_is_fitted_along_each_sweep_alone() -> None:
    by_side = [row(p, median_ms=p.long_side_px**2) for p in sweep("long_side_px", [256, 512, 2048])]
    by_queries = [row(p, median_ms=p.num_queries**0.5 * 1e5) for p in sweep("num_queries", [20, 50, 300])]
    found = growths(by_side + by_queries)
    fitted = {(fit["swept"], fit["quantity"]): fit["exponent"] for fit in found}
    # Time grows with the square of the side: linearly in pixels.
    assert fitted == pytest.approx(
        {
            ("pixels", "median_ms"): 1.0,
            ("pixels", "peak_mib"): 1.0,
            ("num_queries", "median_ms"): 0.5,
            ("num_queries", "peak_mib"): 0.5,
        }
    )
    assert growths(by_side[:2]) == []


def test_sweeps_cross_in_the_base() -> None:
    assert set(sweep("num_queries", [20, 100])) & set(sweep("num_heads", [8, 16])) == {BASE}
    assert Point("default", 1024, 100, 8).size_px == (512, 1024)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path, measured_on, measured = tmp_path / "run.json", conditions("cpu"), []

    def measure(point: Point) -> list[dict[str, Any]]:
        measured.append(point)
        return [row(point), row(point, stage="decoder")]

    points = sweep("num_queries", [20, 50, 100])
    running = iter(measure_points(points, path, measured_on, measure))
    next(running)
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [r["num_queries"] for r in kept] == [20, 20]  # written before the next point is begun

    list(measure_points(points, path, measured_on, measure))
    assert measured == points
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [r["num_queries"] for r in result["rows"]] == [20, 20, 50, 50, 100, 100]
    assert {fit["num_points"] for fit in result["growth"]} == {3}
    assert path.with_suffix(".csv").exists() and path.with_suffix(".md").exists()

    list(measure_points(points, path, measured_on, measure))
    assert measured == points


def test_a_file_of_another_machine_is_not_continued(tmp_path: Path) -> None:
    path, measured_on = tmp_path / "run.json", conditions("cpu")
    list(measure_points([BASE], path, measured_on, lambda point: [row(point)]))
    with pytest.raises(ValueError, match="another device, threads; give another --out"):
        list(measure_points([BASE], path, measured_on | {"device": "X", "threads": 99}, lambda point: []))


def test_a_point_has_every_stage_of_both_networks_and_the_attention_alone() -> None:
    point = Point("cityscapes-panoptic-stdc1", long_side_px=64, num_queries=5, num_heads=4)
    rows = measure_point(point, torch.device("cpu"), "float32", repeats=1, seconds=60)
    stages = ["backbone", "pixel decoder", "decoder", "masks", "total"]
    assert [(r["subject"], r["stage"]) for r in rows] == [
        *(("PEM", stage) for stage in stages),
        *((MASKED, stage) for stage in stages),
        ("prototype attention", "total"),
        ("masked attention", "total"),
    ]
    for r in rows:
        assert dataclasses.asdict(point).items() <= r.items()
        assert 0 < r["p10_ms"] <= r["median_ms"] <= r["p90_ms"]
        assert (r["gmacs"] is None) == (r["stage"] != "total")
    gmacs = {r["subject"]: r["gmacs"] for r in rows if r["stage"] == "total"}
    assert gmacs["PEM"] < gmacs[MASKED]
    assert gmacs["prototype attention"] < gmacs["masked attention"]

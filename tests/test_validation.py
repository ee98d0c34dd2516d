"""Thresholds, reliability, intervals and worst photos, from photos that are their own labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_model
from test_evaluate import CONFIG, DOG, ONE, PERSON, SIDE_PX, TRUTH, Clairvoyant, write_photos

import pem
from analysis import __main__ as cli
from analysis.figures import thresholds_and_reliability
from analysis.results import save
from analysis.validation import Score, judge, mean_iou, panoptic_quality, report, truth
from pem.training import evaluate as evaluation
from pem.training.data import PanopticDataset, open_split


@pytest.fixture
def dataset(tmp_path: Path) -> PanopticDataset:
    return open_split(write_photos(tmp_path), "val", CONFIG)


def clairvoyant(class_of: dict[int, int]) -> Clairvoyant:
    model = Clairvoyant(class_of).eval()
    model.config = CONFIG
    return model


def test_the_scores_are_those_of_the_evaluation(dataset: PanopticDataset) -> None:
    model = small_model(num_classes=3, short_side_px=SIDE_PX, max_long_side_px=SIDE_PX, object_threshold=0.2)
    # Random weights say no-object nearly everywhere, and then there is nothing to compare.
    torch.nn.init.constant_(model.decoder.class_embed.bias[-1:].data, -5)
    expected = evaluation.evaluate(model, model.config, dataset)
    found = report(judge(model, dataset), model.config)
    for source, scores in expected["per_source"].items():
        assert found["per_source"][source]["pq"]["value"] == pytest.approx(scores["pq"], abs=1e-5)
        assert found["per_source"][source]["miou"]["value"] == pytest.approx(scores["miou"], abs=1e-5)
        for kind in ("pq_things", "pq_stuff"):  # None where a source has none of them
            assert found["per_source"][source][kind]["value"] == pytest.approx(scores[kind], abs=1e-5)
    row, col = found["thresholds"]["object"].index(0.2), found["thresholds"]["overlap"].index(0.8)
    assert found["thresholds"]["pq"][row][col] == pytest.approx(expected["overall"]["pq"], abs=1e-5)
    assert expected["overall"]["miou"] > 0


def test_a_class_that_is_only_invented_counts_in_both(dataset: PanopticDataset) -> None:
    model = clairvoyant({**TRUTH, 10: DOG})  # the sky; the street has no dog
    expected = evaluation.evaluate(model, CONFIG, dataset)["per_source"]["towns"]
    found = report(judge(model, dataset), CONFIG)["per_source"]["towns"]
    for name, score in (("pq", 1 / 3), ("pq_things", 1 / 2), ("pq_stuff", 0)):
        assert expected[name] == pytest.approx(score, abs=0.001)
        assert found[name]["value"] == pytest.approx(expected[name], abs=1e-5)


def test_thresholds_of_the_model_that_are_not_in_the_grid_are_judged_too(dataset: PanopticDataset) -> None:
    config = dataclasses.replace(CONFIG, object_threshold=0.65, overlap_threshold=0.75)
    model = clairvoyant(TRUTH)
    model.config = config
    judged = judge(model, dataset)
    table = report(judged, config)["thresholds"]
    assert table["object"] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.8]
    assert table["overlap"] == [0.4, 0.5, 0.6, 0.7, 0.75, 0.8]
    assert np.shape(table["pq"]) == judged.counts.shape[:2] == (8, 6)


def test_who_knows_everything_is_right_at_every_threshold_and_certain(dataset: PanopticDataset) -> None:
    found = report(judge(clairvoyant(TRUTH), dataset), CONFIG)
    assert np.array(found["thresholds"]["pq"]) == pytest.approx(1, abs=0.002)
    # Of the garden, nobody can say whether the dog or the machine-named person is right.
    assert found["reliability"]["bins"] == [{"segments": 4, "score": ONE, "right": 1}]
    assert found["reliability"]["expected_calibration_error"] == pytest.approx(0, abs=1e-3)


def test_a_wrong_name_lowers_reliability_and_leads_the_worst_photos(dataset: PanopticDataset) -> None:
    found = report(judge(clairvoyant({**TRUTH, 10: DOG, 11: DOG, 12: DOG}), dataset), CONFIG)
    assert found["reliability"]["bins"] == [{"segments": 4, "score": ONE, "right": 0.25}]
    assert [(entry["photo"], entry["pq"]) for entry in found["worst"]] == [("street.png", 0), ("garden.png", ONE)]


def test_the_interval_is_that_of_drawing_photos_again() -> None:
    # One class; each photo has one segment, found or missed. PQ = found / (found + missed / 2).
    counts = np.zeros((40, 4, 1))
    counts[:30, 0:2], counts[30:, 3] = 1, 1
    found = Score.of(counts, panoptic_quality).interval()
    assert found["value"] == pytest.approx(30 / 35)
    # The number found is binomial: 30 out of 40, standard deviation 2.74.
    low, high = (n / (n + (40 - n) / 2) for n in (30 - 1.96 * 2.74, 30 + 1.96 * 2.74))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_the_interval_of_a_difference_is_that_of_pairs() -> None:
    rng = np.random.default_rng(1)
    easy = rng.random(400)  # what two models have in common is which photos are easy
    one, other = (
        Score.of((easy + rng.normal(0, 0.01, 400) + gain)[:, None], lambda x: x[..., 0] / 1000) for gain in (0.1, 0)
    )
    alone, paired = one.interval(), (one - other).interval()
    assert paired["value"] == pytest.approx(one.value - other.value) == pytest.approx(0.04, abs=1e-3)
    assert paired["low"] < paired["value"] < paired["high"]
    assert paired["high"] - paired["low"] < (alone["high"] - alone["low"]) / 10


def test_an_interval_holds_where_a_sample_may_lack_a_class() -> None:
    """Ten classes, each in two photos that are right: a sample that lacks one has a lower mean, and no better one."""
    areas = np.zeros((20, 3, 10))
    areas[np.arange(20), :, np.arange(20) // 2] = 1
    areas[10:, 0] *= 0.5
    found = Score.of(areas, mean_iou).interval()
    assert found["low"] < found["value"] < found["high"]


def test_an_interval_ends_where_scores_do() -> None:
    areas = np.ones((6, 3, 1))
    areas[0, 0] = 0.6
    found = Score.of(areas, mean_iou).interval()
    assert found["low"] < found["value"] < found["high"] == 1


def test_classes_without_labels_are_in_no_mean_unless_they_were_invented() -> None:
    assert panoptic_quality(np.array([[0.8, 0, 0], [1, 0, 0], [0, 5, 0], [0, 0, 0]])) == pytest.approx(0.4)
    assert mean_iou(np.array([[5, 0], [10, 7], [8, 0]])) == pytest.approx(0.5)
    assert np.isnan(panoptic_quality(np.zeros((4, 3))))


def test_where_there_is_nothing_to_judge_there_is_no_number(tmp_path: Path, dataset: PanopticDataset) -> None:
    model = clairvoyant({0: 0})
    dataset.records[0] = dataclasses.replace(
        dataset.records[0],
        source="unlabelled",
        exhaustive=np.zeros_like(dataset.records[0].exhaustive),
        segment_ids=np.zeros(0, np.int64),
        labels=np.zeros(0, np.int64),
        pseudo=np.zeros(0, bool),
    )
    found = report(judge(model, dataset), CONFIG)
    assert found["per_source"]["unlabelled"]["pq"] == {"value": None, "low": None, "high": None}
    assert found["per_source"]["unlabelled"]["miou"]["value"] is None
    assert [entry["photo"] for entry in found["worst"]] == [dataset.records[1].file_name]
    save({"conditions": {}, **found}, tmp_path / "result.json")  # raises where a nan is left
    nothing = dataclasses.replace(judge(model, dataset), counts=np.zeros_like(judge(model, dataset).counts))
    with pytest.raises(ValueError, match="No segment of this split can be judged"):
        report(nothing, CONFIG)


def test_labels_become_a_reading(dataset: PanopticDataset) -> None:
    _, target = dataset.original(1)
    reading = truth(target, CONFIG)
    assert [segment.category_id for segment in reading.segments] == [PERSON, DOG]  # the machine-named person is void
    assert reading.ids[0, 0] == 1 and reading.ids[-1, 0] == 2 and reading.ids[0, -1] == 0 and reading.ids[-1, -1] == 0


def test_the_command_writes_a_result_that_can_be_drawn_and_a_gallery(tmp_path: Path) -> None:
    weights, out = tmp_path / "small.safetensors", tmp_path / "validation.json"
    pem.save_weights(small_model(num_classes=3, short_side_px=SIDE_PX, max_long_side_px=SIDE_PX), weights)
    options = ["--data", str(write_photos(tmp_path)), "--device", "cpu", "--out", str(out)]
    cli.main(["validation", "--weights", str(weights), *options, "--gallery", str(tmp_path / "worst")])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["conditions"]["short_side_px"] == SIDE_PX
    assert len(list((tmp_path / "worst").glob("*.png"))) == 2
    figure = thresholds_and_reliability(result)
    figure.savefig(tmp_path / "validation.png")


def test_a_data_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="neither a folder"):
        cli.main(["validation", "--data", str(tmp_path), "--device", "cpu"])

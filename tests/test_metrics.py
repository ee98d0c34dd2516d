"""PQ and IoU on pictures small enough to count by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.detection import PanopticQuality

from pem.config import get_config
from pem.outputs import Segment, Segmentation
from pem.training.data import PanopticDataset
from pem.training.metrics import PartialIoU, PartialPanopticQuality
from pem.training.target import Target

PERSON, DOG, SKY = 0, 1, 2
IS_THING = [True, True, False]
NAN = math.nan
NOTHING = [NAN, NAN, NAN]


def prediction(ids: list[list[int]] | np.ndarray, *classes: int) -> Segmentation:
    """Segment n has the n-th class, from 1."""
    segments = tuple(Segment(n, c, str(c), IS_THING[c], 1.0, 0, (0, 0, 0, 0), (0,)) for n, c in enumerate(classes, 1))
    return Segmentation(np.array(ids, np.int32), segments)


def truth(ids: list[list[int]] | np.ndarray, *classes: int, exhaustive: tuple[int, ...] = (PERSON, DOG, SKY)) -> Target:
    """Segment m + 2 has the m-th class."""
    listed = torch.zeros(3, dtype=torch.bool)
    listed[list(exhaustive)] = True
    labels = torch.tensor(classes, dtype=torch.int64)
    return Target(torch.tensor(np.array(ids), dtype=torch.int16), labels, torch.ones(len(classes)), listed)


def panoptic_quality(predicted: Segmentation, target: Target) -> list[list[float]]:
    metric = PartialPanopticQuality(IS_THING)
    metric.update(predicted, target)
    return metric.compute().tolist()


def iou(predicted: Segmentation, target: Target) -> list[float]:
    metric = PartialIoU(3)
    metric.update(predicted, target)
    return metric.compute().tolist()


def close(expected: object) -> object:
    return pytest.approx(expected, nan_ok=True)


# Sky above, two persons below.
TWO_PERSONS = [
    [2, 2, 2, 2],
    [2, 2, 2, 2],
    [3, 3, 4, 4],
    [3, 3, 4, 4],
]


def test_full_labels() -> None:
    predicted = prediction(
        [
            [1, 1, 1, 1],
            [1, 1, 1, 2],
            [2, 2, 2, 2],
            [2, 2, 0, 3],
        ],
        SKY,
        PERSON,
        DOG,
    )
    target = truth(TWO_PERSONS, SKY, PERSON, PERSON)
    person, dog, sky = panoptic_quality(predicted, target)
    # Sky: 7 of 8 px shared, IoU 7/8: one hit. The person on the left: 4 px shared, union 7 + 4 - 4, IoU 4/7: one hit;
    # the one on the right is missed, so SQ 4/7, RQ 1 / (1 + 1/2) = 2/3. No dog was to be found, but one was: 0, as in
    # the benchmark.
    assert sky == close([7 / 8, 7 / 8, 1])
    assert person == close([4 / 7 * 2 / 3, 4 / 7, 2 / 3])
    assert dog == [0, 0, 0]
    # Pixels of class person: 7 predicted, 8 labelled, 6 shared.
    assert iou(predicted, target) == close([6 / 9, NAN, 7 / 8])


def test_a_blank_prediction_misses_everything() -> None:
    # torchmetrics by itself would forgive what lies under blank prediction.
    blank, target = prediction(np.zeros((4, 4))), truth(TWO_PERSONS, SKY, PERSON, PERSON)
    person, dog, sky = panoptic_quality(blank, target)
    assert person == close([0, 0, 0]) and sky == close([0, 0, 0])
    assert dog == close(NOTHING)
    assert iou(blank, target) == close([0, NAN, 0])


def test_blank_prediction_inside_an_object_counts_against_it() -> None:
    predicted = prediction([[1, 1, 1, 1], [1, 1, 0, 0], [2, 2, 3, 3], [2, 2, 3, 3]], SKY, PERSON, PERSON)
    target = truth(TWO_PERSONS, SKY, PERSON, PERSON)
    assert panoptic_quality(predicted, target)[SKY] == close([6 / 8, 6 / 8, 1])
    assert iou(predicted, target)[SKY] == close(6 / 8)


def test_void_pixels_count_nowhere() -> None:
    target = truth([[2, 2, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]], PERSON)
    # The person reaches into the void: IoU 4/4. The dog lies in void for two thirds and is let off.
    predicted = prediction([[1, 1, 1, 2], [1, 1, 1, 2], [0, 0, 0, 2], [0, 0, 0, 0]], PERSON, DOG)
    person, dog, _ = panoptic_quality(predicted, target)
    assert person == close([1, 1, 1])
    assert dog == close(NOTHING)
    assert iou(predicted, target)[PERSON] == close(1)


def test_none_of_these_makes_a_prediction_of_a_judged_class_wrong() -> None:
    target = truth([[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], PERSON, exhaustive=(PERSON,))
    predicted = prediction([[1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0]], PERSON, PERSON)
    # One hit of IoU 1, one wrong: RQ 1 / (1 + 1/2).
    assert panoptic_quality(predicted, target)[PERSON] == close([2 / 3, 1, 2 / 3])
    assert iou(predicted, target)[PERSON] == close(4 / 8)


def test_a_class_that_the_image_does_not_label_counts_neither_for_nor_against() -> None:
    target = truth([[2, 2, 1, 1], [2, 2, 1, 1], [3, 3, 1, 1], [3, 3, 1, 1]], PERSON, DOG, exhaustive=(PERSON,))
    predicted = prediction([[1, 1, 2, 2], [1, 1, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]], PERSON, DOG)
    person, dog, _ = panoptic_quality(predicted, target)
    assert person == close([1, 1, 1])
    assert dog == close(NOTHING), "neither the labelled dog nor the invented one is judged"
    assert iou(predicted, target) == close([1, NAN, NAN])


def test_an_unjudged_prediction_still_hides_what_is_below_it() -> None:
    target = truth([[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], PERSON, exhaustive=(PERSON,))
    predicted = prediction([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], PERSON, DOG)
    # 2 of 4 px is not more than half: one missed and one wrong.
    assert panoptic_quality(predicted, target)[PERSON] == close([0, 0, 0])
    assert iou(predicted, target)[PERSON] == close(2 / 4)


def test_an_unjudged_label_is_known_to_be_no_judged_class() -> None:
    target = truth([[2, 2, 3, 3], [2, 2, 3, 3], [1, 1, 1, 1], [1, 1, 1, 1]], PERSON, DOG, exhaustive=(PERSON,))
    predicted = prediction([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]], PERSON, PERSON)
    assert panoptic_quality(predicted, target)[PERSON] == close([2 / 3, 1, 2 / 3])
    assert iou(predicted, target)[PERSON] == close(4 / 8)


def test_images_add_up() -> None:
    """A miss in one image and a hit in another: RQ 1 / 1.5; merging two metrics is like updating one."""
    hit = prediction([[1, 1], [1, 1]], DOG), truth([[2, 2], [2, 2]], DOG)
    miss = prediction([[0, 0], [0, 0]]), truth([[2, 2], [2, 2]], DOG)
    first, second, both = (PartialPanopticQuality(IS_THING) for _ in range(3))
    first.update(*hit)
    second.update(*miss)
    both.update(*hit)
    both.update(*miss)
    first.merge_state(second)
    assert first.compute()[DOG].tolist() == both.compute()[DOG].tolist() == close([2 / 3, 1, 2 / 3])
    assert both.num_segments.tolist() == [0, 2, 0]


def test_where_nothing_is_partial_it_is_torchmetrics_quality() -> None:
    """Random blocky maps; every pixel predicted, so that torchmetrics has nothing to forgive."""
    rng = np.random.default_rng(0)
    ours = PartialPanopticQuality(IS_THING)
    theirs = PanopticQuality(things={PERSON, DOG}, stuffs={SKY}, return_sq_and_rq=True, return_per_class=True)
    classes = np.array([PERSON, PERSON, DOG, DOG, SKY])
    for _ in range(20):
        labelled = np.kron(rng.integers(0, 6, (4, 4)), np.ones((4, 4), int))  # 0 is void
        noise = rng.random((16, 16)) < 0.25
        predicted = np.where(noise | (labelled == 0), rng.integers(1, 6, (16, 16)), labelled)
        ours.update(prediction(predicted, *classes), truth(np.where(labelled > 0, labelled + 1, 0), *classes))
        theirs.update(as_pairs(predicted, classes), as_pairs(labelled, classes))
    # torchmetrics: things first, then stuff; here that is the order of the classes.
    torch.testing.assert_close(ours.compute(), theirs.compute())
    assert 0.1 < float(ours.compute()[:, 0].mean()) < 0.95


def test_a_class_that_is_only_invented_counts_in_the_mean_as_in_torchmetrics() -> None:
    ours = PartialPanopticQuality(IS_THING)
    theirs = PanopticQuality(things={PERSON, DOG}, stuffs={SKY}, return_sq_and_rq=True)
    labelled, predicted = np.ones((4, 4), int), np.repeat([[1, 1, 1, 2]], 4, axis=0)
    ours.update(prediction(predicted, SKY, DOG), truth(labelled + 1, SKY))
    classes = np.array([SKY, DOG])
    theirs.update(as_pairs(predicted, classes), as_pairs(labelled, classes))
    assert ours.compute().tolist() == [close(NOTHING), [0, 0, 0], close([0.75, 0.75, 1])]
    torch.testing.assert_close(ours.compute().nanmean(0), theirs.compute())
    assert ours.num_segments.tolist() == [0, 0, 1]


def as_pairs(ids: np.ndarray, classes: np.ndarray) -> torch.Tensor:
    """(class, instance) per pixel, [1, H, W, 2]; -1 for void."""
    return torch.from_numpy(np.stack([np.append(-1, classes)[ids], ids], axis=-1))[None]


def test_stuff_before_things_keeps_its_place() -> None:
    metric = PartialPanopticQuality([False, True, False])
    predicted = Segmentation(np.ones((2, 2), np.int32), (Segment(1, 0, "sky", False, 1.0, 4, (0, 0, 2, 2), (0,)),))
    metric.update(predicted, truth([[2, 2], [2, 2]], 0))
    sky, *others = metric.compute().tolist()
    assert sky == [1, 1, 1]
    assert others == [close(NOTHING), close(NOTHING)]


def test_an_id_that_lost_its_segment_is_not_recognised() -> None:
    whole = prediction([[1, 1, 2, 2]], PERSON, DOG)
    filtered, target = replace(whole, segments=whole.segments[:1]), truth([[2, 2, 3, 3]], PERSON, DOG)
    assert iou(filtered, target) == close([1, 0, torch.nan])
    assert panoptic_quality(filtered, target)[DOG] == close([0, 0, 0])


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="compare them at original size"):
        iou(prediction([[1]], SKY), truth([[2, 2]], SKY))


def test_crowds_excuse_their_own_class_and_stay_in_every_union() -> None:
    crowd = replace(truth([[2, 2, 3, 3], [2, 2, 3, 3], [1] * 4, [1] * 4], PERSON), crowds=torch.tensor([PERSON]))
    # One person over the person and the crowd: IoU 4/8 is no match, and half of it in the crowd no excuse.
    both = prediction([[1] * 4, [1] * 4, [0] * 4, [0] * 4], PERSON)
    assert panoptic_quality(both, crowd)[PERSON] == close([0, 0, 0])
    # Three quarters of a person in the crowd are an excuse, but not for a dog.
    mostly = [[0, 1, 1, 1], [0, 1, 1, 1], [0] * 4, [0] * 4]
    found = PartialPanopticQuality(IS_THING)
    found.update(prediction([[0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0] * 4], PERSON), crowd)
    assert (found.false_positives.tolist(), found.false_negatives.tolist()) == ([0, 0, 0], [1, 0, 0])
    found.update(prediction(mostly, DOG), crowd)
    assert found.false_positives[DOG] == 1
    assert iou(prediction([[1] * 4, [1] * 4, [0] * 4, [0] * 4], PERSON), crowd)[PERSON] == close(1), "persons all"


@pytest.mark.parametrize("seed", range(3))
def test_with_void_and_crowds_it_is_the_quality_of_cocos_evaluator(seed: int, tmp_path: Path) -> None:
    """Random scenes through files, as a user would have them: hotcoco reads what our data set reads."""
    panoptic_of_coco = pytest.importorskip("hotcoco", reason="hotcoco is not installed.").panoptic
    rng = np.random.default_rng(seed)
    classes = ((1, "person", True), (2, "dog", True), (3, "sky", False), (7, "sea", False))
    categories = [{"id": i, "name": name, "isthing": int(thing)} for i, name, thing in classes]
    files: dict[str, dict[str, list]] = {
        kind: {"images": [], "annotations": [], "categories": categories} for kind in ("truth", "found")
    }
    (tmp_path / "photos").mkdir()
    for kind in files:
        (tmp_path / kind).mkdir()
    predictions = []
    for image in range(12):
        labelled = np.kron(rng.integers(0, 9, (5, 6)), np.ones((8, 8), int))  # 0 is void
        wrong = np.kron(rng.random((10, 12)) < 0.3, np.ones((4, 4), bool))
        found = np.where(wrong, np.kron(rng.integers(0, 9, (10, 12)), np.ones((4, 4), int)), labelled)
        class_of = rng.integers(0, 4, 9)
        crowd = rng.random(9) < 0.3
        guess = np.where(rng.random(9) < 0.8, class_of, rng.integers(0, 4, 9))
        for kind, ids in (("truth", labelled), ("found", found)):
            listed = [
                {
                    "id": int(i),
                    "category_id": classes[(class_of if kind == "truth" else guess)[i]][0],
                    "iscrowd": int(kind == "truth" and crowd[i]),
                    "area": int((ids == i).sum()),
                    "bbox": [0, 0, 1, 1],
                }
                for i in np.unique(ids[ids > 0])
            ]
            rng.shuffle(listed)
            name = {"file_name": f"{image}.png", "image_id": image}
            files[kind]["annotations"].append({**name, "segments_info": listed})
            files[kind]["images"].append({"id": image, "file_name": f"{image}.png", "height": 40, "width": 48})
            rgb = np.stack((ids, ids * 0, ids * 0), axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / kind / f"{image}.png")
        Image.new("RGB", (48, 40)).save(tmp_path / "photos" / f"{image}.png")
        segments = tuple(
            Segment(int(i), int(guess[i]), "", classes[guess[i]][2], 1.0, 0, (0, 0, 0, 0), (0,))
            for i in np.unique(found[found > 0])
        )
        predictions.append(Segmentation(found.astype(np.int32), segments))
    for kind, content in files.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(content), encoding="utf-8")

    truth_json, found_json = str(tmp_path / "truth.json"), str(tmp_path / "found.json")
    theirs = panoptic_of_coco.PanopticEval(
        truth_json, found_json, gt_folder=str(tmp_path / "truth"), pred_folder=str(tmp_path / "found")
    )
    theirs.evaluate()
    per_class = theirs.results()["per_class"]
    config = replace(get_config("default"), num_classes=4, categories=classes)
    data = PanopticDataset(truth_json, tmp_path / "photos", tmp_path / "truth", config)
    ours = PartialPanopticQuality([thing for *_, thing in classes])
    for index, predicted in enumerate(predictions):
        ours.update(predicted, data.original(index)[1])
    scores = ours.compute()
    for (category_id, *_), row in zip(classes, scores.tolist(), strict=True):
        expected = [per_class[category_id][key] for key in ("pq", "sq", "rq")]
        assert row == pytest.approx([math.nan if value < 0 else value for value in expected], abs=1e-9, nan_ok=True)
    assert 0.1 < float(scores[:, 0].nanmean()) < 0.9

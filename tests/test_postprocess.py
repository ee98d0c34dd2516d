"""Readings of hand-made outputs that can be worked out on paper, and of random ones against whole-image code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.plain_panoptic import enlarge_masks, plain_panoptic, resize_masks
from pem.categories import categories_for
from pem.config import PEMConfig, get_config
from pem.outputs import Batch, PEMOutput
from pem.postprocess import instances, panoptic, semantic

CITYSCAPES = get_config("cityscapes-panoptic-r50")
ROAD, SKY, PERSON, CAR, NO_OBJECT = 0, 10, 11, 13, 19
ON, OFF = 8.0, -8.0


def output_of(masks: Tensor, logits: Tensor) -> PEMOutput:
    """Masks [Q, h, w] and class logits [Q, K+1] as the output for one image."""
    return PEMOutput(logits[None], torch.eye(len(masks), dtype=masks.dtype)[None], masks[None])


def batch_of(original: tuple[int, int], content: tuple[int, int]) -> Batch:
    return Batch(torch.zeros(()), (original,), (content,))


# ------------------------------------------------------------------------------------------------------------- by hand


def hand_made(*queries: tuple[int, float, str]) -> tuple[PEMOutput, Batch]:
    """An output for a photo of 4 x 4 pixels; each query is its class, its class probability and its mask.

    A mask is four rows of # (probability near 1), + (a little above one half), - (a little below) and . (near 0).
    The input is 32 x 32 and has 8 x 8 mask cells. A pixel is sampled midway between two rows and columns of cells
    that have its own value, so bilinear resizing changes nothing.
    """
    values = {"#": ON, "+": 0.5, "-": -0.5, ".": OFF}
    masks = torch.tensor([[[values[cell] for cell in row] for row in mask.split()] for _, _, mask in queries])
    masks = masks.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    probs = torch.full((len(queries), 20), 1e-9)
    for row, (label, prob, _) in zip(probs, queries):
        row[NO_OBJECT] = 1 - prob
        row[label] = prob
    return output_of(masks, probs.log()), batch_of((4, 4), (32, 32))


LEFT, RIGHT, NOTHING = "##.. ##.. ##.. ##..", "..## ..## ..## ..##", ".... .... .... ...."


def test_things_side_by_side_and_void_elsewhere() -> None:
    output, batch = hand_made((PERSON, 0.9, "##.. ##.. .... ...."), (CAR, 0.95, "...# ...# .... ...."))
    (result,) = panoptic(output, batch, CITYSCAPES)
    assert result.ids.dtype == np.int32
    assert result.ids.tolist() == [[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    person, car = result.segments
    assert (person.id, person.label, person.category_id, person.is_thing) == (1, "person", PERSON, True)
    assert (person.area_px, person.bbox, person.queries) == (4, (0, 0, 2, 2), (0,))
    assert (car.area_px, car.bbox, car.queries) == (2, (3, 0, 1, 2), (1,))
    assert person.score == pytest.approx(0.9) and car.score == pytest.approx(0.95)


def test_stuff_of_one_class_is_one_segment_and_things_stay_apart() -> None:
    output, batch = hand_made(
        (SKY, 0.9, "##.. .... .... ...."),
        (PERSON, 0.9, "..## .... .... ...."),
        (SKY, 0.96, ".... #### .... ...."),
        (PERSON, 0.9, ".... .... ##.. ...."),
    )
    (result,) = panoptic(output, batch, CITYSCAPES)
    assert result.ids.tolist() == [[1, 1, 2, 2], [1, 1, 1, 1], [3, 3, 0, 0], [0, 0, 0, 0]]
    sky, first, second = result.segments
    assert (sky.queries, sky.area_px, sky.bbox) == ((0, 2), 6, (0, 0, 4, 2))
    assert sky.score == pytest.approx((2 * 0.9 + 4 * 0.96) / 6)
    assert first.color != second.color


def test_the_largest_thing_has_the_colour_of_its_class() -> None:
    output, batch = hand_made((PERSON, 0.9, "#... .... .... ...."), (PERSON, 0.9, ".... #### .... ...."))
    small, large = panoptic(output, batch, CITYSCAPES)[0].segments
    assert large.color == categories_for(CITYSCAPES)[PERSON].color != small.color


def test_a_query_that_lost_too_much_of_its_mask_is_dropped_and_leaves_void() -> None:
    output, batch = hand_made((PERSON, 0.9, "#### #### .... ...."), (CAR, 0.95, "##.. .... .... ...."))
    # The person owns 6 pixels, all in its mask of 8; the empty rows are the car's, whose score is higher.
    (strict,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0.76)
    assert strict.ids.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    (exact,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0.75)
    assert exact.ids.tolist() == [[2, 2, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert [segment.label for segment in exact.segments] == ["person", "car"]


def test_the_object_threshold_itself_is_not_enough() -> None:
    output, batch = hand_made((PERSON, 0.8, LEFT))
    score = output.pred_logits.softmax(-1).max().item()
    assert panoptic(output, batch, CITYSCAPES, object_threshold=score)[0].segments == ()
    assert len(panoptic(output, batch, CITYSCAPES, object_threshold=score - 1e-6)[0].segments) == 1


def test_thresholds_come_from_the_config_unless_given() -> None:
    output, batch = hand_made((PERSON, 0.7, LEFT))
    assert not panoptic(output, batch, CITYSCAPES)[0].segments
    assert panoptic(output, batch, replace(CITYSCAPES, object_threshold=0.6))[0].segments
    assert panoptic(output, batch, CITYSCAPES, object_threshold=0.6)[0].segments


def test_queries_without_pixels_are_no_segments() -> None:
    output, batch = hand_made(
        (PERSON, 0.9, LEFT),
        (CAR, 0.85, LEFT),  # owns no pixel: the person is surer everywhere
        (SKY, 0.99, "..-- ..-- ..-- ..--"),  # owns the right half, but is nowhere above one half
    )
    (result,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0.0)
    assert result.ids.tolist() == [[1, 1, 0, 0]] * 4
    assert [segment.queries for segment in result.segments] == [(0,)]


def test_owned_pixels_below_one_half_are_void_but_count_for_the_overlap() -> None:
    output, batch = hand_made((PERSON, 0.9, "#-.. ##.. .... ...."), (CAR, 0.95, "...# .... .... ...."))
    (result,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=1.0)
    assert result.ids.tolist() == [[1, 0, 0, 2], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_an_output_without_objects_is_all_void() -> None:
    output, batch = hand_made((PERSON, 0.1, LEFT), (CAR, 0.1, RIGHT))
    (result,) = panoptic(output, batch, CITYSCAPES)
    assert result.segments == () and not result.ids.any()
    (result,) = instances(output, batch, CITYSCAPES)
    assert result.segments == () and result.masks is not None and result.masks.shape == (0, 4, 4)


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_semantic_leaves_nothing_out_and_adds_up_queries(task: str) -> None:
    output, batch = hand_made(
        (ROAD, 0.6, "#### #### #### ####"),
        (CAR, 0.4, LEFT),
        (CAR, 0.3, LEFT),
        (PERSON, 0.9, NOTHING),
    )
    (result,) = semantic(output, batch, replace(CITYSCAPES, task=task))  # type: ignore[arg-type]
    assert result.ids.tolist() == [[2, 2, 1, 1]] * 4  # 0.4 + 0.3 > 0.6; ids go by class
    road, car = result.segments
    assert (road.label, road.area_px, road.bbox, road.queries) == ("road", 8, (2, 0, 2, 4), (0,))
    assert (car.label, car.area_px, car.bbox, car.queries) == ("car", 8, (0, 0, 2, 4), (1, 2))
    assert car.score == pytest.approx(0.7 / 1.3, abs=0.01)
    assert road.score > 0.98


THINGS_ONLY = replace(CITYSCAPES, num_classes=2, categories=((1, "crack", True), (2, "nut", True)))


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
@pytest.mark.parametrize("original", [(4, 4), (9, 7)])
def test_semantic_of_things_only_leaves_out_what_no_query_paints_that_is_an_object(
    task: str, original: tuple[int, int]
) -> None:
    config = replace(THINGS_ONLY, task=task)
    masks = torch.full((2, 8, 8), OFF)
    masks[0, :, :4], masks[1, :4, 4:] = ON, ON
    probs = torch.tensor([[0.9, 0.02, 0.08], [0.05, 0.4, 0.55]])  # the second is most likely no object
    output, batch = output_of(masks, probs.log()), batch_of(original, (32, 32))
    (result,) = semantic(output, batch, config)
    (crack,) = result.segments
    assert (crack.label, crack.queries, crack.area_px) == ("crack", (0,), int((result.ids == 1).sum()))
    assert crack.score == pytest.approx(0.9, abs=0.01), "the evidence for no object counts, too"
    assert (result.ids[:, 0] == 1).all() and (result.ids[:, -1] == 0).all()
    # A model that knows stuff has a class for the background, and leaves nothing out.
    surface = replace(config, categories=((1, "crack", True), (2, "wall", False)))
    assert (semantic(output, batch, surface)[0].ids > 0).all()
    # With a single class of stuff, what no query paints is left out as well.
    wall = replace(config, num_classes=1, categories=((2, "wall", False),))
    only = output_of(masks, torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log())
    assert np.array_equal(semantic(only, batch, wall)[0].ids > 0, result.ids == 1)
    # Where nobody said what the classes are, it leaves nothing out either.
    assert (semantic(output, batch, replace(config, categories="everyday"))[0].ids > 0).all()


def test_semantic_of_one_class_and_a_photo_without_objects_is_empty() -> None:
    config = replace(THINGS_ONLY, num_classes=1, categories=((1, "crack", True),))
    output = output_of(torch.full((30, 8, 8), ON), torch.tensor([[0.1, 0.9]]).log().repeat(30, 1))
    (result,) = semantic(output, batch_of((5, 5), (32, 32)), config)
    assert not result.ids.any() and result.segments == () and len(result.outcomes) == 30


def test_instances_overlap_and_the_map_shows_the_best() -> None:
    output, batch = hand_made(
        (PERSON, 0.8, LEFT),
        (CAR, 0.9, "#### .... .... ...."),
        (SKY, 0.99, RIGHT),  # stuff is no instance
        (CAR, 0.95, "..++ ..++ .... ...."),  # 0.95 * sigmoid(0.5) = 0.59 is the worst
        (CAR, 0.9, NOTHING),
    )
    (result,) = instances(output, batch, CITYSCAPES)
    assert [segment.queries for segment in result.segments] == [(1,), (0,), (3,)]
    assert result.ids.tolist() == [[1, 1, 1, 1], [2, 2, 3, 3], [2, 2, 0, 0], [2, 2, 0, 0]]
    assert [segment.area_px for segment in result.segments] == [4, 8, 4]
    assert [segment.bbox for segment in result.segments] == [(0, 0, 4, 1), (0, 0, 2, 4), (2, 0, 2, 2)]
    assert result.masks is not None and result.masks.dtype == bool
    assert result.masks.sum((1, 2)).tolist() == [4, 8, 4] and result.masks[1, :, 0].all()
    assert result.segments[2].score == pytest.approx(0.95 / (1 + np.exp(-0.5)), abs=1e-5)


def test_instances_keep_the_best_pairs_only() -> None:
    output, batch = hand_made((PERSON, 0.8, LEFT), (CAR, 0.9, RIGHT))
    assert [s.label for s in instances(output, batch, CITYSCAPES, top_k=1)[0].segments] == ["car"]
    assert [s.label for s in instances(output, batch, CITYSCAPES, score_threshold=0.85)[0].segments] == ["car"]
    assert len(instances(output, batch, CITYSCAPES, top_k=10**6)[0].segments) == 2


def test_panoptic_says_what_became_of_every_query() -> None:
    output, batch = hand_made(
        (SKY, 0.9, "##.. .... .... ...."),
        (PERSON, 0.2, LEFT),
        (PERSON, 0.7, LEFT),
        (SKY, 0.95, "..## .... .... ...."),
        (CAR, 0.99, "---- .... .... ...."),
        (CAR, 0.9, ".... #### .... ...."),
        (PERSON, 0.85, ".... .##. .... ...."),  # the car is surer on all of it
        (PERSON, 0.82, ".... ###. #... ...."),  # and on three quarters of this
    )
    (result,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0.3)
    assert [outcome.query for outcome in result.outcomes] == list(range(8))
    assert [(outcome.fate, outcome.segment_ids) for outcome in result.outcomes] == [
        ("kept", (1,)),
        ("no object", ()),
        ("low score", ()),
        ("merged", (1,)),
        ("empty mask", ()),
        ("kept", (2,)),
        ("lost pixels", ()),
        ("small overlap", ()),
    ]
    assert [outcome.mask_share for outcome in result.outcomes] == [1.0, None, None, 1.0, None, 1.0, 0.0, 0.25]
    dropped = result.outcomes[1]
    assert (dropped.category_id, dropped.label) == (PERSON, "person")  # no-object left aside
    assert dropped.score == pytest.approx(0.2) and dropped.no_object_score == pytest.approx(0.8)
    # The share decides: at the threshold itself a query is kept.
    (exact,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0.25)
    assert exact.outcomes[7].fate == "kept" and exact.segments[2].queries == (7,)


def test_owned_pixels_outside_the_mask_make_no_share_above_one() -> None:
    output, batch = hand_made((PERSON, 0.9, "#-.. ##.. .... ...."))
    assert panoptic(output, batch, CITYSCAPES)[0].outcomes[0].mask_share == 1.0


def test_semantic_says_which_segments_every_query_helped_to_draw() -> None:
    output, batch = hand_made((ROAD, 0.6, RIGHT), (CAR, 0.4, LEFT), (CAR, 0.3, LEFT), (PERSON, 0.9, NOTHING))
    (result,) = semantic(output, batch, CITYSCAPES)
    outcomes = [(outcome.fate, outcome.segment_ids, outcome.mask_share) for outcome in result.outcomes]
    assert outcomes == [("kept", (1,), None), ("kept", (2,), None), ("kept", (2,), None), ("little evidence", (), None)]
    assert [outcome.label for outcome in result.outcomes] == ["road", "car", "car", "person"]
    assert result.outcomes[3].score == pytest.approx(0.9)


def test_instances_say_at_which_step_every_query_fell() -> None:
    output, batch = hand_made(
        (PERSON, 0.8, LEFT),
        (SKY, 0.99, RIGHT),
        (CAR, 0.4, LEFT),  # below the threshold as it is
        (CAR, 0.7, "..++ ..++ .... ...."),  # below it times the mean mask probability
        (CAR, 0.9, NOTHING),
    )
    (result,) = instances(output, batch, CITYSCAPES)
    fates = [outcome.fate for outcome in result.outcomes]
    assert fates == ["kept", "not a thing", "low score", "low score", "empty mask"]
    assert [outcome.segment_ids for outcome in result.outcomes] == [(1,), (), (), (), ()]
    half = 1 / (1 + np.exp(-0.5))
    assert [outcome.score for outcome in result.outcomes] == pytest.approx([0.8, 0.99, 0.4, 0.7 * half, 0.0], abs=1e-3)
    # A query that is not among the best pairs scored too low for them.
    assert instances(output, batch, CITYSCAPES, top_k=1)[0].outcomes[0].fate == "low score"


def test_a_query_may_be_kept_as_instances_of_several_classes() -> None:
    output, batch = hand_made((SKY, 0.4, LEFT))
    for label, prob in ((CAR, 0.3), (PERSON, 0.2)):
        output.pred_logits[0, 0, label] = np.log(prob)
    (result,) = instances(output, batch, CITYSCAPES, score_threshold=0.1)
    assert [segment.label for segment in result.segments] == ["car", "person"]
    (outcome,) = result.outcomes
    assert (outcome.fate, outcome.segment_ids, outcome.label) == ("kept", (1, 2), "sky")


@pytest.mark.parametrize("read", [panoptic, semantic, instances])
def test_an_output_of_another_model_or_batch_is_refused(read) -> None:
    output, batch = hand_made((PERSON, 0.9, LEFT))
    with pytest.raises(ValueError, match="output has 19 classes and the config .* 150; pass the config of the model"):
        read(output, batch, get_config("ade20k-panoptic-r50"))
    two = replace(batch, original_sizes=2 * batch.original_sizes, content_sizes=2 * batch.content_sizes)
    with pytest.raises(ValueError, match="output is of 1 images and the batch of 2; pass the batch"):
        read(output, two, CITYSCAPES)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_outside_0_to_1_are_refused(value: float) -> None:
    output, batch = hand_made((PERSON, 0.8, LEFT))
    with pytest.raises(ValueError, match="object_threshold is .* between 0 and 1"):
        panoptic(output, batch, CITYSCAPES, object_threshold=value)
    with pytest.raises(ValueError, match="overlap_threshold is"):
        panoptic(output, batch, CITYSCAPES, overlap_threshold=value)
    with pytest.raises(ValueError, match="score_threshold is"):
        instances(output, batch, CITYSCAPES, score_threshold=value)


# ------------------------------------------------------------------------------------------- against whole-image code


def random_output(queries: int, cells: tuple[int, int], num_classes: int, seed: int = 0) -> PEMOutput:
    """Blobby masks; a third of the queries are sure of a class, a third are not, a third see no object."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, queries, 5, 7, generator=generator, dtype=torch.float64)
    masks = 6 * F.interpolate(coarse, size=cells, mode="bicubic")[0]
    logits = torch.randn(queries, num_classes + 1, generator=generator, dtype=torch.float64)
    kind = torch.arange(queries) % 3
    logits[torch.arange(queries), torch.arange(queries) % min(num_classes, 4)] += torch.tensor([9.0, 3.0, 0.0])[kind]
    logits[:, -1] += torch.tensor([0.0, 2.0, 9.0])[kind]
    return output_of(masks, logits)


def of_stuff_and_things(output: PEMOutput) -> PEMOutput:
    """Half of the sure queries, which have the first four classes of Cityscapes, are of things instead."""
    classes = [0, 11, 2, 13, *range(4, 11), 1, 12, 3, *range(14, 20)]
    return replace(output, pred_logits=output.pred_logits[..., classes])


def reference_semantic(
    output: PEMOutput, content: tuple[int, int], original: tuple[int, int], config: PEMConfig
) -> tuple[Tensor, Tensor]:
    """The label map and, per class, the evidence in every pixel."""
    probs = output.pred_logits[0].softmax(-1)[:, :-1]
    masks = enlarge_masks(output.pred_masks[0])
    if config.task == "semantic":
        evidence = resize_masks(torch.einsum("qk,qhw->khw", probs, masks.sigmoid()), content, original)
    else:
        evidence = torch.einsum("qk,qhw->khw", probs, resize_masks(masks, content, original).sigmoid())
    return evidence.argmax(0), evidence


GEOMETRIES = [  # mask cells, content, original
    ((24, 40), (96, 160), (96, 160)),  # nothing is resized
    ((24, 40), (90, 131), (90, 131)),  # padding is cut off
    ((24, 40), (96, 150), (301, 470)),  # several tiles
    ((40, 24), (150, 96), (47, 30)),  # the photo was smaller than the input
    ((8, 48), (1, 190), (10, 1900)),  # a thin strip
    ((12, 20), (48, 80), (768, 1280)),  # a tile is smaller than what most masks cover
]


@pytest.mark.parametrize(("cells", "content", "original"), GEOMETRIES)
def test_panoptic_equals_the_whole_image_procedure(
    cells: tuple[int, int], content: tuple[int, int], original: tuple[int, int]
) -> None:
    config = replace(CITYSCAPES, object_threshold=0.5, overlap_threshold=0.3)
    output = of_stuff_and_things(random_output(24, cells, 19))
    batch = batch_of(original, content)
    expected_ids, expected_segments = plain_panoptic(output, batch, config)
    (result,) = panoptic(output, batch, config)
    assert len(expected_segments) >= 2
    assert np.array_equal(result.ids, expected_ids.numpy())
    assert [(segment.category_id, segment.area_px) for segment in result.segments] == expected_segments
    for segment in result.segments:
        rows, cols = np.nonzero(result.ids == segment.id)
        left, top, width, height = segment.bbox
        assert (left, top) == (cols.min(), rows.min())
        assert (width, height) == (cols.max() - cols.min() + 1, rows.max() - rows.min() + 1)


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
@pytest.mark.parametrize(("cells", "content", "original"), GEOMETRIES)
def test_semantic_equals_the_whole_image_procedure(
    cells: tuple[int, int], content: tuple[int, int], original: tuple[int, int], task: str
) -> None:
    config = replace(CITYSCAPES, task=task)  # type: ignore[arg-type]
    output = random_output(24, cells, 19)
    labels, evidence = reference_semantic(output, content, original, config)
    (result,) = semantic(output, batch_of(original, content), config)
    label_of_id = np.array([-1, *(segment.category_id for segment in result.segments)])
    assert np.array_equal(label_of_id[result.ids], labels.numpy())
    cell_px = np.prod(original) / np.prod(-(-np.array(content) // 4))
    for segment in result.segments:
        assert len(segment.queries) == len(set(segment.queries)) >= 1
        if segment.area_px >= 20 * cell_px:  # scores are measured in one pixel per mask cell
            inside = evidence[:, labels == segment.category_id].sum(1)
            assert segment.score == pytest.approx((inside[segment.category_id] / inside.sum()).item(), abs=0.02)


@pytest.mark.parametrize(("cells", "content", "original"), GEOMETRIES)
def test_instances_equal_the_whole_image_procedure(
    cells: tuple[int, int], content: tuple[int, int], original: tuple[int, int]
) -> None:
    config = replace(CITYSCAPES, num_classes=5)  # no named set: all are things
    output = random_output(12, cells, 5)
    probs = output.pred_logits[0].softmax(-1)[:, :-1]
    logits = resize_masks(enlarge_masks(output.pred_masks[0]), content, original)
    expected = []
    for flat in probs.flatten().argsort(descending=True)[:20].tolist():
        query, label = divmod(flat, 5)
        mask = logits[query] > 0
        if mask.any():
            score = (probs[query, label] * logits[query].sigmoid()[mask].mean()).item()
            expected.append((score, query, label, mask.numpy()))
    expected.sort(key=lambda item: -item[0])

    (result,) = instances(output, batch_of(original, content), config, top_k=20, score_threshold=0.0)
    assert result.masks is not None and len(result.segments) == len(expected)
    for segment, found_mask, (score, query, label, mask) in zip(result.segments, result.masks, expected):
        assert (segment.queries, segment.category_id) == ((query,), label)
        assert segment.score == pytest.approx(score)
        assert np.array_equal(found_mask, mask) and segment.area_px == mask.sum()


# ------------------------------------------------------------------------------------------------- numbers and batches


def test_half_precision_and_its_infinities_are_read() -> None:
    output, batch = hand_made((PERSON, 0.9, LEFT), (CAR, 0.95, RIGHT))
    expected = panoptic(output, batch, CITYSCAPES)[0].ids
    masks, logits = output.pred_masks[0].half(), output.pred_logits[0].half()
    masks[masks > 0] = float("inf")
    logits[1, CAR] = float("inf")
    half = output_of(masks, logits)
    half.__dict__["_kept_masks"] = masks[None]  # 0 * inf in the product that makes the masks is not what is tested
    assert np.array_equal(panoptic(half, batch, CITYSCAPES)[0].ids, expected)
    assert np.array_equal(semantic(half, batch, CITYSCAPES)[0].ids, expected)


def test_each_image_of_a_batch_is_read_by_its_own_sizes() -> None:
    small, large = random_output(8, (16, 16), 19, seed=1), random_output(8, (16, 16), 19, seed=2)
    config = replace(CITYSCAPES, object_threshold=0.3, overlap_threshold=0.3)
    both = PEMOutput(
        torch.cat((small.pred_logits, large.pred_logits)),
        torch.cat((small.mask_embed, large.mask_embed)),
        torch.cat((small.mask_features, large.mask_features)),
    )
    sizes = [((40, 50), (51, 64)), ((70, 30), (64, 27))]
    batch = Batch(torch.zeros(()), tuple(o for o, _ in sizes), tuple(c for _, c in sizes))
    for reading in (panoptic, semantic, instances):
        together = reading(both, batch, config)
        for result, output, (original, content) in zip(together, (small, large), sizes):
            (alone,) = reading(output, batch_of(original, content), config)
            assert np.array_equal(result.ids, alone.ids) and result.segments == alone.segments
            assert result.outcomes == alone.outcomes

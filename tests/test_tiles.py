"""Tiles: put together they are the whole, most need no look, and no more are read at once than said."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_postprocess import (
    CAR,
    CITYSCAPES,
    GEOMETRIES,
    PERSON,
    SKY,
    batch_of,
    output_of,
    random_output,
    reference_semantic,
)

from analysis.plain_panoptic import enlarge_masks, resize_masks
from pem import pixels, tiles
from pem.arrays import as_arrays
from pem.outputs import Segmentation
from pem.postprocess import Reading, instances, panoptic, semantic


def test_tiles_inside_one_mask_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three masks side by side, of which the right one is nowhere sure: all it owns is faint."""
    strength = torch.full((3, 40, 96), -8.0, dtype=torch.float64)
    strength[0, :, :30], strength[1, :, 30:65], strength[2, :, 65:] = 8, 8, -1
    logits = torch.full((3, 20), -9.0, dtype=torch.float64)
    logits[[0, 1, 2], [PERSON, CAR, SKY]] = 9
    output, batch = output_of(strength, logits), batch_of((640, 1536), (160, 384))
    looked_at = []

    def watched(window: np.ndarray, *weights: np.ndarray) -> np.ndarray:
        looked_at.append(len(window))
        return resize(window, *weights)

    resize = tiles._resize
    monkeypatch.setattr(tiles, "_resize", watched)

    def read(reading: Reading[...], **options: float) -> tuple[Segmentation, int]:
        looked_at.clear()
        (result,) = reading(output, batch, CITYSCAPES, **options)
        return result, sum(looked_at)

    quick, few = read(panoptic, overlap_threshold=0)
    quick_classes, few_classes = read(semantic)
    quick_instances, few_instances = read(instances)
    # Of 20 x 48 tiles of 32 px those in which masks meet: at pixel 480, between two tiles, and at 1040, inside one.
    assert few == few_classes == 20 * 3
    assert few_instances == 20 * 33  # up to pixel 1040: the right one is no thing, and the others do not reach further

    # As if no tile could be decided by its bounds.
    def bounds(masks: tiles.Masks) -> tuple[np.ndarray, np.ndarray]:
        shape = len(masks.logits), *masks.area_px.shape
        return np.full(shape, -99.0), np.full(shape, 99.0)

    monkeypatch.setattr(tiles.Masks, "bounds", bounds)
    slow, all_of_them = read(panoptic, overlap_threshold=0)
    slow_classes, all_classes = read(semantic)
    slow_instances, all_instances = read(instances)
    assert all_of_them == all_classes == all_instances == 20 * 48
    for one, other in ((quick, slow), (quick_classes, slow_classes)):
        assert np.array_equal(one.ids, other.ids) and one.segments == other.segments
    assert [outcome.mask_share for outcome in quick.outcomes] == [outcome.mask_share for outcome in slow.outcomes]
    assert quick.outcomes[2].fate == "empty mask"
    assert quick_instances.masks is not None and slow_instances.masks is not None
    assert np.array_equal(quick_instances.masks, slow_instances.masks)
    scores = [[segment.score for segment in result.segments] for result in (quick_instances, slow_instances)]
    assert scores[0] == pytest.approx(scores[1])


def test_only_classes_that_can_win_in_a_tile_are_compared() -> None:
    least, most = [-1.0, -1.0, -9.0], [2.0, 2.0, -8.0]
    masks = tiles.Masks(np.stack((least, most), 1)[:, None], (4, 8), (4, 8))  # 3 queries, 1 x 2 cells: one tile
    probs = np.array(
        [
            [0.5, 0.5, 0.4, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.2, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0],
        ]
    )
    # Of equals none is dropped. Class 2 is behind class 0 on the same mask, and class 4 has none. Class 3 may win where
    # its mask is strongest and that of the others weakest: 0.2 * sigmoid(2) = 0.18 against 0.5 * sigmoid(-1) = 0.13.
    assert pixels._may_win(masks, probs).flatten().tolist() == [True, True, False, True, False]


def test_of_many_classes_few_are_compared_and_none_is_missed() -> None:
    config = replace(CITYSCAPES, num_classes=120)
    output, batch = random_output(60, (40, 60), 120), batch_of((320, 480), (160, 240))
    labels, _ = reference_semantic(output, (160, 240), (320, 480), config)
    (result,) = semantic(output, batch, config)
    label_of_id = np.array([-1, *(segment.category_id for segment in result.segments)])
    assert np.array_equal(label_of_id[result.ids], labels.numpy())

    masks, probs = tiles.Masks.of(as_arrays(output), batch, 0), output.pred_logits[0].softmax(-1)[:, :-1].numpy()
    contends = pixels._may_win(masks, probs)
    assert contends.shape == (120, 10, 15) and contends.mean() < 0.5


@pytest.mark.parametrize(("cells", "content", "original"), GEOMETRIES)
def test_tiles_put_together_are_the_resized_logits(
    cells: tuple[int, int], content: tuple[int, int], original: tuple[int, int]
) -> None:
    output = random_output(3, cells, 5)
    output = output_of(output.pred_masks[0].float(), output.pred_logits[0].float())
    masks = tiles.Masks.of(as_arrays(output), batch_of(original, content), 0)
    everything = np.ones((3, *masks.area_px.shape), bool)
    canvas = tiles.Canvas(np.full(everything.shape, np.nan, np.float32), masks)
    for some in masks.portions(everything[0], everything):
        canvas.put(some, masks.resized(some, some.contenders), some.contenders)
    expected = resize_masks(enlarge_masks(output.pred_masks[0]), content, original)
    torch.testing.assert_close(torch.from_numpy(canvas.pixels), expected, rtol=0, atol=1e-5)


def test_infinite_logits_stay_numbers_when_they_are_resized() -> None:
    masks, batch = random_output(3, (24, 40), 5).pred_masks[0].float(), batch_of((301, 470), (96, 150))
    output = output_of(torch.where(masks > 0, torch.inf, -torch.inf), torch.zeros(3, 6))
    output.__dict__["_kept_masks"] = torch.where(masks > 0, torch.inf, -torch.inf)[None]  # not 0 * infinity
    infinite = tiles.Masks.of(as_arrays(output), batch, 0)
    everything = np.ones((3, *infinite.area_px.shape), bool)
    for some in infinite.portions(everything[0], everything):
        assert np.isfinite(infinite.resized(some, some.contenders)).all()


@pytest.mark.parametrize("original", [(1500, 2500), (96, 160), (20, 30)])
@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_no_array_of_queries_or_classes_exceeds_what_is_worked_off_at_once(
    original: tuple[int, int], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(*arguments: np.ndarray) -> np.ndarray:
        result = resize(*arguments)
        sizes.append(result.size)
        return result

    resize = tiles._resize
    monkeypatch.setattr(tiles, "_resize", watched)
    monkeypatch.setattr(tiles, "VALUES_AT_ONCE", 2**16)
    config = replace(CITYSCAPES, task=task, object_threshold=0.0)  # type: ignore[arg-type]
    output, batch = random_output(6, (96, 160), 19), batch_of(original, (384, 640))
    for read in (panoptic, semantic, partial(instances, score_threshold=0.0)):
        sizes.clear()
        read(output, batch, config)
        assert max(sizes) <= 2**16


def test_a_tile_of_more_queries_than_are_worked_off_at_once_is_read_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    output, batch = random_output(6, (24, 40), 19), batch_of((96, 160), (96, 160))
    (expected,) = panoptic(output, batch, CITYSCAPES, object_threshold=0)
    monkeypatch.setattr(tiles, "VALUES_AT_ONCE", 1)
    (result,) = panoptic(output, batch, CITYSCAPES, object_threshold=0)
    assert np.array_equal(result.ids, expected.ids) and result.segments == expected.segments

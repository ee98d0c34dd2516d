"""Tiles: put together they are the whole, most need no look, and none is larger than said."""

from __future__ import annotations

from dataclasses import replace

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
    crop_resized,
    enlarged,
    output_of,
    random_output,
    reference_semantic,
)
from torch import Tensor

from pem import tiles
from pem.postprocess import instances, panoptic, semantic


def test_tiles_inside_one_mask_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three masks side by side, of which the right one is nowhere sure: all it owns is faint."""
    strength = torch.full((3, 40, 96), -8.0, dtype=torch.float64)
    strength[0, :, :30], strength[1, :, 30:65], strength[2, :, 65:] = 8, 8, -1
    logits = torch.full((3, 20), -9.0, dtype=torch.float64)
    logits[[0, 1, 2], [PERSON, CAR, SKY]] = 9
    output, batch = output_of(strength, logits), batch_of((640, 1536), (160, 384))
    looked_at = []

    def watched(window: Tensor, *weights: Tensor) -> Tensor:
        looked_at.append(len(window))
        return resize(window, *weights)

    resize = tiles._resize
    monkeypatch.setattr(tiles, "_resize", watched)
    (quick,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0)
    assert looked_at == [3] * 10  # the two of 12 columns of tiles in which masks meet
    # As if no tile could be decided by its bounds.
    monkeypatch.setattr(
        tiles.Masks,
        "bounds",
        lambda masks, rows, cols: torch.tensor([-99.0, 99.0]).view(2, 1, 1, 1).expand(2, 3, len(rows), len(cols)),
    )
    (slow,) = panoptic(output, batch, CITYSCAPES, overlap_threshold=0)
    assert len(looked_at) == 10 + 60
    assert np.array_equal(quick.ids, slow.ids) and quick.segments == slow.segments
    assert [outcome.mask_share for outcome in quick.outcomes] == [outcome.mask_share for outcome in slow.outcomes]
    assert quick.outcomes[2].fate == "empty mask"

    looked_at.clear()
    (quick,) = semantic(output, batch, CITYSCAPES)
    assert len(looked_at) == 10
    monkeypatch.setattr(tiles, "_contenders", lambda window, probs: torch.arange(probs.shape[1]))
    (slow,) = semantic(output, batch, CITYSCAPES)
    assert len(looked_at) == 10 + 60
    assert np.array_equal(quick.ids, slow.ids) and quick.segments == slow.segments


def test_only_classes_that_can_win_in_a_tile_are_compared() -> None:
    least, most = torch.tensor([-1.0, -1.0, -9.0]), torch.tensor([2.0, 2.0, -8.0])
    window = torch.stack((least, most), 1)[:, None]  # 3 queries, 1 x 2 cells
    probs = torch.tensor(
        [
            [0.5, 0.5, 0.4, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.2, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0],
        ]
    )
    # Of equals none is dropped. Class 2 is behind class 0 on the same mask, and class 4 has none. Class 3 may win where
    # its mask is strongest and that of the others weakest: 0.2 * sigmoid(2) = 0.18 against 0.5 * sigmoid(-1) = 0.13.
    assert tiles._contenders(window, probs).tolist() == [0, 1, 3]


def test_of_many_classes_few_are_compared_and_none_is_missed() -> None:
    config = replace(CITYSCAPES, num_classes=120)
    output, batch = random_output(60, (40, 60), 120), batch_of((320, 480), (160, 240))
    labels, _ = reference_semantic(output, (160, 240), (320, 480), config)
    (result,) = semantic(output, batch, config)
    label_of_id = np.array([-1, *(segment.category_id for segment in result.segments)])
    assert np.array_equal(label_of_id[result.ids], labels.numpy())

    masks, probs = tiles.Masks.of(output, batch, 0), output.pred_logits[0].softmax(-1)[:, :-1]
    counts = [len(tiles._contenders(masks.window(rows, cols), probs)) for rows, cols in masks.tiles()]
    assert np.mean(counts) < 0.5 * config.num_classes


@pytest.mark.parametrize(("cells", "content", "original"), GEOMETRIES)
def test_tiles_put_together_are_the_resized_logits(
    cells: tuple[int, int], content: tuple[int, int], original: tuple[int, int]
) -> None:
    output = random_output(3, cells, 5)
    output = output_of(output.pred_masks[0].float(), output.pred_logits[0].float())
    masks = tiles.Masks.of(output, batch_of(original, content), 0)
    together = torch.full((3, *original), float("nan"))
    for rows, cols in masks.tiles():
        together[:, rows.pixels, cols.pixels] = masks.tile(rows, cols)
    expected = crop_resized(enlarged(output.pred_masks[0]), content, original)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("original", [(1500, 2500), (96, 160), (20, 30)])
@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_no_array_of_queries_or_classes_exceeds_a_tile(
    original: tuple[int, int], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def watched(*arguments: Tensor) -> Tensor:
        result = resize(*arguments)
        sizes.append(result.shape[1] * result.shape[2])
        return result

    resize = tiles._resize
    monkeypatch.setattr(tiles, "_resize", watched)
    config = replace(CITYSCAPES, task=task, object_threshold=0.0)  # type: ignore[arg-type]
    output, batch = random_output(6, (96, 160), 19), batch_of(original, (384, 640))
    for reading in (panoptic, semantic, instances):
        reading(output, batch, config)
    height, width = tiles.TILE_PX
    assert max(sizes) <= 1.2 * height * width  # what a tile reads from the input overhangs it by a few pixels

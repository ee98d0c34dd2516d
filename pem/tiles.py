"""Mask logits -> pixels of the photo, tile by tile. What the pixels belong to is decided in ``pem.pixels``.

Bilinear resizing is linear and separable. So a tile of the photo needs only a small window of the mask logits and two
small matrices: the weights of its rows and of its columns. Two resizes in a row are the product of their matrices.
Arrays with a query axis cover a few tiles, or have one number per tile; they never cover the whole photo.

Resized values stay between the values that they are made of. So the mask cells under a tile bound what can happen in
it, and most tiles of a large photo are decided by their bounds alone. The others are worked off in portions of tiles
that have the same size and equally many contenders.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from pem.arrays import Arrays
from pem.outputs import Batch

MASK_STRIDE = 4  # pixels of the padded input per mask cell, along each side
TILE_PX = 32  # along each side
VALUES_AT_ONCE = 2**20  # in the arrays of one portion of tiles: 4 MB of float32 stay in the cache


class Strips(NamedTuple):
    """The n rows (or columns) of tiles of a photo, and how they are made from mask cells. Only the last may be smaller
    than the others; its weights are filled up with copies of the last pixel's."""

    sizes_px: np.ndarray  # [n], in pixels of the photo
    cells: np.ndarray  # [n, c]: the mask cells that they depend on
    to_input: np.ndarray  # weights [n, input pixels, c]: from mask cells to pixels of the network's input
    to_original: np.ndarray  # weights [n, pixels, input pixels]: from the input without its padding to the photo
    both: np.ndarray  # weights [n, pixels, c]: the two steps in one


class Tiles(NamedTuple):
    """T tiles of one size with n contenders each: the queries, or the classes, that may matter in them."""

    rows: np.ndarray  # [T]: where each lies in the grid of tiles
    cols: np.ndarray  # [T]
    height: int  # of each, in pixels of the photo
    width: int
    contenders: np.ndarray  # [T, n], ascending


class Masks:
    """Mask logits [Q, h, w] of one image, and the sizes that lie between them and the photo."""

    def __init__(self, logits: np.ndarray, content_size: tuple[int, int], original_size: tuple[int, int]) -> None:
        self.logits, self.content_size, self.original_size = logits, content_size, original_size
        self.rows, self.cols = self._strips(0), self._strips(1)

    @classmethod
    def of(cls, output: Arrays, batch: Batch, i: int, queries: np.ndarray | None = None) -> Masks:
        """The masks of image ``i``: those of all queries, or of ``queries`` [n]."""
        logits = output.pred_masks[i] if queries is None else output.pred_masks[i][queries]
        # A large logit may be infinite in float16, and 0 * infinity, which resizing would compute, is no number.
        finite = np.nan_to_num(logits, posinf=1e30, neginf=-1e30)
        return cls(finite, batch.content_sizes[i], batch.original_sizes[i])

    def _strips(self, axis: int) -> Strips:
        cells, content, original = self.logits.shape[1 + axis], self.content_size[axis], self.original_size[axis]
        # A tile has TILE_PX pixels in the finer of the two pixel grids.
        step = max(1, TILE_PX * min(original, content) // content)
        starts = np.arange(0, original, step)
        pixels = np.minimum(starts[:, None] + np.arange(step), original - 1)
        inputs, to_original = _bilinear_weights(pixels, content, original, self.logits.dtype)
        window, to_input = _bilinear_weights(inputs, cells, cells * MASK_STRIDE, self.logits.dtype)
        return Strips(np.minimum(original - starts, step), window, to_input, to_original, to_original @ to_input)

    @property
    def area_px(self) -> np.ndarray:
        """Of each tile, [rows, cols]."""
        return self.rows.sizes_px[:, None] * self.cols.sizes_px

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest logit that each tile can have, [Q, rows, cols] each."""
        by_row = self.logits[:, self.rows.cells]  # [Q, rows, c, w]
        least, most = (extreme(extreme(by_row, 2)[:, :, self.cols.cells], 3) for extreme in (np.min, np.max))
        rounding = 1e-5 * (1 + np.maximum(np.abs(least), np.abs(most)))
        return least - rounding, most + rounding

    def portions(self, where: np.ndarray, contends: np.ndarray, depth: int = 0) -> Iterator[Tiles]:
        """The tiles ``where`` [rows, cols], in portions of tiles of one size with equally many contenders.

        ``contends`` [D, rows, cols] says which of D queries or classes may matter in a tile. A portion has at most
        VALUES_AT_ONCE pixels, counted once per contender and at least ``depth`` times; a single tile may have more.
        """
        rows, cols, counts = self.rows, self.cols, contends.sum(0)
        input_px = rows.to_input.shape[1] * cols.to_input.shape[1]
        kinds = product(*(np.unique(of).tolist() for of in (counts[where], rows.sizes_px, cols.sizes_px)))
        for count, height, width in kinds:
            is_alike = where & (counts == count) & (rows.sizes_px[:, None] == height) & (cols.sizes_px == width)
            num_tiles = max(1, VALUES_AT_ONCE // (max(height * width, input_px) * max(depth, count)))
            row, col = is_alike.nonzero()
            contenders = contends[:, row, col].T.nonzero()[1].reshape(-1, count)
            for start in range(0, len(row), num_tiles):
                some = slice(start, start + num_tiles)
                yield Tiles(row[some], col[some], height, width, contenders[some])

    def resized(self, tiles: Tiles, queries: np.ndarray) -> np.ndarray:
        """The logits of the tiles at the size of the photo, [T, n, height, width].

        ``queries`` is [T, n], or [1, n] where all tiles have the same.
        """
        rows, cols = self.rows.both[tiles.rows, : tiles.height], self.cols.both[tiles.cols, : tiles.width]
        return _resize(self._window(tiles, queries), rows, cols)

    def at_input_size(self, tiles: Tiles, queries: np.ndarray) -> np.ndarray:
        """The first of the two steps: the logits that the tiles depend on, in pixels of the network's input."""
        rows, cols = self.rows.to_input[tiles.rows], self.cols.to_input[tiles.cols]
        return _resize(self._window(tiles, queries), rows, cols)

    def from_input_size(self, tiles: Tiles, maps: np.ndarray) -> np.ndarray:
        """The second step, for any ``maps`` of the size that ``at_input_size`` returns."""
        rows = self.rows.to_original[tiles.rows, : tiles.height]
        return _resize(maps, rows, self.cols.to_original[tiles.cols, : tiles.width])

    def _window(self, tiles: Tiles, queries: np.ndarray) -> np.ndarray:
        """The logits that the tiles depend on, [T, n, c, c]."""
        rows, cols = self.rows.cells[tiles.rows], self.cols.cells[tiles.cols]
        return self.logits[queries[:, :, None, None], rows[:, None, :, None], cols[:, None, None]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function, with no more memory than its result takes."""
    y = np.negative(x)
    with np.errstate(over="ignore"):  # the result is then 0
        np.exp(y, out=y)
    y += 1
    return np.divide(1, y, out=y)


def _bilinear_weights(
    outputs: np.ndarray, in_size: int, out_size: int, dtype: DTypeLike
) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear resizing of one axis (align_corners=False): which inputs the ``outputs`` [n, m] read, and how much of
    each. The outputs of a row ascend.

    Returns inputs [n, i], which repeat the last where a row reads fewer than others, and weights [n, m, i].
    """
    positions = ((outputs.astype(dtype) + 0.5) * (in_size / out_size) - 0.5).clip(0, in_size - 1)
    start, stop = positions[:, :1].astype(int), np.minimum(positions[:, -1:].astype(int) + 2, in_size)
    inputs = start + np.arange((stop - start).max())
    # A weight falls linearly from 1 at the input's own position to 0 at its neighbours'. So it is 0 from ``stop`` on.
    weights = np.maximum(1 - np.abs(positions[:, :, None] - inputs[:, None].astype(dtype)), 0)
    return np.minimum(inputs, stop - 1), weights


def _resize(window: np.ndarray, row_weights: np.ndarray, col_weights: np.ndarray) -> np.ndarray:
    """[T, D, h, w] -> [T, D, H, W], with weights [T, H, h] and [T, W, w]."""
    return row_weights[:, None] @ (window @ col_weights[:, None].swapaxes(2, 3))


class Canvas:
    """An array [..., H0, W0] that is painted tile by tile. In memory its last tiles are as large as all others."""

    def __init__(self, of_tile: np.ndarray, masks: Masks) -> None:
        """``of_tile`` [..., rows, cols] is what all of a tile is filled with at first."""
        height, width = int(masks.rows.sizes_px[0]), int(masks.cols.sizes_px[0])
        padded = of_tile.repeat(height, -2).repeat(width, -1)
        self.pixels = padded[..., : masks.original_size[0], : masks.original_size[1]]
        rows, cols = of_tile.shape[-2:]
        self._by_tile = padded.reshape(*of_tile.shape[:-2], rows, height, cols, width)

    def put(self, tiles: Tiles, values: np.ndarray, queries: np.ndarray | None = None) -> None:
        """Paints ``values`` [T, height, width]; on a canvas [Q, H0, W0] those of ``queries`` [T, n], [T, n, ...]."""
        height, width = slice(tiles.height), slice(tiles.width)
        if queries is None:
            self._by_tile[tiles.rows, height, tiles.cols, width] = values
        else:
            self._by_tile[queries, tiles.rows[:, None], height, tiles.cols[:, None], width] = values

"""From mask logits to the pixels of a photo: what they belong to, for every reading.

How memory is bounded: a photo of H0 x W0 pixels is worked off in tiles. Bilinear resizing is linear and separable, so
a tile needs only a small window of the mask logits and two small matrices, the weights of its rows and of its columns;
two resizes in a row are the product of their matrices. Arrays with a query axis are of some tiles, or of one number per
tile, never of H0 x W0 pixels. What is kept of the whole photo is one label per pixel and, for instances, one bool per
pixel and instance.

How time is: interpolation stays between the values that it reads, so the cells under a tile bound what can happen in
it. Most tiles of a large photo lie inside one mask, and are decided by their bounds alone. Of the others, those are
worked off together that have the same size and as many contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pem.layers import to_float
from pem.outputs import Batch, PEMOutput

MASK_STRIDE = 4  # a mask has one cell for so many pixels of the padded input, along each side
TILE_PX = 32  # along each side
VALUES_AT_ONCE = 2**20  # in the arrays of the tiles that are worked off together: 4 MB of float32 stay in the cache
# A query belongs to a semantic segment when it gives at least this share of the evidence for it.
QUERY_SHARE = 0.1


class Strips(NamedTuple):
    """The n rows (or columns) of tiles of an image, and how to get there from mask cells. Only the last may be smaller
    than the others; its weights go on with copies of the last pixel."""

    sizes_px: Tensor  # [n], of the original
    cells: Tensor  # [n, c]: the mask cells that they depend on
    to_input: Tensor  # weights [n, input pixels, c]: enlargement to the pixels of the network's input
    to_original: Tensor  # weights [n, pixels, input pixels]: from the input without its padding to the original
    both: Tensor  # weights [n, pixels, c]: the one after the other


class Tiles(NamedTuple):
    """T tiles of one size with n contenders each: the queries, or the classes, that may matter in them."""

    rows: Tensor  # [T]: the row of each
    cols: Tensor  # [T]
    height: int  # of each, in pixels of the original
    width: int
    contenders: Tensor  # [T, n], ascending


@dataclass(frozen=True)
class Masks:
    """Mask logits of one image, and the sizes that lie between them and the original."""

    logits: Tensor  # [Q, h, w]
    content_size: tuple[int, int]
    original_size: tuple[int, int]

    @classmethod
    def of(cls, output: PEMOutput, batch: Batch, i: int, queries: Tensor | None = None) -> Masks:
        logits = output.pred_masks[i] if queries is None else output.pred_masks[i][queries]
        # In float16 a large logit may have become infinite, and 0 * inf is not what interpolation means.
        return cls(to_float(logits).nan_to_num(), batch.content_sizes[i], batch.original_sizes[i])

    @cached_property
    def rows(self) -> Strips:
        return self._strips(0)

    @cached_property
    def cols(self) -> Strips:
        return self._strips(1)

    def _strips(self, axis: int) -> Strips:
        cells, content, original = self.logits.shape[1 + axis], self.content_size[axis], self.original_size[axis]
        # In the finer of the two pixel grids a tile is of this size.
        step = max(1, TILE_PX * min(original, content) // content)
        starts = torch.arange(0, original, step)
        pixels = (starts[:, None] + torch.arange(step)).clamp(max=original - 1)
        inputs, to_original = _bilinear_weights(pixels, content, original, self.logits.dtype)
        window, to_input = _bilinear_weights(inputs, cells, cells * MASK_STRIDE, self.logits.dtype)
        sizes_px = (original - starts).clamp(max=step)
        tensors = (sizes_px, window, to_input, to_original, to_original @ to_input)
        return Strips(*(tensor.to(self.logits.device) for tensor in tensors))

    @property
    def area_px(self) -> Tensor:
        """[rows, cols]: of each tile."""
        return self.rows.sizes_px[:, None] * self.cols.sizes_px

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Between which values the logits of each tile lie, [Q, rows, cols] each: interpolation stays between the cells
        that it reads, give or take its rounding."""
        by_row = self.logits[:, self.rows.cells]  # [Q, rows, c, w]
        least, most = (extreme(extreme(by_row, 2)[:, :, self.cols.cells], 3) for extreme in (torch.amin, torch.amax))
        rounding = 1e-5 * (1 + torch.maximum(least.abs(), most.abs()))
        return least - rounding, most + rounding

    def alike(self, where: Tensor, contends: Tensor, depth: int = 0) -> Iterator[Tiles]:
        """The tiles ``where`` [rows, cols], in portions of tiles of one size with as many contenders each.

        ``contends`` [D, rows, cols]: which of D queries or classes may matter in a tile. A portion has at most
        VALUES_AT_ONCE pixels, counted once per contender and at least ``depth`` times; a single tile may have more.
        """
        rows, cols, counts = self.rows, self.cols, contends.sum(0)
        kinds = 4 * counts + 2 * (rows.sizes_px < rows.sizes_px[0])[:, None] + (cols.sizes_px < cols.sizes_px[0])
        _, kind, num_tiles = kinds[where].unique(return_inverse=True, return_counts=True)
        for group in where.nonzero()[kind.argsort(stable=True)].split(num_tiles.tolist()):
            row, col = group[0].tolist()
            height, width, count = int(rows.sizes_px[row]), int(cols.sizes_px[col]), int(counts[row, col])
            area_px = max(height * width, rows.to_input.shape[1] * cols.to_input.shape[1])
            for portion in group.split(max(1, VALUES_AT_ONCE // (area_px * max(depth, count)))):
                row, col = portion.T
                yield Tiles(row, col, height, width, contends[:, row, col].T.nonzero()[:, 1].view(-1, count))

    def window(self, tiles: Tiles, queries: Tensor) -> Tensor:
        """The logits that the tiles depend on, [T, n, c, c], of ``queries`` [T, n], or [1, n] if all have the same."""
        rows, cols = self.rows.cells[tiles.rows], self.cols.cells[tiles.cols]
        return self.logits[queries[:, :, None, None], rows[:, None, :, None], cols[:, None, None]]

    def resized(self, tiles: Tiles, queries: Tensor) -> Tensor:
        """The logits of the tiles at the size of the original, [T, n, height, width]; ``queries`` as above."""
        rows, cols = self.rows.both[tiles.rows, : tiles.height], self.cols.both[tiles.cols, : tiles.width]
        return _resize(self.window(tiles, queries), rows, cols)


def _bilinear_weights(outputs: Tensor, in_size: int, out_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bilinear resizing of one axis (align_corners=False): which inputs the ``outputs`` [n, m] read, and how much of
    each. The outputs of a row ascend.

    Returns inputs [n, i], which repeat the last where a row reads fewer than others, and weights [n, m, i].
    """
    positions = ((outputs.to(dtype) + 0.5) * (in_size / out_size) - 0.5).clamp(0, in_size - 1)
    start, stop = positions[:, :1].long(), (positions[:, -1:].long() + 2).clamp(max=in_size)
    inputs = start + torch.arange(int((stop - start).max()))
    # The weight falls linearly from 1 at an input's own position to 0 at its neighbours', and so from ``stop`` on.
    weights = (1 - (positions[:, :, None] - inputs[:, None]).abs()).clamp(min=0)
    return torch.minimum(inputs, stop - 1), weights


def _resize(window: Tensor, row_weights: Tensor, col_weights: Tensor) -> Tensor:
    """[T, D, h, w] -> [T, D, H, W], with weights [T, H, h] and [T, W, w]."""
    return row_weights[:, None] @ (window @ col_weights[:, None].mT)


def _weighted_sum(weights: Tensor, maps: Tensor) -> Tensor:
    """[T, n, Q] and [T, Q, H, W] -> [T, n, H, W]"""
    return (weights @ maps.flatten(2)).unflatten(2, maps.shape[2:])


def _strongest(values: Tensor) -> Tensor:
    """The same as ``values.max(1).indices``, the first of equals included, but overwrites ``values`` [T, D, H, W].

    On a CPU it is nearly twice as fast (``argmax`` takes far longer), for each of its steps runs on whole vectors.
    """
    countdown = torch.arange(values.shape[1], 0, -1, dtype=values.dtype, device=values.device)
    at_most = values.eq_(values.amax(1, keepdim=True)).mul_(countdown[:, None, None])
    return values.shape[1] - at_most.amax(1).long()


class _Canvas:
    """An array [..., H0, W0] that is painted tile by tile. In memory its last tiles are as large as all others."""

    def __init__(self, of_tile: np.ndarray, masks: Masks) -> None:
        """``of_tile`` [..., rows, cols]: what the whole tile is filled with at first."""
        height, width = int(masks.rows.sizes_px[0]), int(masks.cols.sizes_px[0])
        padded = of_tile.repeat(height, -2).repeat(width, -1)
        self.pixels = padded[..., : masks.original_size[0], : masks.original_size[1]]
        rows, cols = of_tile.shape[-2:]
        self._by_tile = padded.reshape(*of_tile.shape[:-2], rows, height, cols, width)

    def put(self, tiles: Tiles, values: Tensor, queries: Tensor | None = None) -> None:
        """``values`` [T, height, width], or [T, n, height, width] for the ``queries`` [T, n] of [Q, H0, W0]"""
        rows, cols = tiles.rows.cpu().numpy(), tiles.cols.cpu().numpy()
        if queries is None:
            self._by_tile[rows, : tiles.height, cols, : tiles.width] = values.cpu().numpy()
        else:
            here = (queries.cpu().numpy(), rows[:, None], slice(tiles.height), cols[:, None], slice(tiles.width))
            self._by_tile[here] = values.cpu().numpy()


# ------------------------------------------------------------------------------------------------ what pixels belong to


class Owned(NamedTuple):
    """How the pixels of one image are shared among k queries."""

    code: np.ndarray  # int16 [H0, W0]: 2 (k - q) where query q is the strongest, 1 less where it is faint there
    owned_px: list[int]  # per query: pixels where it is the strongest
    painted_px: list[int]  # per query: those of them where its mask probability is at least 0.5: it is not faint
    mask_px: list[int]  # per query: all pixels where its mask probability is at least 0.5

    def look_up(self, ids: list[int]) -> np.ndarray:
        """The id of every pixel's owner, int32 [H0, W0], and 0 where that is faint."""
        id_of_code = np.zeros(2 * len(ids) + 1, np.int32)
        id_of_code[2::2] = ids[::-1]
        return id_of_code[self.code]


def assign_pixels(masks: Masks, scores: Tensor) -> Owned:
    """Who owns which pixels. Most tiles of a large photo lie inside one mask, and nobody looks at their pixels."""
    k = len(scores)
    if k == 0:
        return Owned(np.zeros(masks.original_size, np.int16), [], [], [])
    least, most = masks.bounds()  # [k, rows, cols]
    weakest, strongest = (scores[:, None, None] * bound.sigmoid() for bound in (least, most))
    contends = strongest >= (1 - 1e-5) * weakest.amax(0)  # may be the strongest somewhere in the tile
    crosses = (least < 0) & (most >= 0)  # its mask may end in the tile
    takes_part = contends | crosses
    undecided = (takes_part.sum(0) > 1) | crosses.any(0)

    # Of the largest values that with the largest code wins, which is the first; a faint owner's is one less.
    codes = torch.arange(2 * k - 1, 0, -2, device=scores.device)
    winner = contends.int().argmax(0)
    code_of_tile = codes[winner] + (most.gather(0, winner[None])[0] >= 0)
    mask_px = ((least >= 0) * masks.area_px).sum((1, 2))

    def look(tiles: Tiles) -> Tensor:
        queries = tiles.contenders
        probs = masks.resized(tiles, queries).sigmoid_()
        # Comparing into floats spares the slow sum of booleans.
        inside = torch.ge(probs, 0.5, out=torch.empty_like(probs))
        # Those that do not end in a tile fill it, which is counted already, or are outside.
        ends = crosses[queries, tiles.rows[:, None], tiles.cols[:, None]]
        mask_px.index_add_(0, queries[ends], inside.sum((2, 3))[ends].long())
        inside.add_(codes[queries][:, :, None, None])
        probs.mul_(scores[queries][:, :, None, None])
        return inside.mul_(probs.eq_(probs.amax(1, keepdim=True))).amax(1)

    code, code_px = _label(masks, 2 * k + 1, code_of_tile, undecided, takes_part, look)
    faint_px, painted_px = code_px[1:].reshape(k, 2)[::-1].T
    return Owned(code, (painted_px + faint_px).tolist(), painted_px.tolist(), mask_px.tolist())


def classify_pixels(masks: Masks, probs: Tensor, resize_evidence: bool) -> tuple[np.ndarray, np.ndarray]:
    """The class of every pixel, int16 [H0, W0], and how many pixels each class has, from the queries' class ``probs``
    [Q, K]. Nobody looks at the pixels of a tile that only one class can win."""
    contends = _contends(masks, probs)
    queries = torch.arange(len(probs), device=probs.device)[None]

    def look(tiles: Tiles) -> Tensor:
        classes = tiles.contenders
        weights = probs.T[classes]  # [T, n, Q]
        if resize_evidence:
            window = masks.window(tiles, queries)
            mask_probs = _resize(window, masks.rows.to_input[tiles.rows], masks.cols.to_input[tiles.cols]).sigmoid_()
            rows = masks.rows.to_original[tiles.rows, : tiles.height]
            cols = masks.cols.to_original[tiles.cols, : tiles.width]
            evidence = _resize(_weighted_sum(weights, mask_probs), rows, cols)
        else:
            evidence = _weighted_sum(weights, masks.resized(tiles, queries).sigmoid_())
        return classes.gather(1, _strongest(evidence).flatten(1)).unflatten(1, evidence.shape[2:])

    class_of_tile, undecided = contends.int().argmax(0), contends.sum(0) > 1
    return _label(masks, probs.shape[1], class_of_tile, undecided, contends, look, depth=len(probs))


def _contends(masks: Masks, probs: Tensor) -> Tensor:
    """Which classes may have the most evidence somewhere in a tile, [K, rows, cols]: usually few of K.

    The bounds of the logits bound every mask probability of the tile, and with it how far a class can get ahead of a
    class that is strong throughout.
    """
    least, most = (bound.sigmoid().permute(1, 2, 0) for bound in masks.bounds())  # [rows, cols, Q]
    rivals = (least @ probs).argmax(-1)
    rounding = 1e-4 * (most @ probs.sum(1))  # more than rounding can move either side
    contends = torch.empty(*rivals.shape, probs.shape[1], dtype=torch.bool, device=probs.device)
    for rival in rivals.unique():
        here = rivals == rival
        lead = probs - probs[:, rival, None]  # per unit of mask probability, [Q, K]
        largest_lead = most[here] @ lead.clamp(min=0) + least[here] @ lead.clamp(max=0)
        contends[here] = largest_lead >= -rounding[here, None]
    return contends.permute(2, 0, 1)


def _label(
    masks: Masks,
    num_labels: int,
    label_of_tile: Tensor,
    undecided: Tensor,
    contends: Tensor,
    look: Callable[[Tiles], Tensor],
    depth: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The label of every pixel, int16 [H0, W0], and how many pixels each label has.

    ``label_of_tile`` [rows, cols] holds for every pixel of a tile that is not ``undecided`` [rows, cols]. For the
    others ``look`` returns the labels [T, height, width]; ``contends`` and ``depth`` as for ``Masks.alike``.
    """
    canvas = _Canvas(label_of_tile.short().cpu().numpy(), masks)
    area_px = torch.zeros(num_labels, dtype=torch.int64, device=label_of_tile.device)
    counts = area_px.index_add_(0, label_of_tile[~undecided], masks.area_px[~undecided]).cpu().numpy()
    for tiles in masks.alike(undecided, contends, depth):
        labels = look(tiles).long().cpu()  # NumPy counts by int64
        counts += np.bincount(labels.flatten().numpy(), minlength=num_labels)
        canvas.put(tiles, labels)
    return canvas.pixels, counts


def evidence_inside(masks: Masks, probs: Tensor, labels: np.ndarray) -> tuple[list[float], list[tuple[int, ...]]]:
    """For each class its share of all evidence where it won, and the queries that give QUERY_SHARE or more of its own
    evidence there, strongest first. In ``labels``, K is no class."""
    rows, cols = (-(-content // MASK_STRIDE) for content in masks.content_size)  # cells without those of the padding
    sampled = labels
    for axis, count in enumerate((rows, cols)):
        original, content = masks.original_size[axis], masks.content_size[axis]
        centres = (np.arange(count) + 0.5) * MASK_STRIDE * original / content
        sampled = sampled.take(centres.astype(int).clip(max=original - 1), axis)
    mask_probs = masks.logits[:, :rows, :cols].flatten(1).T.sigmoid()
    inside = mask_probs.new_zeros(probs.shape[1] + 1, len(probs)).index_add_(
        0, torch.from_numpy(sampled.ravel()).to(probs.device, torch.int64), mask_probs
    )[:-1]
    # A class that won in no sampled pixel is left with what the queries think of it.
    inside[inside.sum(1) == 0] = 1
    evidence = inside * probs.T  # [K, Q]
    tiny = torch.finfo(evidence.dtype).tiny  # all of it may have underflowed to 0
    own, total = evidence.sum(1).clamp(min=tiny), (inside @ probs.sum(1)).clamp(min=tiny)
    shares, order = (evidence / own[:, None]).sort(dim=1, descending=True)
    strong = (shares >= QUERY_SHARE).sum(1).clamp(min=1).tolist()
    queries = [tuple(queries[:n]) for queries, n in zip(order.tolist(), strong, strict=True)]
    return (own / total).clamp(max=1).tolist(), queries


def cut_out(masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Where each mask logit is positive, bool [k, H0, W0], and the mean mask probability there (0 for none), [k].
    Nobody looks at a tile that a mask does not reach."""
    k = len(masks.logits)
    reaches = masks.bounds()[1] > 0  # [k, rows, cols]
    canvas = _Canvas(np.zeros(reaches.shape, bool), masks)
    prob_sum, area_px = torch.zeros(2, k, dtype=torch.float64, device=masks.logits.device)
    for tiles in masks.alike(reaches.any(0), reaches):
        queries = tiles.contenders
        logits = masks.resized(tiles, queries)
        positive = torch.gt(logits, 0, out=torch.empty_like(logits))
        prob_sum.index_add_(0, queries.flatten(), (logits.sigmoid_() * positive).sum((2, 3)).flatten().double())
        area_px.index_add_(0, queries.flatten(), positive.sum((2, 3)).flatten().double())
        canvas.put(tiles, positive, queries)
    return canvas.pixels, (prob_sum / area_px.clamp(min=1)).cpu().numpy()

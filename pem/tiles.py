"""From mask logits to the pixels of a photo: what they belong to, for every reading.

How memory is bounded: a photo of H0 x W0 pixels is worked off in tiles. Bilinear resizing is linear and separable, so
a tile needs only a small window of the mask logits and two small matrices, the weights of its rows and of its columns;
two resizes in a row are the product of their matrices. The largest array with a query axis is queries x one tile,
never queries x H0 x W0. What is kept of the whole photo is one label per pixel and, for instances, one bool per pixel
and instance.

How time is: interpolation stays between the values that it reads, so the cells under a tile bound what can happen in
it. Most tiles of a large photo lie inside one mask, and are decided by their bounds alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pem.layers import to_float
from pem.outputs import Batch, PEMOutput

MASK_STRIDE = 4  # a mask has one cell for so many pixels of the padded input, along each side
TILE_PX = (128, 128)  # of 100 queries they are 6.5 MB of float32, and mostly fewer queries take part
# A query belongs to a semantic segment when it gives at least this share of the evidence for it.
QUERY_SHARE = 0.1


class Strip(NamedTuple):
    """Some neighbouring rows (or columns) of the original image, and how to get there from mask cells."""

    pixels: slice  # of the original
    cells: slice  # the mask cells that they depend on
    to_input: Tensor  # weights [input pixels, cells]: enlargement to the pixels of the network's input
    to_original: Tensor  # weights [pixels, input pixels]: from the input without its padding to the original
    both: Tensor  # weights [pixels, cells]: the one after the other


@dataclass(frozen=True)
class Masks:
    """Mask logits of one image, and the sizes that lie between them and the original."""

    logits: Tensor  # [Q, h, w]
    content_size: tuple[int, int]
    original_size: tuple[int, int]

    @classmethod
    def of(cls, output: PEMOutput, batch: Batch, i: int, queries: Tensor | None = None) -> Masks:
        logits = output.pred_masks[i] if queries is None else output.pred_masks[i][queries]
        # As above; 0 * inf is not what interpolation means either.
        return cls(to_float(logits).nan_to_num(), batch.content_sizes[i], batch.original_sizes[i])

    def tiles(self) -> product[tuple[Strip, Strip]]:
        """The rows and the columns of every tile; together they cover the original once."""
        return product(self.strips(0), self.strips(1))

    def bounds(self, rows: list[Strip], cols: list[Strip]) -> tuple[Tensor, Tensor]:
        """Between which values the logits of each tile lie, [Q, rows, cols] each: interpolation stays between the cells
        that it reads, give or take its rounding."""

        def per_tile(extreme: Callable[[Tensor, int], Tensor]) -> Tensor:
            per_strip = torch.stack([extreme(self.logits[:, strip.cells], 1) for strip in rows], 1)
            return torch.stack([extreme(per_strip[:, :, strip.cells], 2) for strip in cols], 2)

        least, most = per_tile(torch.amin), per_tile(torch.amax)
        rounding = 1e-5 * (1 + torch.maximum(least.abs(), most.abs()))
        return least - rounding, most + rounding

    def strips(self, axis: int) -> list[Strip]:
        """The rows (axis 0) or columns (axis 1) of the tiles, in order."""
        cells, content, original = self.logits.shape[1 + axis], self.content_size[axis], self.original_size[axis]
        # A tile is of bounded size in the finer of the two pixel grids.
        step = max(1, TILE_PX[axis] * min(original, content) // content)
        strips = []
        for start in range(0, original, step):
            pixels = range(start, min(start + step, original))
            inputs, to_original = _bilinear_weights(pixels, content, original, self.logits)
            window, to_input = _bilinear_weights(inputs, cells, cells * MASK_STRIDE, self.logits)
            both = to_original @ to_input
            strips.append(
                Strip(slice(start, pixels.stop), slice(window.start, window.stop), to_input, to_original, both)
            )
        return strips

    def window(self, rows: Strip, cols: Strip) -> Tensor:
        """The logits that a tile depends on, [Q, cells, cells]."""
        return self.logits[:, rows.cells, cols.cells]

    def tile(self, rows: Strip, cols: Strip) -> Tensor:
        """The logits of a tile at the size of the original, [Q, pixels, pixels]."""
        return _resize(self.window(rows, cols), rows.both, cols.both)


def _bilinear_weights(outputs: range, in_size: int, out_size: int, like: Tensor) -> tuple[range, Tensor]:
    """Bilinear resizing of one axis (align_corners=False): which inputs these outputs read, and how much of each.

    Returns the range of inputs and the weights [outputs, inputs].
    """
    steps = torch.arange(outputs.start, outputs.stop, dtype=like.dtype)
    positions = ((steps + 0.5) * (in_size / out_size) - 0.5).clamp(0, in_size - 1)
    inputs = range(int(positions[0]), min(int(positions[-1]) + 2, in_size))
    # The weight falls linearly from 1 at an input's own position to 0 at its neighbours'.
    distances = positions[:, None] - torch.arange(inputs.start, inputs.stop)
    return inputs, (1 - distances.abs()).clamp(min=0).to(like.device)


def _resize(window: Tensor, row_weights: Tensor, col_weights: Tensor) -> Tensor:
    """[D, h, w] -> [D, H, W], with weights [H, h] and [W, w]."""
    return row_weights @ (window @ col_weights.T)


def _strongest(values: Tensor) -> Tensor:
    """The same as ``values.argmax(0)``, the first of equals included, but overwrites ``values``.

    On a CPU it is several times as fast, for each of its steps runs on whole vectors.
    """
    countdown = torch.arange(len(values), 0, -1, dtype=values.dtype, device=values.device)
    return len(values) - values.eq_(values.amax(0)).mul_(countdown[:, None, None]).amax(0).long()


# ------------------------------------------------------------------------------------------------ what pixels belong to


class Owned(NamedTuple):
    """How the pixels of one image are shared among k queries."""

    owner: np.ndarray  # int16 [H0, W0]: place of the strongest query, plus k where its mask probability is below 0.5
    owned_px: list[int]  # per query: pixels where it is the strongest
    painted_px: list[int]  # per query: those of them where its mask probability is at least 0.5
    mask_px: list[int]  # per query: all pixels where its mask probability is at least 0.5


def assign_pixels(masks: Masks, scores: Tensor) -> Owned:
    """Who owns which pixels. Most tiles of a large photo lie inside one mask, and nobody looks at their pixels."""
    k = len(scores)
    if k == 0:
        return Owned(np.zeros(masks.original_size, np.int16), [], [], [])
    rows, cols = masks.strips(0), masks.strips(1)
    least, most = masks.bounds(rows, cols)  # [k, rows, cols]
    weakest, strongest = (scores[:, None, None] * bound.sigmoid() for bound in (least, most))
    contends = strongest >= (1 - 1e-5) * weakest.amax(0)  # may be the strongest somewhere in the tile
    crosses = (least < 0) & (most >= 0)  # its mask may end in the tile
    decided = (contends.sum(0) == 1) & ~crosses.any(0)

    heights, widths = ([strip.pixels.stop - strip.pixels.start for strip in strips] for strips in (rows, cols))
    area_px = (torch.tensor(heights)[:, None] * torch.tensor(widths)).to(scores.device)
    winner = contends.int().argmax(0)
    owner_of_tile = winner + k * (most.gather(0, winner[None])[0] < 0)
    owner_counts = torch.zeros(2 * k, dtype=torch.int64, device=scores.device)
    owner_px = owner_counts.index_add_(0, owner_of_tile[decided], area_px[decided]).cpu().numpy()
    mask_px = ((least >= 0) * area_px).sum((1, 2)).cpu().numpy()
    owner_map = owner_of_tile.short().cpu().numpy().repeat(heights, 0).repeat(widths, 1)

    takes_part, ends = (contends | crosses).cpu().numpy(), crosses.cpu().numpy()
    for row, col in (~decided).nonzero().tolist():
        among = takes_part[:, row, col].nonzero()[0]
        chosen = torch.from_numpy(among).to(scores.device)
        window = masks.logits[chosen, rows[row].cells, cols[col].cells]
        probs = _resize(window, rows[row].both, cols[col].both).sigmoid_()
        # Comparing into floats spares the slow sum of booleans.
        inside = torch.ge(probs, 0.5, out=torch.empty_like(probs))
        # Those that do not end in the tile fill it, which is counted already, or are outside.
        mask_px[among] += inside.sum((1, 2)).long().cpu().numpy() * ends[among, row, col]
        # Of the largest values the one with the largest code wins, that is the first; odd codes are faint.
        codes = torch.arange(2 * len(among) - 1, 0, -2, dtype=probs.dtype, device=probs.device)
        inside.add_(codes[:, None, None])
        probs.mul_(scores[chosen, None, None])
        code = inside.mul_(probs.eq_(probs.amax(0))).amax(0).long().cpu().numpy()  # NumPy counts and looks up by int64
        owner_of_code = np.zeros(2 * len(among) + 1, np.int16)  # of code 1, 2, ...; there is no 0
        owner_of_code[1::2], owner_of_code[2::2] = among[::-1] + k, among[::-1]
        owner_px[owner_of_code[1:]] += np.bincount(code.ravel(), minlength=len(owner_of_code))[1:]
        owner_map[rows[row].pixels, cols[col].pixels] = owner_of_code[code]
    painted_px, faint_px = owner_px.reshape(2, k)
    return Owned(owner_map, (painted_px + faint_px).tolist(), painted_px.tolist(), mask_px.tolist())


def classify_pixels(masks: Masks, probs: Tensor, resize_evidence: bool) -> np.ndarray:
    """The class of every pixel, int16 [H0, W0]. Nobody looks at the pixels of a tile that only one class can win."""
    labels = np.empty(masks.original_size, np.int16)
    for rows, cols in masks.tiles():
        window = masks.window(rows, cols)
        contenders = _contenders(window, probs)
        if len(contenders) == 1:
            labels[rows.pixels, cols.pixels] = contenders.item()
            continue
        weights = probs[:, contenders].T
        if resize_evidence:
            mask_probs = _resize(window, rows.to_input, cols.to_input).sigmoid_()
            evidence = _resize(torch.tensordot(weights, mask_probs, 1), rows.to_original, cols.to_original)
        else:
            evidence = torch.tensordot(weights, masks.tile(rows, cols).sigmoid_(), 1)
        labels[rows.pixels, cols.pixels] = contenders[_strongest(evidence)].cpu().numpy()
    return labels


def _contenders(window: Tensor, probs: Tensor) -> Tensor:
    """The classes, ascending, that may have the most evidence somewhere in a tile: usually few of K.

    Interpolation stays between the least and the largest of the logits [Q, cells, cells] that it reads, so these bound
    every mask probability of the tile, and with it how far a class can get ahead of a class that is strong throughout.
    """
    least, most = window.amin((1, 2)).sigmoid(), window.amax((1, 2)).sigmoid()
    rival = probs[:, (least @ probs).argmax()]
    lead = probs - rival[:, None]  # per unit of mask probability, [Q, K]
    largest_lead = most @ lead.clamp(min=0) + least @ lead.clamp(max=0)
    rounding = 1e-4 * (most @ probs.sum(1))  # more than rounding can move either side
    return (largest_lead >= -rounding).nonzero()[:, 0]


def evidence_inside(masks: Masks, probs: Tensor, labels: np.ndarray) -> tuple[list[float], list[tuple[int, ...]]]:
    """For each class its share of all evidence where it won, and the queries that give QUERY_SHARE or more of its own
    evidence there, strongest first."""
    rows, cols = (-(-content // MASK_STRIDE) for content in masks.content_size)  # cells without those of the padding
    sampled = labels
    for axis, count in enumerate((rows, cols)):
        original, content = masks.original_size[axis], masks.content_size[axis]
        centres = (np.arange(count) + 0.5) * MASK_STRIDE * original / content
        sampled = sampled.take(centres.astype(int).clip(max=original - 1), axis)
    mask_probs = masks.logits[:, :rows, :cols].flatten(1).T.sigmoid()
    inside = torch.zeros_like(probs.T).index_add_(
        0, torch.from_numpy(sampled.ravel()).to(probs.device, torch.int64), mask_probs
    )
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
    """Where each mask logit is positive, bool [k, H0, W0], and the mean mask probability there (0 for none), [k]."""
    k = len(masks.logits)
    inside = np.zeros((k, *masks.original_size), bool)
    prob_sum, area_px = torch.zeros(2, k, dtype=torch.float64, device=masks.logits.device)
    for rows, cols in masks.tiles():
        logits = masks.tile(rows, cols)
        positive = torch.gt(logits, 0, out=torch.empty_like(logits))
        prob_sum += (logits.sigmoid_() * positive).sum((1, 2))
        area_px += positive.sum((1, 2))
        inside[:, rows.pixels, cols.pixels] = positive.cpu().numpy()
    return inside, (prob_sum / area_px.clamp(min=1)).cpu().numpy()

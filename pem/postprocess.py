"""Three readings of one output: semantic, panoptic, instances. None of them runs the network.

How memory is bounded: a photo of H0 x W0 pixels is worked off in tiles. Bilinear resizing is linear and separable, so
a tile needs only a small window of the mask logits and two small matrices, the weights of its rows and of its columns;
two resizes in a row are the product of their matrices. The largest array with a query axis is queries x one tile,
never queries x H0 x W0. What is kept of the whole photo is one label per pixel and, for instances, one bool per pixel
and instance.

Every reading also says what became of each query: its outcomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pem.categories import Category, categories_for, shade
from pem.config import PEMConfig
from pem.layers import to_float
from pem.outputs import Batch, Fate, PEMOutput, QueryOutcome, Segment, Segmentation

MASK_STRIDE = 4  # a mask has one cell for so many pixels of the padded input, along each side
TILE_PX = (128, 128)  # of 100 queries they are 6.5 MB of float32, and mostly fewer queries take part
# A query belongs to a semantic segment when it gives at least this share of the evidence for it.
QUERY_SHARE = 0.1


@torch.no_grad()
def panoptic(
    output: PEMOutput,
    batch: Batch,
    config: PEMConfig,
    object_threshold: float | None = None,
    overlap_threshold: float | None = None,
) -> list[Segmentation]:
    """One Segmentation per image, in which every pixel belongs to one segment or to none (id 0).

    A query counts when its best class is not no-object and scores above ``object_threshold``. Each pixel goes to the
    query with the largest score * mask probability, and is painted where that mask probability is at least 0.5. A
    query that owns less than ``overlap_threshold`` of its own mask is dropped. All stuff of one class is one segment;
    its score is the mean of its queries' scores, weighted by what each painted. None takes a threshold from the config.

    Raises ValueError for a threshold outside 0..1.
    """
    object_threshold = config.object_threshold if object_threshold is None else object_threshold
    overlap_threshold = config.overlap_threshold if overlap_threshold is None else overlap_threshold
    _check_thresholds(object_threshold=object_threshold, overlap_threshold=overlap_threshold)
    categories = categories_for(config)
    probs = _class_probs(output)
    scores, labels = probs.max(-1)
    is_object = labels != config.num_classes
    counts = (scores > object_threshold) & is_object

    results = []
    for i in range(len(batch.original_sizes)):
        queries = counts[i].nonzero()[:, 0]
        owned = _assign_pixels(_Masks.of(output, batch, i, queries), scores[i, queries])

        fates: list[Fate] = ["low score" if above else "no object" for above in is_object[i].tolist()]
        mask_shares: dict[int, float] = {}
        found: list[_Found] = []
        stuff_ids: dict[int, int] = {}
        id_of_owner = np.zeros(max(2 * len(queries), 1), np.int32)  # in its second half: faint pixels, which are void
        for k, query in enumerate(queries.tolist()):
            owned_px, painted_px, mask_px = owned.owned_px[k], owned.painted_px[k], owned.mask_px[k]
            if mask_px == 0:
                fates[query] = "empty mask"
                continue
            mask_shares[query] = min(owned_px / mask_px, 1.0)  # pixels below one half can be owned, too
            if painted_px == 0:
                fates[query] = "lost pixels"
                continue
            if mask_shares[query] < overlap_threshold:
                fates[query] = "small overlap"
                continue
            part = _Found(int(labels[i, query]), float(scores[i, query]), painted_px, (query,))
            segment_id = stuff_ids.get(part.category_id)
            if segment_id is not None:
                fates[query] = "merged"
                found[segment_id - 1] = found[segment_id - 1].merged_with(part)
            else:
                fates[query] = "kept"
                found.append(part)
                segment_id = len(found)
                if not categories[part.category_id].is_thing:
                    stuff_ids[part.category_id] = segment_id
            id_of_owner[k] = segment_id
        ids = id_of_owner[owned.owner]
        segments = _segments(found, ndimage.find_objects(ids), categories)
        outcomes = _outcomes(probs[i], fates, segments, categories, {}, mask_shares)
        results.append(Segmentation(ids, segments, outcomes=outcomes))
    return results


@torch.no_grad()
def semantic(output: PEMOutput, batch: Batch, config: PEMConfig) -> list[Segmentation]:
    """One Segmentation per image, with one segment per class that occurs; no pixel is left out.

    The evidence for class c at a pixel is the sum over queries of p(c) * mask probability, and the class with the most
    evidence wins. A segment's score is the mean over its pixels of the winner's share of all evidence there. Its
    queries are those that give at least a tenth of the evidence for its class inside it, measured in one pixel per
    mask cell, and in any case the strongest one; strongest first.
    """
    categories = categories_for(config)
    all_probs = _class_probs(output)
    probs = all_probs[..., :-1]  # [B, Q, K]

    results = []
    for i in range(len(batch.original_sizes)):
        masks = _Masks.of(output, batch, i)
        # The published semantic models were read with the evidence resized, the panoptic ones with the masks resized.
        # For a photo that was not resized it is the same, and the masks are fewer.
        resize_evidence = config.task == "semantic" and masks.content_size != masks.original_size
        labels, share_sum = _classify_pixels(masks, probs[i], resize_evidence)
        areas_px = np.bincount(labels.ravel(), minlength=config.num_classes)
        queries = _queries_of_classes(masks, probs[i], labels)

        present = areas_px.nonzero()[0].tolist()
        found = [_Found(c, float(share_sum[c] / areas_px[c]), int(areas_px[c]), queries[c]) for c in present]
        id_of_label = np.zeros(config.num_classes, np.int32)
        id_of_label[present] = np.arange(1, len(present) + 1)
        ids = id_of_label[labels]
        segments = _segments(found, ndimage.find_objects(ids), categories)
        drew = {query for segment in segments for query in segment.queries}
        fates: list[Fate] = ["kept" if query in drew else "little evidence" for query in range(probs.shape[1])]
        outcomes = _outcomes(all_probs[i], fates, segments, categories, {}, {})
        results.append(Segmentation(ids, segments, outcomes=outcomes))
    return results


@torch.no_grad()
def instances(
    output: PEMOutput, batch: Batch, config: PEMConfig, top_k: int = 100, score_threshold: float = 0.5
) -> list[Segmentation]:
    """One Segmentation per image, of things only, best score first; they may overlap, so ``masks`` keeps them whole.

    The ``top_k`` (query, class) pairs with the largest class probability are read, as far as the class is a thing.
    A mask is where the logit is positive; the score is the class probability times the mean mask probability inside.
    Instances that score no more than ``score_threshold`` are left out.

    Raises ValueError for a threshold outside 0..1 or ``top_k`` below 1.
    """
    _check_thresholds(score_threshold=score_threshold)
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1.")
    categories = categories_for(config)
    is_thing = np.array([category.is_thing for category in categories])
    probs = _class_probs(output)
    pair_probs = probs[..., :-1].flatten(1)  # [B, Q * K]
    top_probs, top_pairs = pair_probs.topk(min(top_k, pair_probs.shape[1]))

    results = []
    for i in range(len(batch.original_sizes)):
        class_probs, pairs = top_probs[i].cpu().numpy(), top_pairs[i].cpu().numpy()
        # The mean mask probability is at most 1, so a pair that fails here could not pass later.
        passing = is_thing[pairs % config.num_classes] & (class_probs > score_threshold)
        queries, labels = np.divmod(pairs[passing], config.num_classes)
        read, place = np.unique(queries, return_inverse=True)  # a query may pass with several classes
        masks, mean_probs = _cut_out(_Masks.of(output, batch, i, torch.from_numpy(read)))

        scores = class_probs[passing] * mean_probs[place]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > score_threshold]
        masks = masks[place[order]]
        found = [
            _Found(int(labels[n]), float(scores[n]), int(np.count_nonzero(mask)), (int(queries[n]),))
            for n, mask in zip(order, masks, strict=True)
        ]
        boxes = [_box(mask) for mask in masks]
        ids = np.zeros(batch.original_sizes[i], np.int32)
        for n in reversed(range(len(masks))):  # the best is painted last
            ids[masks[n]] = n + 1
        segments = _segments(found, boxes, categories)

        mean_prob_of = dict(zip(read.tolist(), mean_probs.tolist(), strict=True))
        drew = set(queries[order].tolist())
        fates: list[Fate] = []
        for query, label in enumerate(probs[i, :, :-1].argmax(-1).tolist()):
            if query in drew:
                fates.append("kept")
            elif not is_thing[label]:
                fates.append("not a thing")
            elif mean_prob_of.get(query) == 0:
                fates.append("empty mask")
            else:
                fates.append("low score")
        outcomes = _outcomes(probs[i], fates, segments, categories, mean_prob_of, {})
        results.append(Segmentation(ids, segments, masks, outcomes))
    return results


def _class_probs(output: PEMOutput) -> Tensor:
    """[B, Q, K+1]"""
    # In float16 a large logit may have become infinite, and the softmax of two of them is no number.
    return to_float(output.pred_logits).nan_to_num().softmax(-1)


def _outcomes(
    class_probs: Tensor,
    fates: Sequence[Fate],
    segments: tuple[Segment, ...],
    categories: tuple[Category, ...],
    mean_mask_probs: dict[int, float],
    mask_shares: dict[int, float],
) -> tuple[QueryOutcome, ...]:
    """One outcome per query, from the class probabilities [Q, K+1] and what only the reading knows of some queries."""
    segment_ids: dict[int, tuple[int, ...]] = {}
    for segment in segments:
        for query in segment.queries:
            segment_ids[query] = (*segment_ids.get(query, ()), segment.id)
    best_probs, best_classes = class_probs[:, :-1].max(-1)
    columns = zip(best_classes.tolist(), best_probs.tolist(), class_probs[:, -1].tolist(), fates, strict=True)
    return tuple(
        QueryOutcome(
            query=query,
            category_id=category_id,
            label=categories[category_id].name,
            score=prob * mean_mask_probs.get(query, 1.0),
            no_object_score=no_object_prob,
            fate=fate,
            segment_ids=segment_ids.get(query, ()),
            mask_share=mask_shares.get(query),
        )
        for query, (category_id, prob, no_object_prob, fate) in enumerate(columns)
    )


def _check_thresholds(**thresholds: float) -> None:
    for name, value in thresholds.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1.")


# ------------------------------------------------------------------------------------------ from mask cells to pixels


class _Strip(NamedTuple):
    """Some neighbouring rows (or columns) of the original image, and how to get there from mask cells."""

    pixels: slice  # of the original
    cells: slice  # the mask cells that they depend on
    to_input: Tensor  # weights [input pixels, cells]: enlargement to the pixels of the network's input
    to_original: Tensor  # weights [pixels, input pixels]: from the input without its padding to the original
    both: Tensor  # weights [pixels, cells]: the one after the other


@dataclass(frozen=True)
class _Masks:
    """Mask logits of one image, and the sizes that lie between them and the original."""

    logits: Tensor  # [Q, h, w]
    content_size: tuple[int, int]
    original_size: tuple[int, int]

    @classmethod
    def of(cls, output: PEMOutput, batch: Batch, i: int, queries: Tensor | None = None) -> _Masks:
        logits = output.pred_masks[i] if queries is None else output.pred_masks[i][queries]
        # As above; 0 * inf is not what interpolation means either.
        return cls(to_float(logits).nan_to_num(), batch.content_sizes[i], batch.original_sizes[i])

    def tiles(self) -> product[tuple[_Strip, _Strip]]:
        """The rows and the columns of every tile; together they cover the original once."""
        return product(self.strips(0), self.strips(1))

    def bounds(self, rows: list[_Strip], cols: list[_Strip]) -> tuple[Tensor, Tensor]:
        """Between which values the logits of each tile lie, [Q, rows, cols] each: interpolation stays between the cells
        that it reads, give or take its rounding."""

        def per_tile(extreme: Callable[[Tensor, int], Tensor]) -> Tensor:
            per_strip = torch.stack([extreme(self.logits[:, strip.cells], 1) for strip in rows], 1)
            return torch.stack([extreme(per_strip[:, :, strip.cells], 2) for strip in cols], 2)

        least, most = per_tile(torch.amin), per_tile(torch.amax)
        rounding = 1e-5 * (1 + torch.maximum(least.abs(), most.abs()))
        return least - rounding, most + rounding

    def strips(self, axis: int) -> list[_Strip]:
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
                _Strip(slice(start, pixels.stop), slice(window.start, window.stop), to_input, to_original, both)
            )
        return strips

    def window(self, rows: _Strip, cols: _Strip) -> Tensor:
        """The logits that a tile depends on, [Q, cells, cells]."""
        return self.logits[:, rows.cells, cols.cells]

    def tile(self, rows: _Strip, cols: _Strip) -> Tensor:
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


def _best(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same as ``values.max(0)``, the first of equals included, but overwrites ``values``.

    On a CPU it is several times as fast, for each of its steps runs on whole vectors.
    """
    best = values.amax(0)
    countdown = torch.arange(len(values), 0, -1, dtype=values.dtype, device=values.device)
    return best, len(values) - values.eq_(best).mul_(countdown[:, None, None]).amax(0).long()


# ------------------------------------------------------------------------------------------------ what pixels belong to


class _Owned(NamedTuple):
    """How the pixels of one image are shared among k queries."""

    owner: np.ndarray  # int16 [H0, W0]: place of the strongest query, plus k where its mask probability is below 0.5
    owned_px: list[int]  # per query: pixels where it is the strongest
    painted_px: list[int]  # per query: those of them where its mask probability is at least 0.5
    mask_px: list[int]  # per query: all pixels where its mask probability is at least 0.5


def _assign_pixels(masks: _Masks, scores: Tensor) -> _Owned:
    """Who owns which pixels. Most tiles of a large photo lie inside one mask, and nobody looks at their pixels."""
    k = len(scores)
    if k == 0:
        return _Owned(np.zeros(masks.original_size, np.int16), [], [], [])
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
        code = inside.mul_(probs.eq_(probs.amax(0))).amax(0).short().cpu().numpy()
        owner_of_code = np.stack((among + k, among), 1)[::-1].ravel().astype(np.int16)  # of code 1, 2, ...
        owner_px[owner_of_code] += np.bincount(code.ravel(), minlength=len(owner_of_code) + 1)[1:]
        owner_map[rows[row].pixels, cols[col].pixels] = owner_of_code[code - 1]
    painted_px, faint_px = owner_px.reshape(2, k)
    return _Owned(owner_map, (painted_px + faint_px).tolist(), painted_px.tolist(), mask_px.tolist())


def _classify_pixels(masks: _Masks, probs: Tensor, resize_evidence: bool) -> tuple[np.ndarray, np.ndarray]:
    """The class of every pixel, int16 [H0, W0], and per class the sum of the shares that it won with, [K]."""
    labels = np.empty(masks.original_size, np.int16)
    share_sum = torch.zeros(probs.shape[1], dtype=torch.float64, device=probs.device)
    all_classes = probs.sum(1, keepdim=True)
    for rows, cols in masks.tiles():
        contenders = _contenders(masks.window(rows, cols), probs)
        weights = torch.cat((probs[:, contenders], all_classes), 1).T
        if resize_evidence:
            mask_probs = _resize(masks.window(rows, cols), rows.to_input, cols.to_input).sigmoid_()
            evidence = _resize(torch.tensordot(weights, mask_probs, 1), rows.to_original, cols.to_original)
        else:
            evidence = torch.tensordot(weights, masks.tile(rows, cols).sigmoid_(), 1)
        total = evidence[-1].clamp(min=torch.finfo(evidence.dtype).tiny)  # all classes may have underflowed to 0
        best, place = _best(evidence[:-1])
        share = (best / total).clamp_(max=1)  # their sums are rounded differently
        label = contenders[place]
        share_sum += label.flatten().bincount(share.flatten(), minlength=len(share_sum))
        labels[rows.pixels, cols.pixels] = label.cpu().numpy()
    return labels, share_sum.cpu().numpy()


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


def _queries_of_classes(masks: _Masks, probs: Tensor, labels: np.ndarray) -> list[tuple[int, ...]]:
    """For each class the queries that give QUERY_SHARE or more of the evidence for it where it won, strongest first."""
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
    shares, order = (inside * probs.T).sort(dim=1, descending=True)
    shares = shares / shares.sum(1, keepdim=True)
    strong = (shares >= QUERY_SHARE).sum(1).clamp(min=1).tolist()
    return [tuple(queries[:n]) for queries, n in zip(order.tolist(), strong, strict=True)]


def _cut_out(masks: _Masks) -> tuple[np.ndarray, np.ndarray]:
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


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that a mask spans; many times as fast as ndimage.find_objects on a single one."""
    rows, cols = (mask.any(axis).nonzero()[0].tolist() for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


# ------------------------------------------------------------------------------------------------------------ records


class _Found(NamedTuple):
    """A segment before it has a name."""

    category_id: int
    score: float
    area_px: int
    queries: tuple[int, ...]

    def merged_with(self, other: _Found) -> _Found:
        area_px = self.area_px + other.area_px
        score = (self.score * self.area_px + other.score * other.area_px) / area_px
        return _Found(self.category_id, score, area_px, self.queries + other.queries)


def _segments(
    found: list[_Found], boxes: Sequence[tuple[slice, slice]], categories: tuple[Category, ...]
) -> tuple[Segment, ...]:
    """Segments with ids 1, 2, ... in the order found; ``boxes`` holds the rows and columns that each spans."""
    segments = []
    seen: Counter[int] = Counter()
    for segment_id, (one, (rows, cols)) in enumerate(zip(found, boxes, strict=True), 1):
        category = categories[one.category_id]
        segments.append(
            Segment(
                id=segment_id,
                category_id=one.category_id,
                label=category.name,
                is_thing=category.is_thing,
                score=one.score,
                area_px=one.area_px,
                bbox=(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start),
                queries=one.queries,
                color=shade(category.color, seen[one.category_id]),
            )
        )
        seen[one.category_id] += 1
    return tuple(segments)

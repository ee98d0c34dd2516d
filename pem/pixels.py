"""What each pixel of a photo belongs to: to a query (panoptic), to a class (semantic), or to any number of instances.

Each function first decides the tiles that it can from their bounds, and looks at the pixels of the others only. What it
keeps of the whole photo is one label per pixel or, for instances, one bool per pixel and instance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pem.tiles import MASK_STRIDE, Canvas, Masks, Tiles, sigmoid

# A query belongs to a semantic segment when it gives at least this share of the evidence for it.
QUERY_SHARE = 0.1


class Owners(NamedTuple):
    """Which of k queries owns each pixel. It paints those where its own mask probability is at least 0.5."""

    labels: np.ndarray  # int16 [H0, W0]: 2 * q where query q owns and paints the pixel, 1 more where it only owns it
    owned_px: list[int]  # per query
    painted_px: list[int]  # per query
    mask_px: list[int]  # per query: all pixels where its mask probability is at least 0.5, whoever owns them

    def id_map(self, ids: list[int]) -> np.ndarray:
        """The id, of ``ids`` [k], of the query that paints each pixel, int32 [H0, W0]; 0 where none does."""
        id_of_label = np.zeros(2 * len(ids) + 1, np.int32)
        id_of_label[:-1:2] = ids
        return id_of_label[self.labels]


def assign_pixels(masks: Masks, scores: np.ndarray) -> Owners:
    """Each pixel goes to the query with the largest score * mask probability; the first of several equal ones wins."""
    k = len(scores)
    if k == 0:
        return Owners(np.zeros(masks.original_size, np.int16), [], [], [])
    least, most = masks.bounds()  # [k, rows, cols]
    crosses = (least < 0) & (most >= 0)  # its mask may end in the tile
    is_faint, is_full = most < 0, least >= 0
    weakest, strongest = (scores[:, None, None] * sigmoid(bound) for bound in (least, most))
    contends = strongest >= (1 - 1e-5) * weakest.max(0)  # may own a pixel of the tile
    takes_part = contends | crosses
    undecided = (takes_part.sum(0) > 1) | crosses.any(0)
    owner = contends.argmax(0)
    label_of_tile = 2 * owner + np.take_along_axis(is_faint, owner[None], 0)[0]
    mask_px = (is_full * masks.area_px).sum((1, 2))

    def look(tiles: Tiles) -> np.ndarray:
        queries = tiles.contenders
        probs = sigmoid(masks.resized(tiles, queries))
        # As floats, which are added up faster than booleans.
        faint = np.less(probs, 0.5, out=np.empty_like(probs))
        # A mask that does not end in the tile fills it, which is counted already, or lies outside of it.
        ends = crosses[queries, tiles.rows[:, None], tiles.cols[:, None]]
        np.add.at(mask_px, queries[ends], tiles.height * tiles.width - faint.sum((2, 3))[ends].astype(int))
        faint += 2 * queries[:, :, None, None]
        probs *= scores[queries][:, :, None, None]
        return _label_of_largest(probs, faint, 2 * k)

    labels, label_px = _label(masks, 2 * k, label_of_tile, undecided, takes_part, look)
    painted_px, faint_px = label_px.reshape(k, 2).T
    return Owners(labels, (painted_px + faint_px).tolist(), painted_px.tolist(), mask_px.tolist())


def classify_pixels(masks: Masks, probs: np.ndarray, resize_evidence: bool) -> tuple[np.ndarray, np.ndarray]:
    """The class with the most evidence in every pixel, int16 [H0, W0], and how many pixels each class has, [K].

    The evidence for a class is the sum over queries of its probability, ``probs`` [Q, K], times the mask probability.
    With ``resize_evidence`` it is added up in pixels of the network's input and then resized, else the masks are.
    """
    contends, num_classes = _may_win(masks, probs), probs.shape[1]
    queries = np.arange(len(probs))[None]

    def look(tiles: Tiles) -> np.ndarray:
        classes = tiles.contenders
        weights = probs.T[classes]  # [T, n, Q]
        mask_probs = sigmoid((masks.at_input_size if resize_evidence else masks.resized)(tiles, queries))
        evidence = weights @ mask_probs.reshape(*mask_probs.shape[:2], -1)
        evidence = evidence.reshape(*evidence.shape[:2], *mask_probs.shape[2:])
        if resize_evidence:
            evidence = masks.from_input_size(tiles, evidence)
        return _label_of_largest(evidence, classes[:, :, None, None], num_classes)

    class_of_tile, undecided = contends.argmax(0), contends.sum(0) > 1
    return _label(masks, num_classes, class_of_tile, undecided, contends, look, depth=len(probs))


def _may_win(masks: Masks, probs: np.ndarray) -> np.ndarray:
    """Which classes may have the most evidence somewhere in a tile, bool [K, rows, cols]: usually few of K.

    The bounds of the logits bound every mask probability of the tile, and with it how far a class can get ahead of the
    class that is strongest in the worst case.
    """
    least, most = (np.moveaxis(sigmoid(bound), 0, 2) for bound in masks.bounds())  # [rows, cols, Q]
    leaders = (least @ probs).argmax(-1)
    rounding = 1e-4 * (most @ probs.sum(1))  # more than rounding can move either side
    may_win = np.empty((*leaders.shape, probs.shape[1]), bool)
    for leader in np.unique(leaders):
        here = leaders == leader
        lead = probs - probs[:, leader, None]  # over the leader, per unit of mask probability, [Q, K]
        largest_lead = most[here] @ np.maximum(lead, 0) + least[here] @ np.minimum(lead, 0)
        may_win[here] = largest_lead >= -rounding[here, None]
    return np.moveaxis(may_win, 2, 0)


def _label_of_largest(values: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """The label, below ``num_labels``, of the largest of D values, [T, H, W]; the least label of several equal values.

    Overwrites ``values`` [T, D, H, W]. On a CPU it is far faster than argmax: each of its steps runs on whole vectors.
    """
    np.not_equal(values, values.max(1, keepdims=True), out=values)
    values *= num_labels
    values += labels
    return values.min(1)


def _label(
    masks: Masks,
    num_labels: int,
    label_of_tile: np.ndarray,
    undecided: np.ndarray,
    contends: np.ndarray,
    look: Callable[[Tiles], np.ndarray],
    depth: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The label of every pixel, int16 [H0, W0], and how many pixels each label has.

    ``label_of_tile`` [rows, cols] holds for all pixels of a tile, unless the tile is ``undecided`` [rows, cols]. Then
    ``look`` returns the labels of its pixels, [T, height, width]. ``contends``, ``depth``: see ``Masks.portions``.
    """
    canvas = Canvas(label_of_tile.astype(np.int16), masks)
    counts = np.zeros(num_labels, np.int64)
    np.add.at(counts, label_of_tile[~undecided], masks.area_px[~undecided])
    for tiles in masks.portions(undecided, contends, depth):
        labels = look(tiles).astype(np.int64)  # by which NumPy counts
        counts += np.bincount(labels.ravel(), minlength=num_labels)
        canvas.put(tiles, labels)
    return canvas.pixels, counts


def evidence_inside(masks: Masks, probs: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[tuple[int, ...]]]:
    """For each class its share of all evidence where it won, and the queries that give QUERY_SHARE or more of its own
    evidence there, strongest first. The label K means no class. Measured in one pixel per mask cell."""
    rows, cols = (-(-content // MASK_STRIDE) for content in masks.content_size)  # cells without those of the padding
    sampled = labels
    for axis, count in enumerate((rows, cols)):
        original, content = masks.original_size[axis], masks.content_size[axis]
        centres = (np.arange(count) + 0.5) * MASK_STRIDE * original / content
        sampled = sampled.take(centres.astype(int).clip(max=original - 1), axis)
    # The sums over the pixels that each class won: faster than a product of matrices where other work keeps cores busy.
    order = sampled.ravel().argsort(kind="stable")
    won, starts = np.unique(sampled.ravel()[order], return_index=True)
    mask_probs = sigmoid(masks.logits[:, :rows, :cols].reshape(len(probs), rows * cols)[:, order])  # [Q, N]
    inside = np.zeros((probs.shape[1] + 1, len(probs)), mask_probs.dtype)
    inside[won] = np.add.reduceat(mask_probs, starts, axis=1).T
    inside = inside[:-1]  # [K, Q]
    # A class that won in no sampled pixel is judged by the queries' class probabilities alone.
    inside[inside.sum(1) == 0] = 1
    evidence = inside * probs.T
    tiny = np.finfo(evidence.dtype).tiny  # all of it may have underflowed to 0
    own, total = np.maximum(evidence.sum(1), tiny), np.maximum(inside @ probs.sum(1), tiny)
    shares = evidence / own[:, None]
    order = np.argsort(-shares, axis=1, kind="stable").tolist()
    strong = np.maximum((shares >= QUERY_SHARE).sum(1), 1).tolist()
    queries = [tuple(queries[:n]) for queries, n in zip(order, strong, strict=True)]
    return np.minimum(own / total, 1).tolist(), queries


def cut_out(masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Where each mask logit is positive, bool [k, H0, W0], and the mean mask probability there (0 for none), [k]."""
    reaches = masks.bounds()[1] > 0  # may be positive in the tile, [k, rows, cols]
    canvas = Canvas(np.zeros(reaches.shape, bool), masks)
    prob_sum, area_px = np.zeros((2, len(reaches)))
    for tiles in masks.portions(np.any(reaches, 0), reaches):
        queries = tiles.contenders
        logits = masks.resized(tiles, queries)
        positive = logits > 0
        np.add.at(area_px, queries, positive.sum((2, 3)))
        np.add.at(prob_sum, queries, (sigmoid(logits) * positive).sum((2, 3)))
        canvas.put(tiles, positive, queries)
    return canvas.pixels, prob_sum / np.maximum(area_px, 1)

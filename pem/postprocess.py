"""Three readings of one output: semantic, panoptic, instances. None of them runs the network.

Every reading also says what became of each query: its outcomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeAlias

import numpy as np

from pem.arrays import AnyPrediction, Arrays, as_arrays
from pem.categories import Category, categories_for, has_background, shade
from pem.config import PEMConfig
from pem.outputs import Batch, Fate, QueryOutcome, Segment, Segmentation
from pem.packed import bounding_boxes
from pem.pixels import assign_pixels, classify_pixels, cut_out, evidence_inside
from pem.tiles import Masks

P = ParamSpec("P")
Reading: TypeAlias = Callable[Concatenate[AnyPrediction, P], list[Segmentation]]


def of_arrays(read: Callable[Concatenate[Arrays, P], list[Segmentation]]) -> Reading[P]:
    """Lets a reading take the output of a network in torch, on any device, and of an exported one."""

    @wraps(read)
    def run(output: AnyPrediction, *args: P.args, **kwargs: P.kwargs) -> list[Segmentation]:
        return read(as_arrays(output), *args, **kwargs)

    return run


@of_arrays
def panoptic(
    output: Arrays,
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

    Raises ValueError for a threshold outside 0..1, and for an output of another model or batch.

    >>> batch = pem.preprocess(["photo.jpg"], model.config)
    >>> (segmentation,) = pem.panoptic(model(batch.pixels), batch, model.config)
    >>> segmentation.ids.shape  # (height, width) of the photo
    (480, 640)
    """
    object_threshold = config.object_threshold if object_threshold is None else object_threshold
    overlap_threshold = config.overlap_threshold if overlap_threshold is None else overlap_threshold
    _check_thresholds(object_threshold=object_threshold, overlap_threshold=overlap_threshold)
    categories = categories_for(config)
    probs = _class_probs(output, batch, config)
    scores, labels = probs.max(-1), probs.argmax(-1)
    is_object = labels != config.num_classes
    counts = (scores > object_threshold) & is_object

    results = []
    for i in range(len(batch.original_sizes)):
        queries = counts[i].nonzero()[0]
        owners = assign_pixels(Masks.of(output, batch, i, queries), scores[i, queries])

        fates: list[Fate] = ["low score" if above else "no object" for above in is_object[i].tolist()]
        mask_shares: dict[int, float] = {}
        found: list[_Found] = []
        stuff_ids: dict[int, int] = {}
        id_of_owner = [0] * len(queries)
        for k, query in enumerate(queries.tolist()):
            owned_px, painted_px, mask_px = owners.owned_px[k], owners.painted_px[k], owners.mask_px[k]
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
        ids = owners.id_map(id_of_owner)
        segments = _segments(found, bounding_boxes(ids), categories)
        outcomes = _outcomes(probs[i], fates, segments, categories, {}, mask_shares)
        results.append(Segmentation(ids, segments, outcomes=outcomes))
    return results


@of_arrays
def semantic(output: Arrays, batch: Batch, config: PEMConfig) -> list[Segmentation]:
    """One Segmentation per image, with one segment per class that occurs. No pixel is left out.

    The evidence for class c at a pixel is the sum over queries of p(c) * mask probability, and the class with the most
    evidence wins. A segment's score is its class's share of all evidence inside it. Its queries are the strongest one
    and all that give at least a tenth of the evidence for its class there, strongest first. Both are measured in one
    pixel per mask cell.

    A model that knows things only, or a single class, has no class for the background. It is read otherwise: a query
    counts when its best class is not no-object; a pixel that no such query paints, as in a panoptic reading, is left
    out (id 0); and the evidence for no-object counts in the score.

    Raises ValueError for an output of another model or batch.

    >>> batch = pem.preprocess(["photo.jpg"], model.config)
    >>> (segmentation,) = pem.semantic(model(batch.pixels), batch, model.config)
    >>> sum(segment.area_px for segment in segmentation.segments) == 480 * 640
    True
    """
    categories = categories_for(config)
    all_probs = _class_probs(output, batch, config)
    leaves_out = has_background(config)

    results = []
    for i in range(len(batch.original_sizes)):
        counts = (all_probs[i].argmax(-1) != config.num_classes) | (not leaves_out)
        counting = counts.nonzero()[0]
        masks, probs = Masks.of(output, batch, i, counting if leaves_out else None), all_probs[i, counting]
        # The authors resized the evidence of their semantic models, and the masks of their panoptic ones. Both give the
        # same for a photo that was not resized. Then the masks are resized, which takes less time.
        resize_evidence = config.task == "semantic" and masks.content_size != masks.original_size
        labels, areas_px = classify_pixels(masks, probs[:, :-1], resize_evidence)
        if leaves_out:
            is_painted = assign_pixels(masks, probs.max(-1)).id_map([1] * len(counting)) > 0
            labels[~is_painted] = config.num_classes
            areas_px = np.bincount(labels.ravel(), minlength=config.num_classes + 1)[:-1]
        scores, queries = evidence_inside(masks, probs if leaves_out else probs[:, :-1], labels)

        present = areas_px.nonzero()[0].tolist()
        query_of = counting.tolist()
        found = [_Found(c, scores[c], int(areas_px[c]), tuple(query_of[q] for q in queries[c])) for c in present]
        id_of_label = np.zeros(config.num_classes + 1, np.int32)
        id_of_label[present] = np.arange(1, len(present) + 1)
        ids = id_of_label[labels]
        segments = _segments(found, bounding_boxes(ids), categories)
        drew = {query for segment in segments for query in segment.queries}
        fates: list[Fate] = ["kept" if query in drew else "little evidence" for query in range(len(counts))]
        outcomes = _outcomes(all_probs[i], fates, segments, categories, {}, {})
        results.append(Segmentation(ids, segments, outcomes=outcomes))
    return results


@of_arrays
def instances(
    output: Arrays, batch: Batch, config: PEMConfig, top_k: int = 100, score_threshold: float = 0.5
) -> list[Segmentation]:
    """One Segmentation per image, of things only, best score first; they may overlap, so ``masks`` keeps them whole.

    The ``top_k`` (query, class) pairs with the largest class probability are read, if their class is a thing.
    A mask is where the logit is positive; the score is the class probability times the mean mask probability inside.
    Instances that score no more than ``score_threshold`` are left out.

    Raises ValueError for a threshold outside 0..1 or ``top_k`` below 1, and for an output of another model or batch.

    >>> batch = pem.preprocess(["photo.jpg"], model.config)
    >>> (segmentation,) = pem.instances(model(batch.pixels), batch, model.config, score_threshold=0)
    >>> segmentation.masks.shape == (len(segmentation.segments), 480, 640)
    True
    """
    _check_thresholds(score_threshold=score_threshold)
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1.")
    categories = categories_for(config)
    is_thing = np.array([category.is_thing for category in categories])
    probs = _class_probs(output, batch, config)
    pair_probs = probs[..., :-1].reshape(len(probs), -1)  # [B, Q * K]
    top_pairs = np.argsort(-pair_probs, axis=1, kind="stable")[:, :top_k]

    results = []
    for i in range(len(batch.original_sizes)):
        pairs, class_probs = top_pairs[i], pair_probs[i, top_pairs[i]]
        # The mean mask probability is at most 1, so a pair that fails here cannot pass later.
        passing = is_thing[pairs % config.num_classes] & (class_probs > score_threshold)
        queries, labels = np.divmod(pairs[passing], config.num_classes)
        read, place = np.unique(queries, return_inverse=True)  # a query may pass with several classes
        masks, mean_probs = cut_out(Masks.of(output, batch, i, read))

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


# The tasks, under the names that every command and the page use.
READINGS: dict[str, Reading[...]] = {"panoptic": panoptic, "semantic": semantic, "instance": instances}


def _class_probs(output: Arrays, batch: Batch, config: PEMConfig) -> np.ndarray:
    """[B, Q, K+1]"""
    num_images, _, num_logits = output.pred_logits.shape
    if num_logits != config.num_classes + 1:
        raise ValueError(
            f"The output has {num_logits - 1} classes and the config ({config.name}) {config.num_classes}; "
            "pass the config of the model that made it."
        )
    if num_images != len(batch.original_sizes):
        raise ValueError(
            f"The output is of {num_images} images and the batch of {len(batch.original_sizes)}; "
            "pass the batch that it was made from."
        )
    return class_probs(output.pred_logits)


def class_probs(pred_logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, no-object last; the shape stays."""
    # A large logit may be infinite in float16, and the softmax of two such logits is no number.
    logits = np.nan_to_num(pred_logits)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


def _outcomes(
    class_probs: np.ndarray,
    fates: Sequence[Fate],
    segments: tuple[Segment, ...],
    categories: tuple[Category, ...],
    mean_mask_probs: dict[int, float],
    mask_shares: dict[int, float],
) -> tuple[QueryOutcome, ...]:
    """One outcome per query, from the class probabilities [Q, K+1] and from what the reading measured for some."""
    segment_ids: dict[int, tuple[int, ...]] = {}
    for segment in segments:
        for query in segment.queries:
            segment_ids[query] = (*segment_ids.get(query, ()), segment.id)
    best_probs, best_classes = class_probs[:, :-1].max(-1), class_probs[:, :-1].argmax(-1)
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


# ------------------------------------------------------------------------------------------------------------ records


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that one mask spans."""
    rows, cols = (mask.any(axis).nonzero()[0].tolist() for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


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
    """Segments with ids 1, 2, ... in the order found; ``boxes`` holds the rows and columns that each spans.

    The largest thing of a class has the colour of the class, the others a shade of it.
    """
    segments = []
    seen: Counter[int] = Counter()
    colors: dict[_Found, tuple[int, int, int]] = {}
    for one in sorted(found, key=lambda one: -one.area_px):
        colors[one] = shade(categories[one.category_id].color, seen[one.category_id])
        seen[one.category_id] += 1
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
                color=colors[one],
            )
        )
    return tuple(segments)

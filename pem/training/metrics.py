"""Panoptic quality and intersection over union, for images that may be labelled only in part.

In each image only the categories that it labels exhaustively are judged:

- Void pixels do not count.
- A crowd need not be found and is not matched. A prediction of its class that lies mostly in it is no mistake. It
  stays in every union, as in COCO's evaluator.
- A prediction of another category counts neither for nor against that category, which may be there without a label.
  But the part of a judged category that it covers is missed.
- A labelled segment of another category need not be found: to find it would be rewarded, and to invent it never
  punished. Its pixels are still known to be no judged category, like those labelled as none of these.

Both metrics are torchmetrics', so they add up (``merge_state``) and sync across processes. ``update`` takes the target
that ``PanopticDataset.original`` gives, in which machine-named segments are not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from pem.outputs import Segmentation
from pem.training.target import Target

_UNKNOWN = -1


@dataclass(frozen=True)
class Comparison:
    """How P predicted ids match T labelled ids in one image; class K stands for all classes that are not judged."""

    predicted_class: np.ndarray  # int [P]
    labelled_class: np.ndarray  # int [T]; -1 where nobody knows; of crowds the class of their things
    iou: np.ndarray  # [P, T]
    matched: np.ndarray  # bool [P, T]: one class, and more than half of their union in common
    wrong: np.ndarray  # bool [P]: false positives
    missed: np.ndarray  # bool [T]: false negatives


def compare(prediction: Segmentation, target: Target) -> Comparison:
    """Matches segments as panoptic quality does. Raises ValueError when the two differ in size."""
    predicted_class, labelled_class, pairs_px = _count_pairs(prediction, target)
    predicted_px, labelled_px = pairs_px.sum(1), pairs_px.sum(0)
    void_px = pairs_px[:, labelled_class == _UNKNOWN].sum(1)
    is_crowd = np.arange(len(labelled_class)) >= len(labelled_class) - len(target.crowds)
    excused_px = void_px.copy()
    for crowd in {int(labelled_class[c]): c for c in is_crowd.nonzero()[0]}.values():  # of each class the last
        own = predicted_class == labelled_class[crowd]
        excused_px[own] += pairs_px[own, crowd]
    union_px = (predicted_px - void_px)[:, None] + labelled_px - pairs_px
    iou = pairs_px / np.maximum(union_px, 1)

    num_classes = len(target.exhaustive)
    judged = (labelled_class >= 0) & (labelled_class < num_classes) & (labelled_px > 0) & ~is_crowd
    # At most one partner each, since they share more than half of their union.
    matched = (iou > 0.5) & (predicted_class[:, None] == labelled_class) & judged
    missed = judged & ~matched.any(0)
    # As in the benchmark, a prediction that lies mostly on void or in a crowd of its class is no mistake.
    wrong = (predicted_class < num_classes) & ~matched.any(1) & (2 * excused_px <= predicted_px) & (predicted_px > 0)
    return Comparison(predicted_class, labelled_class, iou, matched, wrong, missed)


class PartialPanopticQuality(Metric):
    """PQ, SQ and RQ per class, float64 [K, 3]; nan for a class that was neither labelled nor predicted.

    As in the benchmark (arXiv 1801.00868), a class that is predicted but nowhere labelled has 0, which lowers the mean
    over the classes. torchmetrics' own metric knows no crowds, ignores objects where the prediction is blank, and
    computes in float32.
    """

    full_state_update = False
    iou_sum: Tensor
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    def __init__(self, is_thing: Sequence[bool]) -> None:
        super().__init__()
        self.is_thing = torch.tensor(is_thing, dtype=torch.bool)  # [K]
        for name in ("iou_sum", "true_positives", "false_positives", "false_negatives"):
            dtype = torch.float64 if name == "iou_sum" else torch.int64
            self.add_state(name, torch.zeros(len(is_thing), dtype=dtype), dist_reduce_fx="sum")

    def update(self, prediction: Segmentation, target: Target) -> None:
        """Add one image. Raises ValueError when the two differ in size."""
        found = compare(prediction, target)
        true_class = found.labelled_class[found.matched.nonzero()[1]]
        self.iou_sum += self._per_class(true_class, found.iou[found.matched])
        self.true_positives += self._per_class(true_class)
        self.false_positives += self._per_class(found.predicted_class[found.wrong])
        self.false_negatives += self._per_class(found.labelled_class[found.missed])

    def compute(self) -> Tensor:
        hits = self.true_positives.double()
        segments = hits + (self.false_positives + self.false_negatives) / 2
        segmentation, recognition = self.iou_sum / hits.clamp(min=1), hits / segments  # 0 / 0 is nan
        segmentation = segmentation.where(segments > 0, torch.nan)
        return torch.stack((segmentation * recognition, segmentation, recognition), dim=1)

    @property
    def num_segments(self) -> Tensor:
        """int [K]: how many labelled segments there were to find."""
        return self.true_positives + self.false_negatives

    def _per_class(self, classes: np.ndarray, amounts: np.ndarray | None = None) -> Tensor:
        return torch.from_numpy(np.bincount(classes, amounts, minlength=len(self.iou_sum)))


class PartialIoU(Metric):
    """Intersection over union per class, pooled over all pixels: float64 [K]; nan for a class that was nowhere.

    For a single class, torchmetrics removes the axis of the result.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        size = num_classes + 1  # the last row and column: no judged category
        self.add_state("confusion", torch.zeros(size, size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Segmentation, target: Target) -> None:
        """Add one image. Raises ValueError when the two differ in size."""
        predicted_class, labelled_class, pairs_px = _count_pairs(prediction, target)
        known = labelled_class != _UNKNOWN
        confusion = np.zeros(tuple(self.confusion.shape), dtype=np.int64)
        np.add.at(confusion, (labelled_class[known], predicted_class[:, None]), pairs_px[:, known])
        self.confusion += torch.from_numpy(confusion)

    def compute(self) -> Tensor:
        labelled_px = self.confusion.sum(1)
        union_px = labelled_px + self.confusion.sum(0) - self.confusion.diag()
        iou = self.confusion.diag() / union_px.double()
        iou[labelled_px == 0] = torch.nan
        return iou[:-1]


def _classes_of_target(target: Target) -> np.ndarray:
    """The class of every id: a judged class, K for what is known to be none of them, or unknown."""
    exhaustive, labels = target.exhaustive.cpu().numpy(), torch.cat((target.labels, target.crowds)).cpu().numpy()
    judged = np.where(exhaustive[labels], labels, len(exhaustive))
    return np.concatenate([[_UNKNOWN, len(exhaustive)], judged])


def _classes_of_prediction(prediction: Segmentation, target: Target) -> np.ndarray:
    """The class of every id; K where nothing was recognised, or the labels cannot tell whether it is right."""
    exhaustive = target.exhaustive.cpu().numpy()
    # A reading may have been filtered: an id without a segment is not recognised.
    last = max((segment.id for segment in prediction.segments), default=0)
    classes = np.full(max(last, int(prediction.ids.max())) + 1, len(exhaustive))
    for segment in prediction.segments:
        if exhaustive[segment.category_id]:
            classes[segment.id] = segment.category_id
    return classes


def _count_pairs(prediction: Segmentation, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class of every predicted and of every labelled id, and how many pixels have each pair, int64 [P, T]."""
    rows, cols = prediction.ids, target.ids.cpu().numpy()
    if rows.shape != cols.shape:
        raise ValueError(f"The prediction is {rows.shape} but the target {cols.shape}; compare them at original size.")
    predicted_class, labelled_class = _classes_of_prediction(prediction, target), _classes_of_target(target)
    size = len(predicted_class), len(labelled_class)
    pairs = rows.astype(np.int64) * size[1] + cols
    return predicted_class, labelled_class, np.bincount(pairs.ravel(), minlength=size[0] * size[1]).reshape(size)

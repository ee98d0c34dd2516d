"""How far a model can be trusted, from a labelled split: thresholds, reliability, intervals, worst photos.

``python -m analysis validation --data FOLDER`` runs the network once per photo and reads each output at every pair of
thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import pem
from analysis.arguments import add_shared
from analysis.figures import side_by_side
from analysis.results import RESULTS, markdown_table, save
from analysis.tables import intervals
from analysis.timing import at_precision
from pem.categories import categories_for, shade
from pem.config import PEMConfig
from pem.devices import mixed_precision
from pem.outputs import Segment, Segmentation
from pem.training.data import PanopticDataset, open_split
from pem.training.evaluate import settings
from pem.training.metrics import PartialIoU, PartialPanopticQuality, compare
from pem.training.target import FIRST_SEGMENT, Target

OBJECT_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
OVERLAP_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8)
NUM_BINS = 10
NUM_RESAMPLES = 2_000


@dataclass(frozen=True)
class Judged:
    """What a split shows about a model, photo by photo; I photos, K classes."""

    names: list[str]
    sources: list[str]
    is_thing: np.ndarray  # bool [K]
    # In ascending order; the thresholds of the config are among them.
    object_thresholds: list[float]
    overlap_thresholds: list[float]
    # iou_sum, true positives, false positives, false negatives at each pair of thresholds: [object, overlap, I, 4, K]
    counts: np.ndarray
    # of the semantic reading, in pixels: intersection, union, labelled; [I, 3, K]
    areas: np.ndarray
    # each segment of a panoptic reading that takes every query: its score, and whether it is right; [S, 2]
    segments: np.ndarray


def judge(model: pem.PEM, dataset: PanopticDataset, precision: str | None = None) -> Judged:
    """Runs each photo once, by itself at the size of the model's config, and reads it at every pair of thresholds.

    ``precision`` is one of ``analysis.timing``'s; without it, that in which ``pem.predict`` runs.
    """
    config, device = model.config, next(model.parameters()).device
    is_thing = [bool(category["isthing"]) for category in dataset.categories]
    object_thresholds = sorted({*OBJECT_THRESHOLDS, config.object_threshold})
    overlap_thresholds = sorted({*OVERLAP_THRESHOLDS, config.overlap_threshold})
    thresholds = list(product(object_thresholds, overlap_thresholds))
    counts, areas, segments = [], [], []
    for index in tqdm(range(len(dataset)), desc="judge", unit="photo"):
        image, target = dataset.original(index)
        batch = pem.preprocess([image], config, device)
        with torch.inference_mode(), at_precision(precision, device) if precision else mixed_precision(device):
            output = model(batch.pixels)
        readings = (pem.panoptic(output, batch, config, *pair)[0] for pair in thresholds)
        counts.append([count(reading, target, is_thing) for reading in readings])
        iou = PartialIoU(config.num_classes)
        iou.update(pem.semantic(output, batch, config)[0], target)
        labelled, predicted, both = iou.confusion.sum(1), iou.confusion.sum(0), iou.confusion.diag()
        areas.append(torch.stack((both, labelled + predicted - both, labelled))[:, :-1].numpy())
        segments += scores_and_success(pem.panoptic(output, batch, config, object_threshold=0)[0], target)
    grid = (len(object_thresholds), len(overlap_thresholds))
    return Judged(
        names=[record.file_name for record in dataset.records],
        sources=[record.source for record in dataset.records],
        is_thing=np.array(is_thing),
        object_thresholds=object_thresholds,
        overlap_thresholds=overlap_thresholds,
        counts=np.stack(counts, axis=1).reshape(*grid, len(dataset), 4, config.num_classes),
        areas=np.stack(areas),
        segments=np.array(segments).reshape(-1, 2),
    )


def count(reading: Segmentation, target: Target, is_thing: list[bool]) -> np.ndarray:
    """One photo's iou_sum, true positives, false positives and false negatives: [4, K]."""
    metric = PartialPanopticQuality(is_thing)
    metric.update(reading, target)
    sums: list[Tensor] = [metric.iou_sum, metric.true_positives, metric.false_positives, metric.false_negatives]
    return torch.stack([x.double() for x in sums]).numpy()


def scores_and_success(reading: Segmentation, target: Target) -> list[tuple[float, bool]]:
    """The score of each segment that can be judged, and whether it matches a labelled one."""
    found = compare(reading, target)
    right: np.ndarray = np.any(found.matched, axis=1)
    return [(s.score, bool(right[s.id])) for s in reading.segments if right[s.id] or found.wrong[s.id]]


def panoptic_quality(counts: np.ndarray) -> np.ndarray:
    """[..., 4, K] -> the mean over the classes of which a segment was to be found or was wrong, [...]."""
    iou_sum, true, wrong, missed = np.moveaxis(counts, -2, 0)
    quality = iou_sum / np.maximum(true + wrong / 2 + missed / 2, 1e-12)
    return mean_where(true + wrong + missed > 0, quality)


def mean_iou(areas: np.ndarray) -> np.ndarray:
    """[..., 3, K] -> the mean over the classes that are labelled, [...]."""
    both, union, labelled = np.moveaxis(areas, -2, 0)
    return mean_where(labelled > 0, both / np.maximum(union, 1))


def mean_where(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the chosen values along the last axis; nan where none is."""
    with np.errstate(invalid="ignore"):
        return np.sum(values, axis=-1, where=chosen) / chosen.sum(-1)


@dataclass(frozen=True)
class Score:
    """A score of a split, and of ``NUM_RESAMPLES`` bootstrap samples of its photos (nan where nothing is to judge).

    Splits of as many photos are drawn alike, so that the scores of two models can be subtracted sample by sample.
    """

    value: float
    resampled: np.ndarray
    least: float = 0.0

    @classmethod
    def of(cls, per_photo: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> Score:
        """``score`` of the sum over photos [I, ...]."""
        number = len(per_photo)
        times_drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), NUM_RESAMPLES)
        return cls(float(score(per_photo.sum(0))), score(np.tensordot(times_drawn, per_photo, axes=1)))

    def __sub__(self, other: Score) -> Score:
        return Score(self.value - other.value, self.resampled - other.resampled, least=-1.0)

    def interval(self) -> dict[str, float | None]:
        """The value with its 95 % interval; None where there is nothing to judge.

        The basic bootstrap interval: a sample lacks some of the photos that show a rare class, which lowers its mean
        over the classes, and an interval of plain percentiles as much.
        """
        judged = self.resampled[~np.isnan(self.resampled)]
        if not len(judged):
            return dict.fromkeys(("value", "low", "high"))
        low, high = np.clip(2 * self.value - np.percentile(judged, (97.5, 2.5)), self.least, 1)
        return {"value": self.value, "low": float(low), "high": float(high)}


def report(judged: Judged, config: PEMConfig) -> dict[str, Any]:
    """What ``judge`` found, ready for JSON; scores are fractions."""
    i = judged.object_thresholds.index(config.object_threshold)
    j = judged.overlap_thresholds.index(config.overlap_threshold)
    at_default = judged.counts[i, j]
    thresholds_pq = panoptic_quality(judged.counts.sum(2))
    if np.isnan(thresholds_pq).any():
        raise ValueError("No segment of this split can be judged: none is of a class that its photo labels completely.")
    sources = np.array(judged.sources)
    score, right = judged.segments.T
    bin_of = np.minimum((score * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [
        {"segments": int(inside.sum()), "score": float(score[inside].mean()), "right": float(right[inside].mean())}
        for inside in (bin_of == n for n in range(NUM_BINS))
        if inside.any()
    ]
    gaps = sum(b["segments"] * abs(b["score"] - b["right"]) for b in bins) / max(len(score), 1)
    quality = panoptic_quality(at_default)
    faults = at_default[:, 2:].sum((1, 2))  # of photos with equal quality, more of them are worse
    worst = [n for n in np.lexsort((-faults, quality)).tolist() if not np.isnan(quality[n])][:10]
    return {
        "thresholds": {
            "object": judged.object_thresholds,
            "overlap": judged.overlap_thresholds,
            "pq": thresholds_pq.round(5).tolist(),
        },
        "reliability": {"bins": bins, "expected_calibration_error": gaps},
        "per_source": {
            source: {
                "photos": int((sources == source).sum()),
                "pq": Score.of(at_default[sources == source], panoptic_quality).interval(),
                "pq_things": Score.of(at_default[sources == source][..., judged.is_thing], panoptic_quality).interval(),
                "pq_stuff": Score.of(at_default[sources == source][..., ~judged.is_thing], panoptic_quality).interval(),
                "miou": Score.of(judged.areas[sources == source], mean_iou).interval(),
            }
            for source in sorted(set(judged.sources))
        },
        "worst": [{"photo": judged.names[n], "source": judged.sources[n], "pq": float(quality[n])} for n in worst],
    }


def truth(target: Target, config: PEMConfig) -> Segmentation:
    """What people labelled, as a reading; void, crowds and "none of these" are 0."""
    categories = categories_for(config)
    ids = (target.ids.numpy().astype(np.int32) - FIRST_SEGMENT + 1).clip(min=0)
    ids[ids > len(target.labels)] = 0
    segments: list[Segment] = []
    for n, label in enumerate(target.labels.tolist()):
        seen = sum(segment.category_id == label for segment in segments)
        category = categories[label]
        color = shade(category.color, seen)
        area_px = int((ids == n + 1).sum())
        segments.append(Segment(n + 1, label, category.name, category.is_thing, 1.0, area_px, (0, 0, 0, 0), (), color))
    return Segmentation(ids, tuple(segments))


def gallery(model: pem.PEM, dataset: PanopticDataset, names: list[str], folder: Path) -> None:
    """One PNG per photo: the photo, what people labelled, what the model says. Not to be published with the project."""
    folder.mkdir(parents=True, exist_ok=True)
    index_of = {record.file_name: n for n, record in enumerate(dataset.records)}
    for rank, name in enumerate(names, 1):
        image, target = dataset.original(index_of[name])
        labelled, found = truth(target, model.config), pem.predict(model, image)
        side_by_side(image, name, labelled, found).savefig(folder / f"{rank:02}_{Path(name).stem}.png", dpi=70)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="default", help="what pem.load_model takes: a name, a file or a Hub id")
    parser.add_argument("--config", help="the preset that a published checkpoint, --weights, belongs to")
    parser.add_argument("--split", default="val")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="draw the ten worst photos into this folder")
    add_shared(parser, data=None, device="auto", out=RESULTS / "validation.json")


def run(args: argparse.Namespace) -> None:
    """Judges a model, and prints and keeps the report."""
    published = args.config and args.weights
    model = pem.load_model(args.config or args.weights, device=args.device, weights=published)
    dataset = open_split(args.data, args.split, model.config)
    result = report(judge(model, dataset), model.config)
    save({"conditions": settings(model, model.config) | {"split": args.split}, **result}, args.out)

    table = result["thresholds"]
    print("PQ in %, by object threshold (down) and overlap threshold (across)")
    overlaps = [str(overlap) for overlap in table["overlap"]]
    print(
        markdown_table(
            {"": threshold} | dict(zip(overlaps, [100 * quality for quality in row]))
            for threshold, row in zip(table["object"], table["pq"])
        )
    )
    print(f"expected calibration error: {result['reliability']['expected_calibration_error']:.3f}\n")
    print(intervals(result))
    print(markdown_table(result["worst"]))
    if args.gallery:
        gallery(model, dataset, [entry["photo"] for entry in result["worst"]], args.gallery)

"""How good a model is on a labelled split: ``python -m pem.training.evaluate --weights default --data FOLDER``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see pem/cores.py

import torch
from tqdm import tqdm

from pem.conditions import conditions
from pem.config import PEMConfig
from pem.devices import use_given_cores
from pem.errors import is_out_of_memory
from pem.exported import ExportedPEM
from pem.load import load_model
from pem.outputs import Segmentation
from pem.postprocess import panoptic, semantic
from pem.preprocess import preprocess_arrays
from pem.run import run
from pem.terminal import INTERRUPTED, escape_missing_letters, leave_to_reader
from pem.training.data import PanopticDataset, open_split
from pem.training.metrics import PartialIoU, PartialPanopticQuality
from pem.training.target import VOID, Target

if TYPE_CHECKING:
    from pem.run import AnyPEM

_log = logging.getLogger("pem")


class _Scores:
    """Both metrics over some of the images."""

    def __init__(self, is_thing: list[bool]) -> None:
        self.panoptic = PartialPanopticQuality(is_thing)
        self.iou = PartialIoU(len(is_thing))
        self.num_images = 0
        self.void_px = self.num_px = 0

    def update(self, panoptic_reading: Segmentation, semantic_reading: Segmentation, target: Target) -> None:
        self.panoptic.update(panoptic_reading, target)
        self.iou.update(semantic_reading, target)
        self.num_images += 1
        self.void_px += int((target.ids == VOID).sum())
        self.num_px += target.ids.numel()

    def summary(self, names: list[str]) -> dict[str, Any]:
        """Means over the classes, and each class; None where there is nothing to judge."""
        is_thing = self.panoptic.is_thing
        quality, iou = self.panoptic.compute(), self.iou.compute().reshape(-1)  # torchmetrics squeezes one class
        classes = zip(names, is_thing.tolist(), self.panoptic.num_segments.tolist(), quality, iou, strict=True)
        return {
            "images": self.num_images,
            "void_fraction": round(self.void_px / self.num_px, 5),
            "miou": _number(iou.nanmean()),
            **{key: _number(score) for key, score in zip(("pq", "sq", "rq"), quality.nanmean(0), strict=True)},
            "pq_things": _number(quality[is_thing, 0].nanmean()),
            "pq_stuff": _number(quality[~is_thing, 0].nanmean()),
            "per_class": [
                {
                    "category": name,
                    "is_thing": thing,
                    "segments": segments,
                    "iou": _number(class_iou),
                    **{key: _number(score) for key, score in zip(("pq", "sq", "rq"), scores, strict=True)},
                }
                for name, thing, segments, scores, class_iou in classes
            ],
        }


def evaluate(model: AnyPEM, config: PEMConfig, dataset: PanopticDataset, limit: int | None = None) -> dict[str, Any]:
    """Score a model on the images of a split, or on ``limit`` of them at even distances.

    Each image is run once, alone and at the preset's size. At the original size, PQ, SQ and RQ judge its panoptic
    reading, and IoU its semantic one. The result, ready for JSON, holds ``conditions``, ``overall`` and the same for
    each data source in ``per_source``. Scores are fractions 0..1, pooled over the images, then averaged over the
    classes that occur in the labels (for PQ, SQ and RQ also in predictions); None where no class does.
    ``void_fraction`` is the share of pixels that nobody labelled. Raises ValueError for a model in training mode.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    is_thing = [bool(category["isthing"]) for category in dataset.categories]
    overall = _Scores(is_thing)
    per_source: dict[str, _Scores] = {}
    for step in tqdm(range(count), desc="evaluate", unit="image"):
        index = step * len(dataset) // count
        image, target = dataset.original(index)
        batch = preprocess_arrays([image], config)
        output = run(model, batch.pixels)
        readings = panoptic(output, batch, config)[0], semantic(output, batch, config)[0]
        for scores in (overall, per_source.setdefault(dataset.records[index].source, _Scores(is_thing))):
            scores.update(*readings, target)

    names = [category["name"] for category in dataset.categories]
    summary = overall.summary(names)
    if summary["pq"] is None:
        what = "Nothing" if summary["miou"] is None else "No segment"
        _log.warning(
            f"{what} was judged: these images have no segment to find, crowds aside, and where they label a class "
            "completely, the model invented none."
        )
    elif summary["void_fraction"] > 0.3:
        _log.warning(
            f"{100 * summary['void_fraction']:.0f} % of the pixels are void (id 0): whatever a model paints there does "
            "not count, so the scores are too high; label the rest, too."
        )
    return {
        "conditions": settings(model, config) | {"images": count},
        "overall": summary,
        "per_source": {source: scores.summary(names) for source, scores in sorted(per_source.items())},
    }


def settings(model: AnyPEM, config: PEMConfig) -> dict[str, Any]:
    """What scores depend on besides the weights and the photos, to be stored with them."""
    if isinstance(model, ExportedPEM):
        runtime, device, precision = model.runtime, torch.device("cpu"), model.precision
    else:
        parameter = next(model.parameters())
        runtime, device, precision = "torch", parameter.device, str(parameter.dtype).removeprefix("torch.")
        if parameter.is_cuda and precision == "float32":
            precision = "float16"  # where mixed_precision is autocast
    return conditions(device, precision) | {
        "runtime": runtime,
        "model": config.name,
        "trained": config.trained,
        "num_classes": config.num_classes,
        "attention": config.attention,
        "batch": 1,
        "short_side_px": config.short_side_px,
        "max_long_side_px": config.max_long_side_px,
        "object_threshold": config.object_threshold,
        "overlap_threshold": config.overlap_threshold,
    }


def format_table(result: dict[str, Any]) -> str:
    """The scores in percent: of all images, of each data source, then of each class that has a score."""
    keys: tuple[str, ...] = ("miou", "pq", "sq", "rq", "pq_things", "pq_stuff")
    lines = [f"{'':<16}{'images':>8}" + "".join(f"{key:>10}" for key in keys)]
    for name, scores in (("all", result["overall"]), *result["per_source"].items()):
        lines.append(f"{name or 'unnamed':<16}{scores['images']:>8}" + "".join(_percent(scores[key]) for key in keys))
    keys = ("iou", "pq", "sq", "rq")
    lines += ["", f"{'':<16}{'segments':>8}" + "".join(f"{key:>10}" for key in keys)]
    for scores in result["overall"]["per_class"]:
        if scores["iou"] is not None or scores["pq"] is not None:
            lines.append(
                f"{scores['category']:<16}{scores['segments']:>8}" + "".join(_percent(scores[key]) for key in keys)
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pem.training.evaluate", description=__doc__)
    parser.add_argument("--weights", help="what pem.load_model takes: a name, a file or a Hub id; default: default")
    parser.add_argument("--config", help="the preset that a published checkpoint, --weights, belongs to")
    parser.add_argument("--data", required=True, help="folder with panoptic_SPLIT.json and the images or their tars")
    parser.add_argument("--split", default="val")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file")
    parser.add_argument("--limit", type=int, help="only so many images, at even distances")
    options = parser.parse_args(arguments)
    use_given_cores()
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; it must be at least 1.")
    labels = Path(options.data) / f"panoptic_{options.split}.json"
    if options.out and options.out.resolve() == labels.resolve():
        parser.error(f"--out is {options.out}, the labels themselves; give another file.")
    if options.out and (options.out.suffix.lower() != ".json" or options.out.is_dir()):
        parser.error(f"--out is {options.out}; give the name of a .json file.")
    escape_missing_letters()
    try:
        with _place_for(options.out):
            _run(options)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(leave_to_reader())
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit("There is not enough memory to run this model; use another --device or a smaller model.")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


@contextmanager
def _place_for(path: Path | None) -> Iterator[None]:
    """Checks before the work that the file can be written; removes an empty file if there is no result."""
    is_new = path is not None and not path.exists()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}); give another --out.") from error
    try:
        yield
    finally:
        if path is not None and is_new and path.stat().st_size == 0:
            path.unlink()


def _run(options: argparse.Namespace) -> None:
    published = options.weights if options.config else None
    model = load_model(options.config or options.weights or "default", device=options.device, weights=published)
    dataset = open_split(options.data, options.split, model.config)
    result = evaluate(model, model.config, dataset, options.limit)
    result["conditions"]["split"] = options.split
    try:
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        sentence = f"{options.out} cannot be written ({error.strerror}); the scores are above, make room for the file."
        raise OSError(sentence) from error
    finally:
        print(format_table(result), flush=True)


def _number(value: torch.Tensor) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else round(float(value), 5)


def _percent(score: float | None) -> str:
    return f"{'-':>10}" if score is None else f"{100 * score:>10.1f}"


if __name__ == "__main__":
    main()

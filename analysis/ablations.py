"""What each part of PEM is worth: variants trained alike for a short time, and what each costs.

``python -m analysis ablations --data FOLDER --runs FOLDER`` trains them one after the other; started again, it goes on
where it was stopped. All see the same photos in every step and share the schedule and the frozen backbone of
``--start``, so that a short run trains only what differs. All but "louder prototypes" start as published, with
``prototype_gain`` 1. Scores after so few steps rank the parts; they do not show how good PEM can be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pem
from analysis.arguments import add_shared, natural
from analysis.counter import mac_counter
from analysis.latency import model_workload
from analysis.results import RESULTS, Report
from analysis.timing import measure_peak_mib, measure_rounds, percentiles
from analysis.validation import Score, judge, mean_iou, panoptic_quality
from pem.conditions import conditions
from pem.config import PEMConfig
from pem.devices import has_bfloat16
from pem.pixel_decoder import DeformableUpsample
from pem.training.config import TrainingConfig, get_training_config
from pem.training.data import PanopticDataset, open_split
from pem.training.run import train
from pem.training.start import raise_prototypes
from pem.training.trainer import Trainer


class Unmodulated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()  # the top-down path adds to what it gets


def switch_modulation_off(model: pem.PEM) -> None:
    model.pixel_decoder.modulation = nn.ModuleList(Unmodulated() for _ in model.pixel_decoder.modulation)


class PlainUpsample(DeformableUpsample):
    """With a plain 3x3 convolution instead of a deformable one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        with torch.no_grad():
            self.convolution.weight.copy_(self.weight)
        del self.offset, self.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = self.norm(self.convolution(x)).relu()
        return level, self.upsample_norm(self.upsample(level)).relu_()


def take_plain_convolutions(model: pem.PEM) -> None:
    width = model.config.conv_dim
    model.pixel_decoder.upsample = nn.ModuleList(PlainUpsample(width) for _ in model.pixel_decoder.upsample)


@dataclass(frozen=True)
class Variant:
    config: dict[str, Any] = field(default_factory=dict)
    change: Callable[[pem.PEM], None] = lambda model: None


VARIANTS = {
    "PEM": Variant(),
    "masked attention": Variant({"attention": "masked"}),
    "no context self-modulation": Variant(change=switch_modulation_off),
    "plain convolution": Variant(change=take_plain_convolutions),
    "reference's empty-mask rule": Variant({"empty_mask": "reference"}),
    "3 layers": Variant({"num_layers": 3}),
    "100 queries": Variant({"num_queries": 100}),
    "louder prototypes": Variant(change=partial(raise_prototypes, gain=8.0)),
}


def build(variant: Variant, base: PEMConfig, backbone: dict[str, Tensor], seed: int) -> pem.PEM:
    """The variant with the weights of ``backbone`` there, and random ones elsewhere."""
    torch.manual_seed(seed)
    model = pem.build_model(dataclasses.replace(base, **variant.config))
    variant.change(model)
    model.backbone.load_state_dict(backbone)
    return model.eval()  # also the parts that were replaced


def train_variant(
    model: pem.PEM, schedule: TrainingConfig, dataset: PanopticDataset, folder: Path, seed: int
) -> pem.PEM:
    """Trains to the end of the schedule, from the folder's checkpoint if there is one; returns the averaged model."""
    folder.mkdir(parents=True, exist_ok=True)
    cpu = torch.device("cpu")
    trainer = Trainer(model.train(), schedule, cpu, autocast=has_bfloat16(cpu), seed=seed)
    if (folder / "checkpoint.pt").is_file():
        trainer.load(folder / "checkpoint.pt")
    if trainer.step < trainer.config.iterations:
        (folder / "scores.json").unlink(missing_ok=True)
        train(trainer, dataset, folder)
    return trainer.best_model.eval()


def kept_scores(model: pem.PEM, dataset: PanopticDataset, path: Path) -> dict[str, float]:
    """``scores``, made once per commit and data: they take minutes."""
    of = {"commit": conditions("cpu")["commit"], "photos": str(dataset.records[0].image_path.parent)}
    if path.is_file() and (kept := json.loads(path.read_text(encoding="utf-8"))).get("of") == of:
        return kept["scores"]
    found = in_percent(scores(model, dataset))
    path.write_text(json.dumps({"of": of, "scores": found}), encoding="utf-8")
    return found


def scores(model: pem.PEM, dataset: PanopticDataset, precision: str | None = None) -> dict[str, Score]:
    """``miou`` and ``pq``, the latter at the pair of thresholds that is best for the model."""
    judged = judge(model, dataset, precision)
    quality = panoptic_quality(judged.counts.sum(2))
    best = divmod(int(quality.argmax()), quality.shape[1])
    return {"miou": Score.of(judged.areas, mean_iou), "pq": Score.of(judged.counts[best], panoptic_quality)}


def in_percent(found: dict[str, Score]) -> dict[str, float]:
    """Each score by its name, with the ends of its 95 % interval as NAME_low and NAME_high."""
    return {
        name if key == "value" else f"{name}_{key}": 100 * value
        for name, score in found.items()
        for key, value in score.interval().items()
        if value is not None
    }


def costs(
    networks: dict[str, tuple[pem.PEM, str]], size: tuple[int, int], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Parameters, and for one photo MACs, median time and peak memory; each in its precision, all in turns."""
    workloads = {
        name: model_workload(model, size, precision=precision) for name, (model, precision) in networks.items()
    }
    times_ms, _ = measure_rounds(workloads, device, repeats)
    found = {}
    for name, (model, _) in networks.items():
        with mac_counter() as counter:
            _ = model(torch.zeros(1, 3, *size, device=device)).pred_masks
        found[name] = {
            "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
            "gmacs": counter.total().gmacs,
            "median_ms": percentiles(times_ms[name].sum(axis=1))[0],
            "peak_mib": max(measure_peak_mib(workloads[name], device)),
        }
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", required=True, type=Path, help="folder for the checkpoints and logs of the runs")
    parser.add_argument("--start", default="default", help="whose backbone they share (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--iterations", type=natural, default=1_000)
    parser.add_argument(
        "--crop", type=natural, default=192, help="side of the training crops (default: %(default)s px)"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_shared(parser, data=None, size=(288, 384), repeats=10, out=RESULTS / "ablations.json")


def run(args: argparse.Namespace) -> None:
    """Trains and judges what is not trained and judged yet: a row for each variant."""
    report = Report("variant", "miou", "pq", "median_ms", "peak_mib", "gmacs", "parameters_m", out=args.out)
    start = pem.load_model(args.start, device="cpu", fast=False)
    recipe = get_training_config("default")
    # As published, where the default recipe has changed since the stored run.
    schedule = dataclasses.replace(
        recipe,
        base_lr=4e-4,
        copy_paste=0.0,
        prototype_gain=1.0,
        match_points=recipe.num_points,
        match_class_weight=recipe.class_weight,
        iterations=args.iterations,
        crop_px=(args.crop, args.crop),
        short_sides_px=tuple(range(args.crop - 32, args.crop + 129, 32)),
        backbone_lr_factor=0.0,
    )
    base = dataclasses.replace(start.config, attention="prototype", empty_mask="release")
    train_split = open_split(args.data, "train", base, schedule)
    val_split = open_split(args.data, "val", base)
    backbone = start.backbone.state_dict()

    models, found = {}, {}
    for name in args.variants:
        print(name, flush=True)
        model = build(VARIANTS[name], base, backbone, args.seed)
        folder = args.runs / name.replace(" ", "_").replace("'", "")
        models[name] = train_variant(model, schedule, train_split, folder, args.seed)
        found[name] = kept_scores(models[name], val_split, folder / "scores.json")
        print({key: round(value, 1) for key, value in found[name].items()}, flush=True)
    in_float32 = {name: (model, "float32") for name, model in models.items()}
    cost = costs(in_float32, args.size, args.repeats, torch.device("cpu"))
    for name in models:
        report.add({"variant": name} | found[name] | cost[name])
    size = "x".join(map(str, args.size))
    report.conditions |= {"batch": 1, "size": size, "training": dataclasses.asdict(schedule)}
    report.save("ablations")

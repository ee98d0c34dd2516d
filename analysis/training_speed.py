"""Photos per second in training: the shortcuts of this project against the straightforward way, in one run.

Straightforward means torchvision's deformable convolution, seven full-size mask products with gradient, mask losses on
every cell of the matched masks, and float32. Each variant adds one shortcut to those before it. The variants take
turns, so that a busy machine slows all of them. Photos and labels are synthetic: their content does not change the
cost.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import pem
from analysis.arguments import add_shared, natural
from analysis.results import Report
from analysis.timing import measure_rounds, whole
from pem.outputs import PEMOutput
from pem.preprocess import check_size
from pem.training.config import get_training_config
from pem.training.criterion import Criterion
from pem.training.matcher import match, sample_nearest
from pem.training.target import FIRST_SEGMENT, Target
from pem.training.trainer import Trainer

SEGMENTS_PER_PHOTO = 7  # the mean of the everyday photos


class FullSizeCriterion(Criterion):
    """The losses on every cell of full-size masks: the first way that comes to mind."""

    def forward(self, output: PEMOutput, targets: list[Target]) -> dict[str, Tensor]:
        predictions = [*output.aux_outputs, output]
        matches, unlabelled = match(predictions, targets, dataclasses.replace(self.config, match_points=12_544))
        masks = torch.stack([p.pred_masks for p in predictions])  # [L, B, Q, h, w]
        mask_loss = dice_loss = masks.new_zeros(())
        for b, (target, pairs) in enumerate(zip(targets, matches, strict=True)):
            logits = masks[pairs.prediction, b, pairs.query]
            rows, cols = ((torch.arange(n) + 0.5) / n for n in logits.shape[1:])
            ids = sample_nearest(target.ids, torch.cartesian_prod(rows, cols)).view(logits.shape[1:])
            inside = (ids == pairs.segment[:, None, None] + FIRST_SEGMENT).float()
            probs = logits.sigmoid()
            mask_loss = (
                mask_loss + F.binary_cross_entropy_with_logits(logits, inside, reduction="none").mean((1, 2)).sum()
            )
            overlap, total = (probs * inside).sum((1, 2)), probs.sum((1, 2)) + inside.sum((1, 2))
            dice_loss = dice_loss + (1 - (2 * overlap + 1) / (total + 1)).sum()
        return {
            "class": self.class_loss(predictions, targets, matches, unlabelled),
            "mask": mask_loss,
            "dice": dice_loss,
            "semantic": self.semantic_loss(output.mask_features, targets),
        }


def make_batch(batch_size: int, size_px: int, num_classes: int) -> tuple[Tensor, list[Target]]:
    """Noise, labelled in vertical stripes."""
    images = torch.randint(0, 256, (batch_size, 3, size_px, size_px), dtype=torch.uint8)
    stripe = torch.arange(size_px) * SEGMENTS_PER_PHOTO // size_px + FIRST_SEGMENT
    ids = stripe.expand(size_px, -1).short().contiguous()
    labels = torch.arange(SEGMENTS_PER_PHOTO)
    target = Target(ids, labels, torch.ones(len(labels)), torch.ones(num_classes, dtype=torch.bool))
    return images, [target] * batch_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=natural, default=256, help="side of the photos in pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=natural, default=8)
    add_shared(parser, repeats=5, out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each variant, which adds one shortcut to those before it."""
    check_size((args.size, args.size))
    config, training = pem.get_config("default"), get_training_config("default")
    images, targets = make_batch(args.batch_size, args.size, config.num_classes)

    def trainer(autocast: bool, full_size: bool, plain_conv: bool = False) -> Trainer:
        torch.manual_seed(0)
        with patch("pem.training.trainer.accelerate_training") if plain_conv else contextlib.nullcontext():
            made = Trainer(pem.PEM(config), training, torch.device("cpu"), autocast, seed=0)
        if full_size:
            plain = FullSizeCriterion(config, training)
            plain.load_state_dict(made.core.criterion.state_dict())
            made.core.criterion = plain
        return made

    with patch("pem.training.trainer.keep_slow_gradients_in_float32"):
        all_in_bfloat16 = trainer(True, False)
    variants = {
        "straightforward": trainer(False, True, plain_conv=True),
        "+ deformable convolution in plain PyTorch": trainer(False, True),
        "+ losses on points, masks only where matched": trainer(False, False),
        "+ bfloat16 autocast": all_in_bfloat16,
        "+ depthwise convolutions in float32 where faster": trainer(True, False),
    }

    report = Report("variant", "photos_per_s", "speedup", out=args.out)
    workloads = {name: whole(partial(made.train_step, images, targets)) for name, made in variants.items()}
    times_ms, _ = measure_rounds(workloads, torch.device("cpu"), args.repeats, max_warmup=1)
    for name, ms in times_ms.items():
        report.add(
            {
                "variant": name,
                "photos_per_s": round(args.batch_size / float(np.median(ms)) * 1e3, 2),
                "step_ms": np.sort(ms[:, 0]).round().astype(int).tolist(),
                "speedup": round(float(np.median(times_ms["straightforward"] / ms)), 2),
            }
        )
    report.save("training_speed", size_px=args.size, batch=args.batch_size, backbone=config.backbone)

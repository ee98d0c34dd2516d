"""A training run small enough to be begun many times in a test: its configs, its data, and the command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pem
import pem.training.train as command
from pem.training.config import get_training_config

CONFIG = dataclasses.replace(
    pem.get_config("default"),
    backbone="mobilenetv2_050",
    num_classes=3,
    num_queries=6,
    hidden_dim=32,
    conv_dim=16,
    ffn_dim=32,
    num_layers=3,
)
TRAINING = dataclasses.replace(
    get_training_config("default"),
    iterations=6,
    batch_size=2,
    base_lr=2e-3,
    backbone_lr_factor=1.0,
    warmup_iterations=0,
    clip_norm=1.0,
    num_points=10_000,
    crop_px=(64, 64),
    short_sides_px=(64, 80),
)


def write_data(folder: Path, is_thing: tuple[int, ...] = (1, 1, 1), size: tuple[int, int] = (80, 96)) -> None:
    """Four photos: coloured noise with one square each; the third class is on the last photo only. With a single
    class there is nothing but squares. ``is_thing`` has one entry per class."""
    (folder / "train").mkdir(parents=True)
    (folder / "panoptic_train").mkdir()
    generator = np.random.default_rng(0)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    classes = range(1, len(is_thing) + 1)
    for i in range(4):
        pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        panoptic = np.zeros((*size, 3), dtype=np.uint8)
        panoptic[..., 0] = 2 if len(classes) > 1 else 0
        panoptic[20:60, 10 * i : 40 + 10 * i, 0] = 3
        Image.fromarray(pixels).save(folder / "train" / f"{i}.jpg")
        Image.fromarray(panoptic).save(folder / "panoptic_train" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.jpg", "width": size[1], "height": size[0]})
        segments = [{"id": 3, "category_id": classes[-1] if i == 3 else classes[-2:][0]}]
        if len(classes) > 1:
            segments.append({"id": 2, "category_id": 1})
        content["annotations"].append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    content["categories"] = [
        {"id": i, "name": f"class {i}", "isthing": isthing} for i, isthing in zip(classes, is_thing)
    ]
    (folder / "panoptic_train.json").write_text(json.dumps(content), encoding="utf-8")


def run_command(data: Path, out: Path, *options: str) -> None:
    """``python -m pem.training.train`` in this process, on a CPU, for two steps unless told otherwise."""
    command.get_config = lambda name: CONFIG if name == "default" else pem.get_config(name)
    command.get_training_config = lambda name: TRAINING if name == "default" else get_training_config(name)
    sys.argv = ["train", "--data", str(data), "--out", str(out), "--device", "cpu", "--workers", "0", "--float32"]
    sys.argv += ["--random-backbone", "--iterations", "2", *options]
    command.main()

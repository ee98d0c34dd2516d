from __future__ import annotations

import dataclasses

import pytest

from pem.config import PRESETS, get_config
from pem.training.config import TrainingConfig, get_training_config


def test_the_presets_are_the_published_models_and_the_default() -> None:
    published = {
        f"{dataset}-{task}-{backbone}"
        for dataset in ("cityscapes", "ade20k")
        for task in ("panoptic", "semantic")
        for backbone in ("r50", "stdc1", "stdc2")
    }
    assert set(PRESETS) == published | {"default"}
    assert all(config.name == name for name, config in PRESETS.items())


@pytest.mark.parametrize(
    ("dataset", "task", "num_classes", "base_lr", "end_lr", "iterations", "crop", "short_side", "long_side"),
    [
        ("cityscapes", "panoptic", 19, 7e-4, 0, 90_000, (512, 1024), 1024, 2048),
        ("cityscapes", "semantic", 19, 7e-4, 0, 90_000, (512, 1024), 1024, 2048),
        ("ade20k", "panoptic", 150, 4e-4, 1e-6, 160_000, (640, 640), 640, 2560),
        ("ade20k", "semantic", 150, 4e-4, 1e-6, 160_000, (512, 512), 512, 2048),
    ],
)
@pytest.mark.parametrize("backbone", ["r50", "stdc1", "stdc2"])
def test_published_hyper_parameters(
    dataset, task, num_classes, base_lr, end_lr, iterations, crop, short_side, long_side, backbone
) -> None:
    config = get_config(f"{dataset}-{task}-{backbone}")
    training = get_training_config(config.name)
    assert (config.num_classes, config.num_queries, config.task) == (num_classes, 100, task)
    assert (config.short_side_px, config.max_long_side_px) == (short_side, long_side)
    assert (config.object_threshold, config.overlap_threshold) == (0.8, 0.8)
    assert config.empty_mask == "reference"  # what their checkpoints were trained with
    assert (training.base_lr, training.end_lr, training.iterations) == (base_lr, end_lr, iterations)
    assert (training.crop_px, training.batch_size, training.clip_norm) == (crop, 32, 0.01)
    assert (training.short_sides_px[0], training.short_sides_px[-1]) == (short_side // 2, short_side * 2)
    assert len(training.short_sides_px) == 16
    # The published ADE20K R50 models keep the statistics of ImageNet; all others train their norms.
    assert training.freeze_backbone_norm == (dataset == "ade20k" and backbone == "r50")


def test_a_config_is_frozen_and_varies_by_replace() -> None:
    config = get_config("cityscapes-panoptic-r50")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_queries = 50  # type: ignore[misc]
    assert dataclasses.replace(config, num_queries=50).num_queries == 50
    assert config.num_queries == 100


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no preset 'cityscape'.*cityscapes-panoptic-r50.*default"):
        get_config("cityscape")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 7}, "hidden_dim 256 must be divisible by 4 and by num_heads 7"),
        ({"attention": "softmax"}, "attention is 'softmax'; it must be 'prototype' or 'masked'"),
        ({"empty_mask": "keep"}, "empty_mask is 'keep'; it must be 'reference' or 'release'"),
        ({"task": "foo"}, "task is 'foo'; it must be 'panoptic' or 'semantic'"),
        ({"num_heads": 0}, "num_heads is 0; it must be from 1 to 8192"),
        ({"num_queries": 10**9}, "num_queries is 1000000000; it must be from 1 to 10000"),
        ({"num_queries": -1}, "num_queries is -1; it must be from 1 to 10000"),
        ({"num_queries": "a"}, "num_queries is 'a'; it must be of type int"),
        ({"short_side_px": 0}, "short_side_px is 0; it must be from 1 to 16384"),
        ({"backbone": None}, "backbone is None; it must be of type str"),
        ({"object_threshold": 1.5}, "object_threshold is 1.5; it must be from 0 to 1"),
        ({"object_threshold": float("nan")}, "object_threshold is nan"),
        ({"pixel_std": (0.0, 1.0, 1.0)}, "pixel_std is .* 1e-06 or more"),
        ({"pixel_mean": (1.0, 2.0)}, "pixel_mean is .* of type tuple"),
        ({"num_queries": True}, "num_queries is True; it must be of type int"),
        ({"num_queries": "3"}, "num_queries is '3'; it must be of type int"),
        ({"short_side_px": 16_385}, "short_side_px is 16385; it must be from 1 to 16384"),
        ({"categories": ()}, r"categories is \(\); it must be of type str"),
        ({"hidden_size": 64}, "PEMConfig has no field hidden_size"),
        ({"num_classes": 2, "categories": ((1, "leaf"),)}, "categories is .* of type str"),
        ({"num_classes": 2, "categories": ((1, "leaf", True),)}, "num_classes is 2; it must be 1, as in categories"),
    ],
)
def test_values_that_cannot_work_are_refused_when_the_config_is_made(changes, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}[^\\n]*$"):
        dataclasses.replace(get_config("default"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": -2}, "iterations is -2; it must be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"base_lr": -1e-3}, "base_lr is -0.001; it must be 0 or more"),
        ({"base_lr": float("inf")}, "base_lr is inf; it must be 0 or more"),
        ({"crop_px": (0, 64)}, r"crop_px is \(0, 64\); it must be 1 or more"),
        ({"crop_px": 64}, r"crop_px is 64; it must be of type tuple\[int, int\]"),
        ({"short_sides_px": ()}, r"short_sides_px is \(\); it must be of type"),
        ({"pad_to_crop": "no"}, "pad_to_crop is 'no'; it must be of type bool"),
        ({"importance_ratio": 2}, "importance_ratio is 2; it must be from 0 to 1"),
    ],
)
def test_training_that_cannot_work_is_refused_when_the_config_is_made(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**changes)

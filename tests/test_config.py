from __future__ import annotations

import dataclasses

import pytest

from pem.config import PRESETS, get_config


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
    training = config.training
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
        ({"attention": "softmax"}, "'prototype' or 'masked'"),
        ({"empty_mask": "keep"}, "'reference' or 'release'"),
    ],
)
def test_values_that_cannot_work_are_refused_when_the_config_is_made(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_config("default"), **changes)

"""What a PEM is made of, as plain frozen records, and the presets by name.

Vary a preset with ``dataclasses.replace(get_config("cityscapes-panoptic-r50"), num_queries=50)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

MOST_QUERIES = 10_000
# The least and the largest value of a number. Where nothing is said here, whole numbers start at 1 and others at 0.
_RANGES = {
    # Beyond what anybody trains, and little enough that a file of nonsense takes no memory.
    **dict.fromkeys(("hidden_dim", "ffn_dim", "num_heads", "num_layers"), (1, 8192)),
    **dict.fromkeys(("short_side_px", "max_long_side_px"), (1, 16_384)),
    "num_queries": (1, MOST_QUERIES),
    "num_classes": (1, 100_000),
    "conv_dim": (2, 8192),
    "warmup_iterations": (0, math.inf),
    "oversample_ratio": (1, math.inf),
    "pixel_std": (1e-6, math.inf),
    **dict.fromkeys(("object_threshold", "overlap_threshold", "importance_ratio", "ema_decay", "copy_paste"), (0, 1)),
}


def _check(config: TrainingConfig | PEMConfig) -> None:
    """Raises ValueError for a value of another type than its field's, or out of range: configs come from files, too."""
    kinds = get_type_hints(type(config))
    for this in fields(config):
        value, kind = getattr(config, this.name), kinds[this.name]
        least, most = _RANGES.get(this.name, (1 if "int" in str(this.type) else 0, math.inf))
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, (int, float))]
        if not _is_a(value, kind):
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            wanted = " or ".join(map(repr, choices)) or f"of type {this.type}"
        elif not all(least <= x <= most and math.isfinite(x) for x in numbers):
            wanted = f"{least} or more" if most == math.inf else f"from {least} to {most}"
        else:
            continue
        raise ValueError(f"{this.name} is {value!r}; it must be {wanted}.")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type: a class, Literal, tuple or union. An int is a float, too."""
    members = get_args(kind)
    if get_origin(kind) is Literal:
        return value in members
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not value:
            return False
        kinds = members[:1] * len(value) if members[-1] is ... else members
        return len(value) == len(kinds) and all(map(_is_a, value, kinds))
    if members:
        return any(_is_a(value, member) for member in members)
    return isinstance(value, (int, float) if kind is float else kind)


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters of one training run; defaults are the published Cityscapes ones."""

    base_lr: float = 7e-4
    end_lr: float = 0.0
    backbone_lr_factor: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    batch_size: int = 32
    iterations: int = 90_000
    warmup_iterations: int = 0
    # Large-scale jitter: the short side is drawn from these, the long side is capped, then a crop is cut.
    short_sides_px: tuple[int, ...] = tuple(int(0.1 * x * 1024) for x in range(5, 21))
    max_long_side_px: int = 4096
    crop_px: tuple[int, int] = (512, 1024)
    pad_to_crop: bool = False
    # How often things of another photo are pasted in, of each class equally often (arXiv 2012.07177); 0 = as published.
    copy_paste: float = 0.0
    # Frozen batch norm keeps the pre-trained statistics of the backbone (ADE20K R50 in the paper's code).
    freeze_backbone_norm: bool = False
    # The mask losses and the matcher look at this many points, never at more than there are mask cells. A small segment
    # needs many, or hardly any of them lies in it.
    num_points: int = 12_544
    match_points: int = 12_544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    class_weight: float = 2.0
    match_class_weight: float = 2.0  # likewise, in the matcher's cost
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    # Weight of a segment whose label a machine made (our everyday data); 1 trusts it like a person's.
    pseudo_weight: float = 0.5
    # Per-pixel cross-entropy on the mask features, through a layer that is thrown away after training.
    # 0 = off, as published.
    auxiliary_semantic_weight: float = 0.0
    ema_decay: float = 0.0  # 0 = off, as published
    # How much louder prototypes speak at first. A prototype is a unit vector, and as published (1) a layer begins by
    # adding a tenth of what a query holds: it learns slowly.
    prototype_gain: float = 1.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class PEMConfig:
    """The network, how an image enters it, and how its output is read. Sizes are (height, width)."""

    name: str
    backbone: str  # "resnet50", "stdc1", "stdc2", or a timm model (see pem.backbones.build.TimmBackbone)
    num_classes: int
    # A name in pem.categories ("cityscapes", "ade20k", "everyday"), or the (id, name, is_thing) of each class.
    categories: str | tuple[tuple[int, str, bool], ...]
    num_queries: int = 100
    hidden_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    num_layers: int = 6
    conv_dim: int = 128
    attention: Literal["prototype", "masked"] = "prototype"
    # A query whose mask bans every token: "reference" = token 0, as the published code does;
    # "release" = it sees every token, as in Mask2Former. Masked attention always releases.
    empty_mask: Literal["reference", "release"] = "reference"
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    short_side_px: int = 1024
    max_long_side_px: int = 2048
    task: Literal["panoptic", "semantic"] = (
        "panoptic"  # what the preset was made for; every reading works on every model
    )
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    trained: str = ""  # "YYYY-MM-DD", when the training of one's own model ended; "" for presets and the bundled file
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        _check(self)
        if not isinstance(self.categories, str) and len(self.categories) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}; it must be {len(self.categories)}, as in categories.")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be divisible by 4 and by num_heads {self.num_heads}.")


_BACKBONES = {"r50": "resnet50", "stdc1": "stdc1", "stdc2": "stdc2"}


def _cityscapes(task: Literal["panoptic", "semantic"], backbone: str) -> PEMConfig:
    return PEMConfig(
        name=f"cityscapes-{task}-{backbone}",
        backbone=_BACKBONES[backbone],
        num_classes=19,
        categories="cityscapes",
        task=task,
    )


def _ade20k(task: Literal["panoptic", "semantic"], backbone: str) -> PEMConfig:
    # The published ADE20K STDC files inherit a base that does not exist (90k instead of 160k iterations);
    # they are read here as what they must have meant.
    side = 640 if task == "panoptic" else 512
    return PEMConfig(
        name=f"ade20k-{task}-{backbone}",
        backbone=_BACKBONES[backbone],
        num_classes=150,
        categories="ade20k",
        task=task,
        short_side_px=side,
        max_long_side_px=4 * side,
        training=TrainingConfig(
            base_lr=4e-4,
            end_lr=1e-6,
            iterations=160_000,
            short_sides_px=tuple(int(0.1 * x * side) for x in range(5, 21)),
            max_long_side_px=4 * side,
            crop_px=(side, side),
            pad_to_crop=True,
            freeze_backbone_norm=backbone == "r50",
        ),
    )


def _default() -> PEMConfig:
    return PEMConfig(
        name="default",
        backbone="tf_efficientnet_lite2",
        num_classes=47,
        categories="everyday",
        num_queries=50,
        empty_mask="release",
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(128.0, 128.0, 128.0),
        short_side_px=288,
        max_long_side_px=576,
        object_threshold=0.5,
        overlap_threshold=0.6,
        training=TrainingConfig(
            base_lr=4e-4,
            batch_size=8,
            iterations=9_500,
            short_sides_px=tuple(range(224, 449, 32)),
            max_long_side_px=768,
            crop_px=(256, 256),
            pad_to_crop=True,
            copy_paste=0.5,
            freeze_backbone_norm=True,
            warmup_iterations=100,
            backbone_lr_factor=0.3,
            clip_norm=0.1,
            num_points=1_024,
            match_points=4_096,
            # A short run: classes need more of the gradient than masks, which are good long before.
            class_weight=5.0,
            auxiliary_semantic_weight=4.0,
            ema_decay=0.998,
            prototype_gain=8.0,
        ),
    )


PRESETS: dict[str, PEMConfig] = {
    config.name: config
    for config in (
        *(_cityscapes(task, b) for task in ("panoptic", "semantic") for b in _BACKBONES),
        *(_ade20k(task, b) for task in ("panoptic", "semantic") for b in _BACKBONES),
        _default(),
    )
}


def get_config(name: str) -> PEMConfig:
    """The preset of that name. Raises ValueError that lists the names when there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"There is no preset {name!r}; choose one of: {', '.join(PRESETS)}.") from None

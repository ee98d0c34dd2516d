"""How a network is trained: hyper-parameters as a plain frozen record, and those of each preset."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pem.config import Share, get_config
from pem.validated import validated_dataclass

Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0)]


@validated_dataclass
class TrainingConfig:
    """Hyper-parameters of one training run; defaults are the published Cityscapes ones. Sizes are (height, width).

    Raises ValueError, in one sentence, for a value of another type or out of range.
    """

    base_lr: Factor = 7e-4
    end_lr: Factor = 0.0
    backbone_lr_factor: Factor = 0.1
    weight_decay: Factor = 0.05
    clip_norm: Factor = 0.01
    batch_size: Count = 32
    iterations: Count = 90_000
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    # Large-scale jitter: the short side is drawn from these, the long side is capped, then a crop is cut.
    short_sides_px: Annotated[tuple[Count, ...], Field(min_length=1)] = tuple(int(0.1 * x * 1024) for x in range(5, 21))
    max_long_side_px: Annotated[int, Field(ge=1, le=16_384)] = 4096
    crop_px: tuple[Count, Count] = (512, 1024)
    pad_to_crop: bool = False
    # How often things of another photo are pasted in, all classes equally often (arXiv 2012.07177). 0 = as published.
    copy_paste: Share = 0.0
    # Frozen batch norm keeps the pre-trained statistics of the backbone (ADE20K R50 in the paper's code).
    freeze_backbone_norm: bool = False
    # The mask losses and the matcher look at this many points of a mask, or at all its cells. Few points miss small
    # segments.
    num_points: Count = 12_544
    match_points: Count = 12_544
    oversample_ratio: Annotated[float, Field(ge=1)] = 3.0
    importance_ratio: Share = 0.75
    class_weight: Factor = 2.0
    match_class_weight: Factor = 2.0  # the same in the matcher's cost
    mask_weight: Factor = 5.0
    dice_weight: Factor = 5.0
    no_object_weight: Factor = 0.1
    # Weight of a segment that a machine labelled (in our everyday data). 1 trusts it like a person's label.
    pseudo_weight: Factor = 0.5
    # Weight of a per-pixel cross-entropy on the mask features, through a layer that is thrown away after training.
    # 0 = off, as published.
    auxiliary_semantic_weight: Factor = 0.0
    ema_decay: Share = 0.0  # of the averaged weights; 0 = no average, as published
    # Multiplies what prototypes add to the queries at first. As published (1), a layer learns slowly: prototypes are
    # unit vectors and add only a tenth of a query's size.
    prototype_gain: Factor = 1.0


def get_training_config(name: str) -> TrainingConfig:
    """How the preset of that name is trained. Raises ValueError that lists the names when there is none."""
    preset = get_config(name)
    if preset.categories == "everyday":
        return TrainingConfig(
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
            # In a short run, masks are good early, so classes need more of the gradient.
            class_weight=5.0,
            auxiliary_semantic_weight=4.0,
            ema_decay=0.998,
            prototype_gain=8.0,
        )
    if preset.categories == "ade20k":
        # The published STDC files inherit from a base that does not exist (90k instead of 160k iterations). They must
        # mean these values.
        side = preset.short_side_px
        return TrainingConfig(
            base_lr=4e-4,
            end_lr=1e-6,
            iterations=160_000,
            short_sides_px=tuple(int(0.1 * x * side) for x in range(5, 21)),
            max_long_side_px=4 * side,
            crop_px=(side, side),
            pad_to_crop=True,
            freeze_backbone_norm=preset.backbone == "resnet50",
        )
    return TrainingConfig()

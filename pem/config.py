"""What a PEM is made of, as a plain frozen record, and the presets by name.

Vary a preset with ``dataclasses.replace(get_config("cityscapes-panoptic-r50"), num_queries=50)``. How a preset is
trained stands in pem/training/config.py.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from pem.validated import validated_dataclass

MOST_QUERIES = 10_000
# Widths beyond what anybody trains are refused, so that a file of nonsense takes no memory.
Width = Annotated[int, Field(ge=1, le=8192)]
SidePx = Annotated[int, Field(ge=1, le=16_384)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(ge=0)]  # of a colour channel, 0..255
Deviation = Annotated[float, Field(ge=1e-6)]


@validated_dataclass
class PEMConfig:
    """The network, how an image enters it, and how its output is read. Sizes are (height, width).

    Raises ValueError, in one sentence, for a value of another type or out of range: configs come from files, too.
    """

    name: str
    backbone: str  # "resnet50", "stdc1", "stdc2", or a timm model (see pem.backbones.build.TimmBackbone)
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    # A name in pem.categories ("cityscapes", "ade20k", "everyday"), or the (id, name, is_thing) of each class.
    categories: Annotated[str | tuple[tuple[int, str, bool], ...], Field(min_length=1)]
    num_queries: Annotated[int, Field(ge=1, le=MOST_QUERIES)] = 100
    hidden_dim: Width = 256
    num_heads: Width = 8
    ffn_dim: Width = 2048
    num_layers: Width = 6
    conv_dim: Annotated[int, Field(ge=2, le=8192)] = 128
    attention: Literal["prototype", "masked"] = "prototype"
    # A query whose mask bans every token: "reference" = token 0, as the published code does;
    # "release" = it sees every token, as in Mask2Former. Masked attention always releases.
    empty_mask: Literal["reference", "release"] = "reference"
    pixel_mean: tuple[Level, Level, Level] = (123.675, 116.28, 103.53)  # RGB, 0..255
    pixel_std: tuple[Deviation, Deviation, Deviation] = (58.395, 57.12, 57.375)
    short_side_px: SidePx = 1024
    max_long_side_px: SidePx = 2048
    # What the preset was made for. Every reading works on every model.
    task: Literal["panoptic", "semantic"] = "panoptic"
    object_threshold: Share = 0.8
    overlap_threshold: Share = 0.8
    trained: str = ""  # "YYYY-MM-DD", when the training of one's own model ended; "" for presets and the bundled file

    def __post_init__(self) -> None:
        if not isinstance(self.categories, str) and len(self.categories) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}; it must be {len(self.categories)}, as in categories.")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be divisible by 4 and by num_heads {self.num_heads}.")


def config_from_json(written: str) -> PEMConfig:
    """The config that a file holds as JSON. Raises ValueError for one that is damaged or of a newer version."""
    fields = json.loads(written)
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    fields.pop("training", None)  # older files also tell how the model was trained
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(PEMConfig)}:
        raise ValueError(f"this version does not know {', '.join(sorted(unknown))}; update this project.")
    return PEMConfig(**{name: _frozen(value) for name, value in fields.items()})


def _frozen(value: Any) -> Any:
    """A value from JSON, where tuples have become lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_BACKBONES = {"r50": "resnet50", "stdc1": "stdc1", "stdc2": "stdc2"}
# Classes, short side and long side of each published data set and task.
_PUBLISHED: dict[tuple[str, Literal["panoptic", "semantic"]], tuple[int, int, int]] = {
    ("cityscapes", "panoptic"): (19, 1024, 2048),
    ("cityscapes", "semantic"): (19, 1024, 2048),
    ("ade20k", "panoptic"): (150, 640, 2560),
    ("ade20k", "semantic"): (150, 512, 2048),
}
_DEFAULT = PEMConfig(
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
)
PRESETS: dict[str, PEMConfig] = {
    f"{data}-{task}-{short}": PEMConfig(
        name=f"{data}-{task}-{short}",
        backbone=backbone,
        num_classes=num_classes,
        categories=data,
        task=task,
        short_side_px=short_side_px,
        max_long_side_px=max_long_side_px,
    )
    for (data, task), (num_classes, short_side_px, max_long_side_px) in _PUBLISHED.items()
    for short, backbone in _BACKBONES.items()
} | {"default": _DEFAULT}


def get_config(name: str) -> PEMConfig:
    """The preset of that name. Raises ValueError that lists the names when there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"There is no preset {name!r}; choose one of: {', '.join(PRESETS)}.") from None

"""The golden cases: outputs of the reference implementation in float64, on weights that a recipe makes.

``golden/shared_KIND.json`` lists every tensor of the reference state dict (name -> shape) and the seed of the recipe;
``golden/shared_KIND.npz`` holds the image and what the reference computed from it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

from pem.config import PEMConfig, get_config

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    kind: str  # "r50" or "stdc1"
    num_classes: int
    num_queries: int
    seed: int
    names: dict[str, tuple[int, ...]]
    arrays: dict[str, np.ndarray]  # image, pred_logits, pred_masks, prototype_index, empty_mask

    @property
    def config(self) -> PEMConfig:
        preset = get_config(f"cityscapes-panoptic-{self.kind}")
        return dataclasses.replace(preset, num_classes=self.num_classes, num_queries=self.num_queries)

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The reference state dict, float64."""
        return {name: self._tensor(name, shape) for name, shape in self.names.items()}

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The normalised image, float64 [1, 3, H, W]. The reference keeps mean and deviation in float32."""
        mean, std = (np.float32(x).astype(np.float64) for x in (self.config.pixel_mean, self.config.pixel_std))
        normalised = (self.arrays["image"].astype(np.float64) - mean) / std
        return torch.from_numpy(normalised).permute(2, 0, 1)[None].contiguous()

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        # STDC's aliases have the values of the tensor that they stand for.
        name = re.sub(r"^backbone\.x\d+\.0\.", "backbone.features.", name)
        rng = np.random.Generator(np.random.PCG64([self.seed, zlib.crc32(name.encode())]))
        if name.endswith("num_batches_tracked"):
            return np.zeros(shape, dtype=np.int64)
        if name.endswith("running_var"):
            return rng.uniform(0.5, 1.5, shape)
        z = rng.standard_normal(shape)
        if name.endswith("alpha"):
            return 1 + 0.1 * z
        if len(shape) > 1:
            if "query_" in name or "level_embed" in name:
                return z
            gain = 0.25 if "dcn_offset" in name else 2.0
            return z * np.sqrt(gain / np.prod(shape[1:]))
        return 1 + 0.1 * z if name.endswith(".weight") else 0.1 * z


@lru_cache
def load_golden(kind: str) -> Golden:
    case = json.loads((FOLDER / f"shared_{kind}.json").read_text(encoding="utf-8"))
    case["names"] = {name: tuple(shape) for name, shape in case["names"].items()}
    with np.load(FOLDER / f"shared_{kind}.npz") as file:
        return Golden(**case, arrays=dict(file))

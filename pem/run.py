"""One pass of a model, in torch or in another runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pem.arrays import Arrays
from pem.exported import ExportedPEM
from pem.outputs import PEMOutput

if TYPE_CHECKING:  # an exported network needs no torch
    from pem.model import PEM

    AnyPEM: TypeAlias = PEM | ExportedPEM


def run(model: AnyPEM, pixels: np.ndarray) -> PEMOutput | Arrays:
    """Normalised pixels [B, 3, H, W] to a prediction. Raises ValueError for a model in training mode."""
    if isinstance(model, ExportedPEM):
        return model(pixels)
    from pem.model import run_on_arrays

    return run_on_arrays(model, pixels)

"""PEM, Prototype-based Efficient MaskFormer: the network, its weights, and the readings of its output."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pem.config import PEMConfig, get_config
from pem.errors import WeightsError
from pem.exported import ExportedPEM
from pem.load import load_model
from pem.outputs import Batch, LayerTrace, PEMOutput, Prediction, QueryOutcome, Segment, Segmentation
from pem.photos import ImageError, load_image
from pem.postprocess import instances, panoptic, semantic
from pem.predict import predict
from pem.preprocess import preprocess, preprocess_arrays
from pem.render import render

if TYPE_CHECKING:
    from pem.exporting import export
    from pem.fast import accelerate
    from pem.model import PEM, build_model
    from pem.weights import LoadReport, load_weights, save_weights

__all__ = [
    "PEM",
    "Batch",
    "ExportedPEM",
    "ImageError",
    "LayerTrace",
    "LoadReport",
    "PEMConfig",
    "PEMOutput",
    "Prediction",
    "QueryOutcome",
    "Segment",
    "Segmentation",
    "WeightsError",
    "accelerate",
    "build_model",
    "export",
    "get_config",
    "instances",
    "load_image",
    "load_model",
    "load_weights",
    "panoptic",
    "predict",
    "preprocess",
    "preprocess_arrays",
    "render",
    "save_weights",
    "semantic",
]

# What needs torch is imported when it is first used: an exported network does without.
_IN_TORCH = {
    "PEM": "pem.model",
    "build_model": "pem.model",
    "accelerate": "pem.fast",
    "export": "pem.exporting",
    "LoadReport": "pem.weights",
    "load_weights": "pem.weights",
    "save_weights": "pem.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _IN_TORCH:
        raise AttributeError(f"module 'pem' has no attribute {name!r}")
    try:
        return getattr(import_module(_IN_TORCH[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"pem.{name} needs {error.name}: pip install 'pem-studio[torch]'.") from error

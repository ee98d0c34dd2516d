"""PEM, Prototype-based Efficient MaskFormer: the network, its weights, and the readings of its output."""

from pem.config import PEMConfig, get_config
from pem.fast import accelerate
from pem.model import PEM, build_model
from pem.outputs import Batch, LayerTrace, PEMOutput, Prediction, QueryOutcome, Segment, Segmentation
from pem.photos import ImageError, load_image
from pem.postprocess import instances, panoptic, semantic
from pem.predict import predict
from pem.preprocess import preprocess
from pem.render import render
from pem.weights import LoadReport, WeightsError, load_model, load_weights, save_weights

__all__ = [
    "PEM",
    "Batch",
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
    "get_config",
    "instances",
    "load_image",
    "load_model",
    "load_weights",
    "panoptic",
    "predict",
    "preprocess",
    "render",
    "save_weights",
    "semantic",
]

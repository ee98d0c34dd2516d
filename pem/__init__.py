"""PEM, Prototype-based Efficient MaskFormer: the network, its weights, and the readings of its output."""

from pem.config import PEMConfig, get_config
from pem.model import PEM, build_model
from pem.weights import LoadReport, WeightsError, load_model, load_weights, save_weights

__all__ = [
    "PEM",
    "LoadReport",
    "PEMConfig",
    "WeightsError",
    "build_model",
    "get_config",
    "load_model",
    "load_weights",
    "save_weights",
]

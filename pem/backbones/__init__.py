"""Backbones: what turns pixels into features at strides 4, 8, 16 and 32. See base.py for the contract."""

from pem.backbones.base import Backbone
from pem.backbones.build import build_backbone

__all__ = ["Backbone", "build_backbone"]

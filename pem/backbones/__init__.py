"""Backbones: pixels [B, 3, H, W] -> {"res2", "res3", "res4", "res5"}, each [B, C_s, H/s, W/s], s = 4, 8, 16, 32.

Each has ``channels``, the four C_s from fine to coarse.
"""

from pem.backbones.build import Backbone, build_backbone

__all__ = ["Backbone", "build_backbone"]

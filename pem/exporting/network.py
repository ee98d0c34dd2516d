"""A PEM in the form that can be written to a file: the same numbers, without what no format can say."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from pem.exported import OF_LAYER, STEPS
from pem.model import PEM, require_eval
from pem.outputs import PEMOutput
from pem.preprocess import SIZE_DIVISOR
from pem.runtimes import PREDICTION

MAX_SIDES = 64  # in steps of SIZE_DIVISOR; only the exporter wants a limit
EXAMPLE_SIZE = (2, 3, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR)  # traced with it; no number may occur twice


class Exportable(nn.Module):
    """Takes pixels [B, 3, H, W] and returns a flat tuple: the outputs named by ``output_names``."""

    def __init__(self, plain: PEM, trace: bool) -> None:
        """Raises ValueError for a model in training mode, and for a fast copy."""
        super().__init__()
        require_eval(plain)
        if type(plain) is not PEM:
            raise ValueError("This is a fast copy of a model; export the model itself (load_model with fast=False).")
        self.model = copy.deepcopy(plain).cpu().float()
        self.trace = trace
        make_padding_constant(self.model.backbone)
        for stage in self.model.pixel_decoder.upsample:
            stage.deform_conv = plain_deform_conv  # type: ignore[assignment]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        output: PEMOutput = self.model(pixels, trace=self.trace)
        prediction = output.pred_logits, output.pred_masks
        if output.trace is None:
            return prediction
        earlier = (torch.stack(x) for x in zip(*((y.pred_logits, y.mask_embed) for y in output.aux_outputs)))
        layers = (getattr(layer, name) for layer in output.trace for name in OF_LAYER)
        return (*prediction, *earlier, output.mask_embed, output.mask_features, *layers)


def dynamic_shapes() -> dict[str, dict[int, Any]]:
    """For torch.export: height and width from 64 px on in steps of 32, and batches from 1 on."""
    height, width = (SIZE_DIVISOR * torch.export.Dim(name, min=2, max=MAX_SIDES) for name in ("height_32", "width_32"))
    return {"pixels": {0: torch.export.Dim("batch", min=1, max=64), 2: height, 3: width}}


def output_names(num_layers: int, trace: bool) -> tuple[str, ...]:
    """What ``Exportable`` returns, in this order."""
    layers = [f"layer_{i + 1}_{name}" for i in range(num_layers) for name in OF_LAYER]
    return (*PREDICTION, *STEPS, *layers) if trace else PREDICTION


def plain_deform_conv(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """``modulated_deform_conv2d`` without its care for offsets that are not finite: one operator in the file."""
    return deform_conv2d(x, offset, weight, bias, padding=1, mask=modulation)


def make_padding_constant(module: nn.Module) -> None:
    """Replaces, in place, timm's convolutions whose padding depends on the size of the image.

    At sizes that are multiples of 32 it is always the same, but an exporter cannot know that.
    """
    for name, child in module.named_children():
        if not isinstance(child, Conv2dSame):
            make_padding_constant(child)
            continue
        # TensorFlow's rule for a side that the stride divides; an odd pixel goes to the end.
        totals = [
            max(dilation * (kernel - 1) + 1 - stride, 0)
            for kernel, stride, dilation in zip(child.kernel_size, child.stride, child.dilation)
        ]
        left, top = totals[1] // 2, totals[0] // 2
        pad = nn.ZeroPad2d((left, totals[1] - left, top, totals[0] - top))
        conv: Any = copy.copy(child)
        conv.__class__ = nn.Conv2d  # its forward pads by a constant, which is 0 here
        setattr(module, name, nn.Sequential(pad, conv))

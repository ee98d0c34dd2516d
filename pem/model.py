"""PEM, whole: backbone -> pixel decoder -> transformer decoder. Start reading here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pem.backbones import build_backbone
from pem.config import PEMConfig
from pem.decoder import Decoder
from pem.devices import mixed_precision
from pem.outputs import PEMOutput
from pem.pixel_decoder import PixelDecoder
from pem.preprocess import check_size


class PEM(nn.Module):
    """Prototype-based Efficient MaskFormer (CVPR 2024, arXiv 2402.19422)."""

    def __init__(self, config: PEMConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.pixel_decoder = PixelDecoder(self.backbone.channels, config.conv_dim, config.hidden_dim)
        self.decoder = Decoder(config)

    def forward(self, pixels: Tensor, trace: bool = False, stage_done: Callable[[], None] = lambda: None) -> PEMOutput:
        """Normalised pixels [B, 3, H, W], H and W multiples of 32 (see pem.preprocess), to what the queries found.

        ``trace=True`` also returns what each layer did; it changes no bit of the rest. ``stage_done`` is called after
        the backbone, the pixel decoder and the decoder.
        Padding is not masked anywhere: images of different sizes in one batch change the results of each other.
        Raises ValueError for other sizes, and for a model whose parameters are in half precision.
        """
        dtype = self.decoder.query_feat.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"The model is in {dtype}; keep it in float32 and run it under torch.autocast instead.")
        check_size((pixels.shape[-2], pixels.shape[-1]))
        features = self.backbone(pixels)
        stage_done()
        mask_features, levels = self.pixel_decoder(features)
        stage_done()
        output = self.decoder(mask_features, levels, trace)
        stage_done()
        return output


def require_eval(model: nn.Module) -> None:
    """Raises ValueError when the model, or a part of it, is in training mode."""
    if any(module.training for module in model.modules()):
        raise ValueError("The model is in training mode; call model.eval() first.")


@torch.inference_mode()
def run_on_arrays(model: PEM, pixels: np.ndarray, trace: bool = False) -> PEMOutput:
    """Runs a model on pixels in NumPy [B, 3, H, W], as ``pem.predict`` does: on its device and in its dtype, in mixed
    precision on a GPU. Raises ValueError for a model in training mode."""
    require_eval(model)
    weight = next(model.parameters())
    with mixed_precision(weight.device):
        return model(torch.from_numpy(pixels).to(weight.device, weight.dtype), trace)


def build_model(config: PEMConfig) -> PEM:
    """The network with random weights, in eval mode. Downloads nothing."""
    return PEM(config).eval()

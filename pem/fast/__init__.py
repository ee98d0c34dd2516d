"""What makes PEM fast, in one place: ``accelerate`` makes a copy of a network that computes the same in less time.

Each idea is a file of its own. A test compares it with the plain network of ``pem``:

- folding.py: batch norms become part of the convolutions before them; channels_last, which convolutions like best.
- deform_conv.py: deformable convolution on a CPU by torch's operators.
- attention.py: prototype attention in C on a CPU (native.py), in Triton on a GPU (kernels.py), else in blocks of tokens
  (blocks.py).
"""

from __future__ import annotations

import copy

from pem.attention import PrototypeCrossAttention
from pem.decoder import Decoder
from pem.fast.attention import FastPrototypeCrossAttention
from pem.fast.deform_conv import fast_deform_conv2d
from pem.fast.folding import ChannelsLast, FoldedUpsample, fold_norms, folded
from pem.model import PEM, require_eval
from pem.pixel_decoder import DeformableUpsample

__all__ = ["FastPEM", "accelerate", "accelerate_decoder", "accelerate_training"]


class FastPEM(PEM):
    """A copy of a PEM for inference. Its weights have no gradients, and it cannot be trained or saved."""

    def __init__(self, plain: PEM) -> None:
        super(PEM, self).__init__()
        require_eval(plain)
        self.config = plain.config
        self.backbone = ChannelsLast(folded(plain.backbone))
        self.pixel_decoder, self.decoder = copy.deepcopy((plain.pixel_decoder, plain.decoder))
        self.requires_grad_(False)
        for i, stage in enumerate(self.pixel_decoder.upsample):
            if type(stage) is DeformableUpsample:
                self.pixel_decoder.upsample[i] = FoldedUpsample(stage)
        fold_norms(self.pixel_decoder)
        accelerate_decoder(self.decoder)
        super().train(False)

    def train(self, mode: bool = True) -> FastPEM:
        if mode:
            raise ValueError("This fast copy of a model is for inference; train the model itself (fast=False).")
        return self


def accelerate(model: PEM) -> FastPEM:
    """A copy of a model in eval mode that computes the same, faster; a fast copy itself is returned as it is.

    Later changes of the model do not reach its copy.

    >>> import pem
    >>> model = pem.build_model(pem.get_config("cityscapes-panoptic-stdc1"))
    >>> fast = pem.accelerate(model)
    """
    return model if isinstance(model, FastPEM) else FastPEM(model)


def accelerate_decoder(decoder: Decoder) -> None:
    """Gives a decoder in eval mode, in place, the fast prototype attention."""
    for layer in decoder.layers:
        if isinstance(layer.cross_attention, PrototypeCrossAttention):
            layer.cross_attention = FastPrototypeCrossAttention(layer.cross_attention)


def accelerate_training(model: PEM) -> None:
    """Gives a model, in place, the one shortcut that has gradients: the deformable convolution for a CPU."""
    for stage in model.pixel_decoder.upsample:
        assert isinstance(stage, DeformableUpsample)
        stage.deform_conv = fast_deform_conv2d

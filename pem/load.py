"""A model by its name: bundled, from a file, or from the Hub; in torch or in another runtime."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from pem.config import PRESETS, PEMConfig, get_config
from pem.errors import WeightsError, first_line
from pem.exported import ENDINGS, ExportedPEM
from pem.fastest import fastest
from pem.runtimes import RUNTIMES, usable_runtimes

if TYPE_CHECKING:  # an exported network needs no torch
    import torch

    from pem.model import PEM

_PACKAGE = Path(__file__).resolve().parent
# An installed package has the bundled weights inside; the repository has them beside the package.
_HOME = _PACKAGE if (_PACKAGE / "assets").is_dir() else _PACKAGE.parent
DEFAULT_WEIGHTS = _HOME / "assets" / "weights" / "default.safetensors"
DEFAULT_EXPORT = DEFAULT_WEIGHTS.with_suffix(".onnx")
EXAMPLES = _HOME / "assets" / "examples"  # in the repository only
HUB_FILE = "model.safetensors"
FILE_ENDINGS = (".safetensors", *ENDINGS, ".pth", ".pt", ".bin", ".ckpt", ".pkl")


@overload
def load_model(
    name_or_path: str | os.PathLike[str] = "default",
    device: str | torch.device = "auto",
    weights: str | os.PathLike[str] | None = None,
    fast: bool = True,
    runtime: Literal["torch"] | None = None,
) -> PEM: ...
@overload
def load_model(
    name_or_path: str | os.PathLike[str] = "default",
    device: str | torch.device = "auto",
    weights: str | os.PathLike[str] | None = None,
    fast: bool = True,
    *,
    runtime: str,
) -> PEM | ExportedPEM: ...


def load_model(
    name_or_path: str | os.PathLike[str] = "default",
    device: str | torch.device = "auto",
    weights: str | os.PathLike[str] | None = None,
    fast: bool = True,
    runtime: str | None = None,
) -> PEM | ExportedPEM:
    """A model with its weights, in eval mode and float32.

    Args:
        name_or_path: "default", the model that comes with this project (offline); another preset, together with
            ``weights``; one of our ``.safetensors`` files; an ``.onnx`` or ``.xml`` file of ``pem.export``; a
            training run's ``checkpoint.pt`` (its averaged weights); or "owner/repo@revision" on the Hugging Face Hub,
            where the revision (a tag or commit) pins what is downloaded: its ``model.safetensors``, once, with a
            progress bar.
        device: "auto" is "cuda" where there is one, else "cpu". Exported networks run on the CPU.
        weights: a file for that preset, of any kind that ``load_weights`` reads.
        fast: whether to return the fast copy for inference (see pem.fast) instead of the plain network, which can be
            trained and saved. The environment variable PEM_FAST=0 switches it off for every call.
        runtime: "torch", "onnxruntime" or "openvino". The last two run exported networks, and return an ExportedPEM.
            "auto" is the fastest on this machine: it is measured once for each model, and the choice is kept in
            ~/.cache/pem. None is torch where it is installed, and else the first of the others that is.

    Raises:
        FileNotFoundError, WeightsError or another ValueError, each with one sentence that says what to do.

    >>> model = pem.load_model("default", runtime="onnxruntime")
    >>> segmentation = pem.predict(model, "photo.jpg")
    """
    if runtime not in (None, "auto", "torch", *RUNTIMES):
        raise ValueError(f"There is no runtime {runtime!r}; choose one of: auto, torch, {', '.join(RUNTIMES)}.")
    name = os.fspath(name_or_path)
    if name.lower().endswith(".pt2"):
        raise ValueError(f"{name} is for torch.export.load alone; export the model to an .onnx or .xml file.")
    if is_export(name) and (runtime == "torch" or weights is not None):
        raise ValueError(f"{name} holds its own weights, and torch does not run it; give it alone.")
    if runtime == "auto":
        runtime = _fastest(name, device, weights, fast)
    if runtime is None and not is_export(name) and (name != "default" or find_spec("torch")):
        runtime = "torch"
    if runtime != "torch" and weights is None:
        return ExportedPEM(_locate_export(name), runtime)
    return _load_torch_model(name, device, weights, fast)


def is_export(name: str) -> bool:
    """Whether this is a file of ``pem.export``, by its ending."""
    return name.lower().endswith(ENDINGS)


def runtimes_of_default() -> list[str]:
    """What can run the bundled model here."""
    return [*(["torch"] if find_spec("torch") else []), *usable_runtimes()]


def _fastest(name: str, device: str | torch.device, weights: object, fast: bool) -> str | None:
    """The fastest runtime that can run this model on this device; None where only the usual one can."""
    if weights is not None or not (is_export(name) or name == "default") or name.lower().endswith(".xml"):
        return None  # there is no exported file of it, or only OpenVINO runs it
    path, runtimes = _locate_export(name), usable_runtimes() if is_export(name) else runtimes_of_default()
    if "torch" in runtimes:
        from pem.devices import pick_device

        if pick_device(device).type != "cpu":
            return "torch"
    if not path.is_file() or not runtimes:
        return None
    return fastest(path, runtimes, lambda runtime: load_model(name, "cpu", fast=fast, runtime=runtime))


def _load_torch_model(name: str, device: str | torch.device, weights: str | os.PathLike[str] | None, fast: bool) -> PEM:
    try:
        from pem.devices import pick_device
        from pem.fast import accelerate
        from pem.model import build_model
        from pem.weights import load_weights, own_config
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"This needs PyTorch ({error.name} is missing): pip install 'pem-studio[torch]'. Without it give the "
            "bundled model, default, or an .onnx file of python -m pem.export."
        ) from error
    target = pick_device(device)
    if name in PRESETS and weights is not None:
        preset, path = get_config(name), Path(weights)
        config = own_config(path) or preset  # its own has a name and a date
        if preset != replace(config, name=preset.name, trained=preset.trained):
            raise WeightsError(f"{path} is no {name}: its own config differs; give the file alone, without the preset.")
    elif weights is not None:
        raise ValueError(
            f"Weights go with the name of a preset, not with {name!r}; choose one of: {', '.join(PRESETS)}."
        )
    else:
        path = _locate(name)
        config = _config_in(path, own_config(path))
    model = build_model(config)
    load_weights(model, path)
    is_fast = fast and os.environ.get("PEM_FAST", "1") != "0"
    return (accelerate(model) if is_fast else model).to(target)


def _config_in(path: Path, own: PEMConfig | None) -> PEMConfig:
    if own is None:
        raise WeightsError(
            f"{path} does not say which network it belongs to; name its preset, such as cityscapes-panoptic-r50, "
            "and give this file as the preset's weights."
        )
    return own


def _locate_export(name: str) -> Path:
    if name == "default":
        return DEFAULT_EXPORT
    if not is_export(name):
        raise ValueError(
            f"Other runtimes than torch run exported networks, not {name}; make one with "
            f"python -m pem.export --model {name} --out FILE.onnx."
        )
    return Path(name)


def _locate(name: str) -> Path:
    """The file of weights behind the name of a model: bundled, on the disk, or on the Hub."""
    if name == "default":
        if not DEFAULT_WEIGHTS.exists():
            raise FileNotFoundError(
                f"The bundled weights are missing: {DEFAULT_WEIGHTS}; get them from the project's repository, or "
                "train them with python -m pem.training.train."
            )
        return DEFAULT_WEIGHTS
    if name in PRESETS:
        raise WeightsError(
            f"No weights come with {name}; give a checkpoint, such as model_final.pth, as the preset's weights."
        )
    path = Path(name)
    # OWNER/REPO looks like a file in a folder, but no folder has the owner's name.
    in_a_folder = "@" not in name and path.parent != Path() and path.parent.is_dir()
    if path.suffix.lower() in FILE_ENDINGS or path.exists() or in_a_folder:
        return path
    if match := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", name):
        repository, revision = match.groups()
        if revision is None:
            raise ValueError(
                f"Pin the Hub model {name!r} to a tag or commit: {name}@REVISION. (There is no such local file.)"
            )
        return _download(repository, revision)
    raise FileNotFoundError(
        f"There is no model {name!r}: give 'default', a .safetensors file, OWNER/REPO@REVISION on the Hub, or one of "
        f"these together with weights: {', '.join(PRESETS)}."
    )


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision))
    except Exception as error:  # its own, and those of whatever it connects with
        raise WeightsError(
            f"Cannot fetch {HUB_FILE} of {repository}@{revision} from the Hub: {first_line(error)}."
        ) from error

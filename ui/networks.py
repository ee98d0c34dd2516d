"""Which networks the page runs: the model of the settings and, where it has one, its masked baseline."""

from __future__ import annotations

import dataclasses
import filecmp
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pem
from pem.load import DEFAULT_EXPORT, DEFAULT_WEIGHTS

if TYPE_CHECKING:
    from pem.run import AnyPEM

_log = logging.getLogger("pem")
BASELINE_MAY_DIFFER = ("name", "trained", "attention", "empty_mask")


def load_networks(
    name: str, device: str, max_side_px: int | None = None, runtime: str = "torch"
) -> tuple[AnyPEM, AnyPEM | None]:
    """The model of this name and its masked baseline; both see photos at most ``max_side_px`` large.

    Raises OSError or ValueError for a model that cannot be loaded.
    """
    model = pem.load_model(name, device=device, runtime=runtime)
    if isinstance(model, pem.ExportedPEM) and not model.has_trace:
        raise ValueError(f"{model.path} does not say what its layers did; export it with --trace.")
    baseline = load_masked_baseline(model, name)
    for network in filter(None, (model, baseline) if max_side_px else ()):
        config = network.config
        longest, shortest = (min(side, max_side_px) for side in (config.max_long_side_px, config.short_side_px))
        network.config = dataclasses.replace(config, max_long_side_px=longest, short_side_px=shortest)
    return model, baseline


def is_bundled(name: str) -> bool:
    """Whether this names the model that comes with this project, or a copy of its file."""
    own = (file for file in (DEFAULT_WEIGHTS, DEFAULT_EXPORT) if file.is_file())
    return name == "default" or (Path(name).is_file() and any(filecmp.cmp(name, file, shallow=False) for file in own))


def load_masked_baseline(model: AnyPEM, name: str) -> AnyPEM | None:
    """The same network trained with masked attention, if its checkpoint NAME-masked.safetensors lies beside the model.

    Of an exported network it is NAME-masked.onnx, in the same runtime, so that the two can be compared. Logs a warning
    and returns None for a checkpoint that cannot be read, or that differs in more than the attention.
    """
    path = DEFAULT_WEIGHTS if is_bundled(name) else Path(name)
    runtime, ending = (model.runtime, ".onnx") if isinstance(model, pem.ExportedPEM) else ("torch", ".safetensors")
    path = path.with_name(f"{path.stem}-masked{ending}")
    if not path.exists():
        return None
    try:
        baseline = pem.load_model(path, device="auto", runtime=runtime)
        ours, theirs = (vars(config) for config in (model.config, baseline.config))
        unlike = [key for key in ours if key not in BASELINE_MAY_DIFFER and ours[key] != theirs[key]]
        if baseline.config.attention != "masked" or unlike:
            other = f"another {unlike[0]}" if unlike else "the same attention"
            raise ValueError(f"{path} has {other}; it must be this network trained with masked attention.")
    except (OSError, ValueError) as error:
        _log.warning("The page has no masked baseline to compare with: %s", error)
        return None
    return baseline

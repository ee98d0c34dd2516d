"""Devices, and in which precision a network computes on them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pem.cores import usable_cores


def pick_device(device: str | torch.device) -> torch.device:
    """The CPU or GPU of that name; "auto" is "cuda" where there is one. Raises ValueError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        target = None
    if target is None or target.type not in ("cpu", "cuda"):
        raise ValueError(f"There is no device {device!r}; use 'auto', 'cpu' or 'cuda'.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"This machine has no CUDA device {device!r}; use device='cpu' or 'auto'.")
    return target


def use_given_cores() -> None:
    """Gives torch no more threads than cores: it does not know the quota of a container. For programs."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def to_float(tensor: Tensor) -> Tensor:
    """At least float32: half precision is for the network's products, not for norms and decisions."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, for products that decide something: float16 may overflow, and bfloat16 has 8 bits."""
    # The meta device knows no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast on a GPU; elsewhere what the caller has switched on."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. CPUs without take 14 times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()

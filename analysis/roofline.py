"""The two ceilings of a machine, measured: how fast it multiplies matrices and how fast it copies memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from analysis.timing import measure_ms, whole

COPIED_BYTES = 2**28  # far more than any cache holds


@dataclass(frozen=True)
class Roofline:
    """No computation is faster than both ceilings allow (Williams et al., 2009). 1 MAC = 2 FLOPs, 1 GB = 1e9 bytes."""

    matrix_gmacs_per_s: float
    copy_gb_per_s: float  # read plus written

    def attainable_gmacs_per_s(self, macs: float, num_bytes: float) -> float:
        """The best rate of a computation of ``macs`` that must move ``num_bytes``."""
        return min(self.matrix_gmacs_per_s, macs / num_bytes * self.copy_gb_per_s)

    def achieved(self, macs: float, num_bytes: float, ms: float) -> float:
        """The share of the attainable rate that such a computation reached in ``ms``: 1 is the roofline itself.

        May exceed 1 when the tensors stay in a cache, which is faster than the memory that was measured.
        """
        return macs / 1e6 / ms / self.attainable_gmacs_per_s(macs, num_bytes)


@torch.inference_mode()
def measure_roofline(device: str | torch.device, precision: str = "float32", repeats: int = 7) -> Roofline:
    """The best of ``repeats`` square matrix products and of as many copies. Takes about a second."""
    device = torch.device(device)
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(getattr(torch, precision))
    product = torch.empty_like(a)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def best_ms(work: Callable[[], Tensor]) -> float:
        return min(measure_ms(whole(work), device)[0] for _ in range(repeats))

    multiply_ms, copy_ms = best_ms(partial(torch.mm, a, b, out=product)), best_ms(partial(target.copy_, source))
    return Roofline(side**3 / 1e6 / multiply_ms, 2 * COPIED_BYTES / 1e6 / copy_ms)

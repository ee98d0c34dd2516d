"""What PEM costs: multiply-accumulates, latency, memory, and its attention beside the standard one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.attention import compare_attention
    from analysis.flops import count_macs
    from analysis.latency import measure_latency

__all__ = ["compare_attention", "count_macs", "measure_latency"]

_HOME = {"compare_attention": "attention", "count_macs": "flops", "measure_latency": "latency"}


def __getattr__(name: str) -> Any:
    # Imported when first used: `python -m analysis.flops` warns if the package has already imported the module it runs.
    if name in _HOME:
        return getattr(import_module(f"analysis.{_HOME[name]}"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")

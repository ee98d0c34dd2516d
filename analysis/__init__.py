"""What PEM costs: multiply-accumulates, latency, memory, and its attention beside the standard one."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see pem/cores.py

from analysis.attention import compare_attention
from analysis.flops import count_macs
from analysis.latency import measure_latency

__all__ = ["compare_attention", "count_macs", "measure_latency"]

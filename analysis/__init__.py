"""What PEM costs: multiply-accumulates, latency, memory, and its attention beside the standard one."""

from analysis.attention import compare_attention
from analysis.flops import count_macs
from analysis.latency import measure_latency

__all__ = ["compare_attention", "count_macs", "measure_latency"]

"""MACs of the parts of a decoder as formulas. ``analysis.counter`` does not use them; tests compare both."""

from __future__ import annotations


def attention_macs(num_queries: int, num_tokens: int, dim: int) -> int:
    """Softmax attention without its projections: Q * N * D for the scores, and Q * N * D to weight the values."""
    return 2 * num_queries * num_tokens * dim


def mask_product_macs(num_queries: int, cells: int, dim: int = 256) -> int:
    """Q * D * cells: each query's mask embedding with the feature of each cell."""
    return num_queries * dim * cells


def prototype_attention_macs(num_tokens: int, num_queries: int, dim: int = 256) -> int:
    """PEM-CA: N (9 D + D^2 + Q D) + 3 Q D^2.

    Tokens: depthwise 3x3, one projection, their similarity to the queries. Queries: three projections.
    """
    return num_tokens * (9 * dim + dim**2 + num_queries * dim) + 3 * num_queries * dim**2


def masked_attention_macs(num_tokens: int, num_queries: int, dim: int = 256) -> int:
    """Masked attention: N (2 D^2 + 2 Q D) + 2 Q D^2.

    Tokens: key and value projections, score, weighted sum. Queries: two projections.
    """
    return num_tokens * 2 * dim**2 + attention_macs(num_queries, num_tokens, dim) + 2 * num_queries * dim**2

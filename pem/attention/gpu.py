"""Prototype attention on a GPU by the kernels of kernels.py, where they run."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from pem.layers import first_line, is_watched, l2_normalize, without_autocast

try:
    from pem.attention import kernels
except ImportError:  # PyTorch has no Triton on this system
    kernels = None  # type: ignore[assignment]


def can_run(query: Tensor, source: Tensor, num_heads: int) -> bool:
    """Whether the kernels can do it: without gradients, unwatched, in the sizes that they take, and where they run."""
    dim = source.shape[1]
    return (
        source.is_cuda
        and query.dtype == torch.float32
        and dim & (dim - 1) == num_heads & (num_heads - 1) == 0
        and dim // num_heads >= 16  # the least that a GPU's matrix units add up
        and not is_watched()
        and run_on(source.device)
    )


@torch.compiler.assume_constant_result  # torch.compile does not look into it
def run_on(device: torch.device) -> bool:
    """Whether the kernels compute on this GPU what PyTorch's operators do. Tried once; warns where they do not."""
    return tried(device)


@cache
def tried(device: torch.device) -> bool:
    if kernels is None:
        return False
    try:
        check(device)
    except Exception as error:  # an old GPU, no compiler for Triton's launcher, a wrong result: each in its way
        warnings.warn(f"Prototype attention runs without its kernels on {device}: {first_line(error)}", stacklevel=2)
        return False
    return True


@torch.no_grad()
def check(device: torch.device) -> None:
    """Compares the kernels with PyTorch's operators on a small problem. Raises AssertionError where they differ."""
    from pem.attention.prototype import PrototypeCrossAttention  # which imports this module

    batch, dim, heads, height, width, queries = 2, 64, 4, 5, 27, 9
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(device)

    with torch.random.fork_rng(devices=()), without_autocast(device):
        layer = PrototypeCrossAttention(dim, heads, "reference").eval().to(device)
        norm, conv = layer.key_norm, layer.key_conv
        for parameter in (*norm.parameters(), *conv.parameters()):
            parameter.copy_(random(*parameter.shape))
        norm.running_mean, norm.running_var = random(dim), random(dim).square() + 0.5
        source, position = random(batch, dim, height, width), random(1, dim, height, width)
        tokens = conv(norm(source + position)).flatten(2).transpose(1, 2)
        # On a GPU the convolution may be in TF32.
        torch.testing.assert_close(kernels.convolve(norm, conv, source, position), tokens, rtol=1e-2, atol=1e-2)

        target, banned = random(batch, queries, dim), random(batch, queries, height * width) < 0
        prototype, index, similarity = kernels.choose(tokens, target, banned, layer.bans(banned), heads)
        key = l2_normalize(tokens.double(), dim=-1)
        expected_index, expected_similarity = layer.select(key, target.double(), banned)
        torch.testing.assert_close(index, expected_index)
        torch.testing.assert_close(similarity, expected_similarity.float(), rtol=1e-4, atol=1e-4)
        expected = layer.gather(key, expected_index)
        torch.testing.assert_close(prototype, expected.float(), rtol=1e-4, atol=1e-4)

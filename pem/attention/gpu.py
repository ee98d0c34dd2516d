"""Prototype attention on a GPU by the kernels of kernels.py, where they run."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pem.layers import split_heads, without_autocast

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
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and (torch.compiler.is_compiling() or _get_current_dispatch_mode() is None)
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
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(f"Prototype attention runs without its kernels on {device}: {reason[0]}", stacklevel=2)
        return False
    return True


@torch.no_grad()
def check(device: torch.device) -> None:
    """Compares the kernels with PyTorch's operators on a small problem. Raises AssertionError where they differ."""
    batch, dim, heads, height, width, queries = 2, 64, 4, 5, 27, 9
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(device)

    with without_autocast(device):
        norm = nn.BatchNorm2d(dim, device=device).eval()
        conv = nn.utils.skip_init(nn.Conv2d, dim, dim, 3, padding=1, groups=dim, device=device)
        for parameter in (norm.weight, norm.bias, conv.weight, conv.bias):
            parameter.copy_(random(*parameter.shape))
        norm.running_mean, norm.running_var = random(dim), random(dim).square() + 0.5
        source, position = random(batch, dim, height, width), random(1, dim, height, width)
        tokens = conv(norm(source + position)).flatten(2).transpose(1, 2)
        # On a GPU the convolution may be in TF32.
        torch.testing.assert_close(kernels.convolve(norm, conv, source, position), tokens, rtol=1e-2, atol=1e-2)

        target, banned = random(batch, queries, dim), random(batch, queries, height * width) < 0
        ban = torch.full((batch, queries), -1e38, device=device)
        prototype, index, similarity = kernels.choose(tokens, target, banned, ban, heads)
        key, wanted = (split_heads(x, heads).double() for x in (F.normalize(tokens, dim=2), target))
        scores = (wanted @ key.transpose(2, 3)).masked_fill(banned[:, None], -torch.inf)
        best, expected_index = scores.max(dim=3)  # [B, h, Q]
        torch.testing.assert_close(similarity, best.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(index, expected_index)
        expected = key.gather(2, index[..., None].expand(-1, -1, -1, dim // heads)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(prototype, expected.float(), rtol=1e-4, atol=1e-4)

"""Prototype attention by the fastest backend that runs on the machine at hand."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pem.attention import PrototypeCrossAttention
from pem.errors import first_line
from pem.fast import blocks, native
from pem.layers import l2_normalize
from pem.outputs import Attended

try:
    from pem.fast import kernels
except ImportError:  # PyTorch has no Triton on this system
    kernels = None  # type: ignore[assignment]

_log = logging.getLogger("pem")
# Like PrototypeCrossAttention.forward: layer, query, query_embed, source, position, banned, trace.
Backend = Callable[..., tuple[Tensor, Attended | None]]


class FastPrototypeCrossAttention(nn.Module):
    """What a PrototypeCrossAttention in eval mode computes. It is fastest on a CPU with maps in channels_last."""

    def __init__(self, plain: PrototypeCrossAttention) -> None:
        super().__init__()
        self.plain = plain

    def forward(
        self,
        query: Tensor,
        query_embed: Tensor,
        source: Tensor,
        position: Tensor,
        banned: Tensor,
        trace: bool = False,
    ) -> tuple[Tensor, Attended | None]:
        """Arguments and result are those of PrototypeCrossAttention."""
        attend = pick_backend(query, source, self.plain.num_heads)
        return attend(self.plain, query, query_embed, source, position, banned, trace)


def pick_backend(query: Tensor, source: Tensor, num_heads: int) -> Backend:
    """The fastest backend that takes these tensors and works here."""
    counts_operators = not torch.compiler.is_compiling() and _get_current_dispatch_mode() is not None
    if torch.jit.is_tracing() or counts_operators or query.requires_grad or source.requires_grad:
        return PrototypeCrossAttention.forward  # a counter sees operators alone, and only they have gradients
    if native.takes(query, source, num_heads) and works(by_native, source.device):
        return by_native
    if takes_kernels(query, source, num_heads) and works(by_kernels, source.device):
        return by_kernels
    return by_blocks


def by_native(layer: PrototypeCrossAttention, *inputs: Any) -> tuple[Tensor, Attended | None]:
    """Compiled C code, on a CPU in float32."""
    tensors: dict[str, Any] = {"alpha": layer.alpha}
    for name, part in layer.named_children():  # state_dict() would take ten times as long
        tensors |= {f"{name}.{key}": tensor for key, tensor in (part._parameters | part._buffers).items()}
    parameters = [tensors[name] for name in native.PARAMETERS]
    numbers = layer.num_heads, layer.empty_mask == "release", layer.query_norm.eps, layer.key_norm.eps
    return native.attend(parameters, *numbers, *inputs)


def by_kernels(
    layer: PrototypeCrossAttention,
    query: Tensor,
    query_embed: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
    trace: bool,
) -> tuple[Tensor, Attended | None]:
    """Triton's kernels, on a GPU."""
    norm, conv = _norm_and_conv(layer)
    norm_tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    key = layer.key_proj(kernels.convolve(source, position, *norm_tensors, conv.weight, conv.bias, norm.eps))
    target, ban = layer.make_targets(query, query_embed), blocks.bans(banned, layer.empty_mask)
    prototype, index, similarity = kernels.choose(key, target, banned, ban, layer.num_heads)
    new_query = layer.update(query, target, prototype)
    return new_query, Attended(index, similarity, target, l2_normalize(key, dim=-1)) if trace else None


def by_blocks(
    layer: PrototypeCrossAttention,
    query: Tensor,
    query_embed: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
    trace: bool,
) -> tuple[Tensor, Attended | None]:
    """Torch's operators, everywhere."""
    norm, conv = _norm_and_conv(layer)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    convolved = blocks.convolve(source + position, scale, shift, conv.weight, conv.bias)
    key = l2_normalize(layer.key_proj(convolved.flatten(2).transpose(1, 2)), dim=-1)
    target, ban = layer.make_targets(query, query_embed), blocks.bans(banned, layer.empty_mask)
    index, similarity = blocks.select(key, target, banned, ban, layer.num_heads)
    new_query = layer.update(query, target, layer.gather(key, index))
    return new_query, Attended(index, similarity, target, key) if trace else None


def _norm_and_conv(layer: PrototypeCrossAttention) -> tuple[Any, Any]:
    """Of the keys. Type checkers take their tensors for what may be None."""
    return layer.key_norm, layer.key_conv


def takes_kernels(query: Tensor, source: Tensor, num_heads: int) -> bool:
    dim = source.shape[1]
    return (
        kernels is not None
        and source.is_cuda
        and query.dtype == torch.float32
        and dim & (dim - 1) == num_heads & (num_heads - 1) == 0
        and dim // num_heads >= 16  # the least that a GPU's matrix units add up
    )


@torch.compiler.assume_constant_result  # torch.compile does not look into it
def works(backend: Backend, device: torch.device) -> bool:
    """Whether a backend computes on this device what the plain layer does. Tried once; a warning says why not."""
    return tried(backend, device)


@cache
def tried(backend: Backend, device: torch.device) -> bool:
    try:
        check(backend, device)
    except Exception as error:  # an old GPU, no compiler for Triton's launcher, a wrong result: each in its way
        _log.warning("Prototype attention does without %s on %s: %s.", backend.__name__, device, first_line(error))
        return False
    return True


@torch.inference_mode()
def check(backend: Backend, device: torch.device) -> None:
    """Compares a backend with the plain layer on a small problem. Raises AssertionError where they differ."""
    batch, dim, heads, height, width, queries = 2, 64, 4, 5, 27, 9
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    with torch.random.fork_rng(devices=()), torch.autocast(device.type, enabled=False):
        layer = PrototypeCrossAttention(dim, heads, "reference").eval()
        for tensor in layer.state_dict().values():
            tensor.copy_(random(*tensor.shape) / dim**0.5)
        layer.state_dict()["key_norm.running_var"].square_().add_(0.5)
        maps = random(batch, dim, height, width), random(1, dim, height, width)
        inputs = random(batch, queries, dim), random(queries, dim), *maps, random(batch, queries, height * width) < 0
        found = backend(copy.deepcopy(layer).to(device), *(x.to(device) for x in inputs), True)
        *floats, banned = (x.double() for x in inputs)
        expected = layer.double()(*floats, banned.bool(), trace=True)
    pairs = zip((found[0], *(found[1] or ())), (expected[0], *(expected[1] or ())), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours.cpu(), plain.to(ours.dtype), rtol=1e-3, atol=1e-4, check_stride=False)

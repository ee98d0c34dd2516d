"""A layer of prototype attention with something to look at, and the test that a backend computes what it computes."""

from __future__ import annotations

import torch
from small_model import CLEAR

from pem.attention import PrototypeCrossAttention
from pem.fast.attention import Backend
from pem.layers import split_heads


def attention(dim: int, num_heads: int, empty_mask: str = "reference") -> PrototypeCrossAttention:
    torch.manual_seed(0)
    layer = PrototypeCrossAttention(dim, num_heads, empty_mask).eval()  # type: ignore[arg-type]
    norm = layer.key_norm
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return layer


def random_inputs(size: tuple[int, int], dim: int = 32, queries: int = 7, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """query, query_embed, source, position, banned: about half of the tokens, never all of a query's."""
    rng = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    query = torch.randn(batch, queries, dim, generator=rng)
    query_embed = torch.randn(queries, dim, generator=rng)
    source = torch.randn(batch, dim, *size, generator=rng)
    position = torch.randn(1, dim, *size, generator=rng)
    banned = torch.rand(batch, queries, size[0] * size[1], generator=rng) < 0.5
    banned[..., -1] = False
    return query, query_embed, source, position, banned


def equal_tokens(layer: PrototypeCrossAttention, num_queries: int) -> torch.Tensor:
    """Gives every token the same key and every query the same target; returns the score of each head, [h, Q].

    All are sums of few powers of two, which every matrix product gives exactly: equal tokens get equal scores.
    """
    dim = layer.alpha.numel()
    unit = torch.zeros(dim)
    unit[:: dim // 16] = 0.25  # sixteen channels, and so of length 1
    signs = torch.tensor([1, 1, -1]).repeat(dim)[:dim]
    with torch.no_grad():
        for linear, bias in ((layer.key_proj, unit), (layer.query_proj, unit * signs)):
            linear.weight.zero_()
            linear.bias.copy_(bias)
    return (unit * unit * signs).view(layer.num_heads, -1).sum(1)[:, None].expand(-1, num_queries)


def with_empty_masks(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """One query of the first image and all queries of the second are banned from all tokens."""
    *others, banned = inputs
    banned[0, 2] = True
    banned[1] = True
    return *others, banned


def with_clear_choices(key: torch.Tensor, target: torch.Tensor, banned: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``banned`` with the tokens that come so near to a head's best one that rounding might choose them."""
    banned = banned.clone()
    scores = split_heads(target, num_heads) @ split_heads(key, num_heads).transpose(2, 3)  # [B, h, Q, N]
    empty = banned.all(dim=2, keepdim=True)
    while True:  # a token that is banned may have been the best one of another head
        allowed = scores.masked_fill((banned & ~empty)[:, None], -torch.inf)
        best, index = allowed.max(dim=3, keepdim=True)
        near = (allowed > best - CLEAR).scatter_(3, index, False).any(dim=1)
        if not near.any():
            return banned
        assert not (near & empty).any(), "the inputs leave a choice to rounding"
        banned |= near


@torch.no_grad()
def assert_equals_plain(
    backend: Backend,
    layer: PrototypeCrossAttention,
    inputs: tuple[torch.Tensor, ...],
    rtol: float = 1e-4,
    atol: float = 2e-6,
) -> None:
    *others, banned = inputs
    seen = layer(*inputs, trace=True)[1]
    inputs = *others, with_clear_choices(seen.key, seen.target, banned, layer.num_heads)
    new_query, attended = backend(layer, *inputs, True)
    untraced, nothing = backend(layer, *inputs, False)
    assert torch.equal(untraced, new_query) and nothing is None
    expected_query, expected = layer(*inputs, trace=True)
    assert torch.equal(attended.prototype_index, expected.prototype_index)
    for ours, plain in zip((new_query, *attended[1:]), (expected_query, *expected[1:])):
        torch.testing.assert_close(ours, plain, rtol=rtol, atol=atol, check_stride=False)

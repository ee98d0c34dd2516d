"""Prototype-based cross-attention (PEM-CA, paper section 3.2): every head of every query picks ONE token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pem.attention import gpu, native
from pem.layers import BAN, bans_every_token, l2_normalize, norm_as_affine, split_heads, without_autocast
from pem.outputs import Attended

# Scores that are made and searched at a time: 2 MB, which stay in the cache.
SCORES_AT_ONCE = 2**19


class PrototypeCrossAttention(nn.Module):
    """Adds to each query what it learns from its prototypes. There is no softmax and no separate value projection.

    ``forward(query, query_embed, source, position, banned)`` takes query [B, Q, D], query_embed [Q, D], source and
    position [B or 1, D, H, W] and banned bool [B, Q, N] (True: the token lies outside the query's previous mask), and
    returns the new query [B, Q, D], and for a trace what was chosen from what.
    Of tokens whose computed scores are equal, the first is chosen. Equal tokens need not get equal scores: a matrix
    product may round its columns differently, in another way on every processor.
    It is fastest on a CPU with maps in channels_last.
    """

    def __init__(self, dim: int, num_heads: int, empty_mask: Literal["reference", "release"]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.empty_mask = empty_mask
        self.key_norm = nn.BatchNorm2d(dim)
        self.key_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.key_proj = nn.Linear(dim, dim)
        self.query_norm = nn.LayerNorm(dim)
        self.query_proj = nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))
        self.proj = nn.Linear(dim, dim)
        self.final = nn.Linear(dim, dim)

    def forward(
        self,
        query: Tensor,
        query_embed: Tensor,
        source: Tensor,
        position: Tensor,
        banned: Tensor,
        trace: bool = False,
    ) -> tuple[Tensor, Attended | None]:
        if not self.training and native.can_run(query, source, self.num_heads):
            return native.attend(self, query, query_embed, source, position, banned, trace)
        # Unit length over all D channels, before the split into heads: a head's score is a part of the cosine.
        target = l2_normalize(self.query_proj(self.query_norm(query + query_embed)), dim=-1)  # [B, Q, D]
        if not self.training and gpu.can_run(query, source, self.num_heads):
            key = self.key_proj(gpu.kernels.convolve(self.key_norm, self.key_conv, source, position))  # [B, N, D]
            prototype, index, similarity = gpu.kernels.choose(key, target, banned, self.bans(banned), self.num_heads)
            key = l2_normalize(key, dim=-1) if trace else key
        else:
            key = self.key_proj(self.normalize_and_convolve(source + position).flatten(2).transpose(1, 2))
            key = l2_normalize(key, dim=-1, in_place=not key.requires_grad)
            index, similarity = self.select(key, target, banned)
            prototype = self.gather(key, index)  # [B, Q, D]
        # Unit length over the Q queries, per channel, as in the reference: the queries are coupled here.
        modulation = l2_normalize(self.proj(prototype * target), dim=1)
        new_query = query + self.final(modulation * self.alpha + prototype)
        return new_query, Attended(index, similarity, target, key) if trace else None

    def normalize_and_convolve(self, x: Tensor) -> Tensor:
        """``key_conv(key_norm(x))``; out of training in one convolution."""
        if self.key_norm.training:
            return self.key_conv(self.key_norm(x))
        scale, shift = norm_as_affine(self.key_norm)
        weight, bias = self.key_conv.weight, self.key_conv.bias
        assert bias is not None
        shifts = weight[:, 0] * shift[:, None, None]  # what the shift brings through each tap, [D, 3, 3]
        y = F.conv2d(x, weight * scale.view(-1, 1, 1, 1), bias + shifts.sum((1, 2)), padding=1, groups=len(weight))
        # The convolution pads with zeros after the norm: outside the image there is no shift, and taps that lie there
        # bring none. A corner loses a row and a column of taps, and the one in both is taken back only once.
        shifts = shifts.to(y.dtype)
        for edge, tap in ((0, 0), (-1, 2)):
            y[:, :, edge] -= shifts[:, tap].sum(1)[:, None]
            y[..., edge] -= shifts[..., tap].sum(1)[:, None]
            y[:, :, edge, 0] += shifts[:, tap, 0]
            y[:, :, edge, -1] += shifts[:, tap, 2]
        return y

    @torch.no_grad()
    def select(self, key: Tensor, target: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
        """The best allowed token of every head and query: index and similarity, both [B, h, Q].

        No gradient flows through the choice, only through the token that was chosen.
        """
        ban = self.bans(banned).to(key.dtype)
        keys = split_heads(key, self.num_heads)
        targets = split_heads(target, self.num_heads).transpose(2, 3)
        with without_autocast(key.device):
            index, similarity = zip(*map(best_tokens, keys, targets, banned.transpose(1, 2).contiguous(), ban))
        best = torch.stack(similarity)
        return torch.stack(index), best.masked_fill(best <= BAN / 2, 0)

    def bans(self, banned: Tensor) -> Tensor:
        """What is added to the score of a query's banned tokens, float32 [B, Q]; nothing for one that sees them all."""
        empty = bans_every_token(banned)
        if self.empty_mask == "reference":
            # Only an image whose queries are all empty is released; a lone empty query takes token 0.
            empty = empty.all(dim=1, keepdim=True).expand_as(empty)
        return BAN * ~empty  # a where() of two numbers would copy them to a GPU, and wait

    def gather(self, key: Tensor, index: Tensor) -> Tensor:
        """The chosen token of every head, concatenated: key [B, N, D] at index [B, h, Q] -> [B, Q, D]."""
        heads = split_heads(key, self.num_heads)  # [B, h, N, D/h]
        picked = heads.gather(2, index[..., None].expand(-1, -1, -1, heads.shape[-1]))
        return picked.transpose(1, 2).flatten(2)


def best_tokens(key: Tensor, target: Tensor, banned: Tensor, ban: Tensor) -> tuple[Tensor, Tensor]:
    """For one image, the first token with the highest score for every head and query: index and score, [h, Q].

    The scores, key [h, N, D/h] times target [h, D/h, Q], plus ``ban`` [Q] where ``banned`` [N, Q], are never held as a
    whole on a CPU: at 64x128 tokens they would take 26 MB, and be written and read from memory several times.
    """
    num_tokens = key.shape[1]
    # Nor does torch.compile write products into parts of a buffer.
    if key.device.type != "cpu" or torch.compiler.is_compiling():
        scores, index = torch.baddbmm(banned * ban, key, target).max(dim=1)
        return index, scores
    blocks = []
    step = max(1, SCORES_AT_ONCE // (key.shape[0] * target.shape[2]))
    # One piece of memory for all: fresh pages would cost more than the product.
    buffer = key.new_empty(key.shape[0], min(step, num_tokens), target.shape[2])
    for start in range(0, num_tokens, step):
        tokens = slice(start, min(start + step, num_tokens))
        scores = buffer[:, : tokens.stop - start]  # [h, n, Q]
        torch.baddbmm(banned[tokens] * ban, key[:, tokens], target, out=scores)
        # Max pooling over the tokens, with the queries as channels in channels_last, finds the maximum with its index
        # several tokens a cycle; max(dim=1) gives the same, one by one.
        image = scores[:, :, None].permute(0, 3, 1, 2)  # [h, Q, n, 1]
        best, index = F.max_pool2d(image, (image.shape[2], 1), return_indices=True)
        blocks.append((best.flatten(1), index.flatten(1) + start))
    best, index = (torch.stack(found) for found in zip(*blocks))
    best, block = best.max(dim=0, keepdim=True)
    return index.gather(0, block)[0], best[0]

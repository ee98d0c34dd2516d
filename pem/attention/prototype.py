"""Prototype-based cross-attention (PEM-CA, paper section 3.2): every head of every query picks ONE token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pem.layers import l2_normalize, split_heads, without_autocast


class PrototypeCrossAttention(nn.Module):
    """Adds to each query what it learns from its prototypes. There is no softmax and no separate value projection.

    ``forward(query, query_embed, source, position, banned)`` takes query [B, Q, D], query_embed [Q, D], source and
    position [B or 1, D, H, W] and banned bool [B, Q, N] (True: the token lies outside the query's previous mask), and
    returns the new query [B, Q, D], the chosen token per head [B, h, Q] and its similarity [B, h, Q].
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
        self, query: Tensor, query_embed: Tensor, source: Tensor, position: Tensor, banned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        target, key = self.compared(query, query_embed, source, position)
        index, similarity = self.select(key, target, banned)
        prototype = self.gather(key, index)  # [B, Q, D]

        # Unit length over the Q queries, per channel, as in the reference: the queries are coupled here.
        modulation = l2_normalize(self.proj(prototype * target), dim=1)
        return query + self.final(modulation * self.alpha + prototype), index, similarity

    def compared(self, query: Tensor, query_embed: Tensor, source: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """What is compared with what: the target of each query [B, Q, D] and the key of each token [B, N, D]."""
        target = self.query_proj(self.query_norm(query + query_embed))
        key = self.key_proj(self.key_conv(self.key_norm(source + position)).flatten(2).transpose(1, 2))
        # Unit length over all D channels, before the split into heads: a head's score is a part of the cosine.
        return l2_normalize(target, dim=-1), l2_normalize(key, dim=-1)

    @torch.no_grad()
    def select(self, key: Tensor, target: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
        """The best allowed token of every head and query: index and similarity, both [B, h, Q]. Ties: the first.

        No gradient flows through the choice, only through the token that was chosen.
        """
        empty = banned.all(dim=2)  # [B, Q]
        if self.empty_mask == "reference":
            # Only an image whose queries are all empty is released; a lone empty query takes token 0 below.
            empty = empty.all(dim=1, keepdim=True)
        banned = banned & ~empty[..., None]
        with without_autocast(key.device):
            heads = split_heads(key, self.num_heads)
            scores = split_heads(target, self.num_heads) @ heads.transpose(2, 3)  # [B, h, Q, N]
        similarity, index = scores.masked_fill(banned[:, None], -torch.inf).max(dim=-1)
        return index, similarity.masked_fill(similarity.isneginf(), 0)

    def gather(self, key: Tensor, index: Tensor) -> Tensor:
        """The chosen token of every head, concatenated: key [B, N, D] at index [B, h, Q] -> [B, Q, D]."""
        heads = split_heads(key, self.num_heads)  # [B, h, N, D/h]
        picked = heads.gather(2, index[..., None].expand(-1, -1, -1, heads.shape[-1]))
        return picked.transpose(1, 2).flatten(2)

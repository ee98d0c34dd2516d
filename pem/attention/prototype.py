"""Prototype-based cross-attention (PEM-CA, paper section 3.2): every head of every query picks ONE token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pem.devices import without_autocast
from pem.layers import l2_normalize, split_heads
from pem.outputs import Attended


class PrototypeCrossAttention(nn.Module):
    """Adds to each query what it learns from its prototypes. There is no softmax and no separate value projection."""

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
        """The new query [B, Q, D], and for a trace what was chosen from what.

        Args:
            query: [B, Q, D].
            query_embed: [Q, D].
            source: one level of the image, [B, D, H, W].
            position: where its tokens lie, [B or 1, D, H, W].
            banned: bool [B, Q, N], True where a token lies outside the query's previous mask.
            trace: whether to return what was chosen.
        """
        target = self.make_targets(query, query_embed)
        key = self.key_conv(self.key_norm(source + position)).flatten(2).transpose(1, 2)
        # Unit length over all D channels, before the split into heads: a head's score is a part of the cosine.
        key = l2_normalize(self.key_proj(key), dim=-1)  # [B, N, D]
        index, similarity = self.select(key, target, banned)
        new_query = self.update(query, target, self.gather(key, index))
        return new_query, Attended(index, similarity, target, key) if trace else None

    def make_targets(self, query: Tensor, query_embed: Tensor) -> Tensor:
        """What the queries look for: unit vectors [B, Q, D]."""
        return l2_normalize(self.query_proj(self.query_norm(query + query_embed)), dim=-1)

    @torch.no_grad()
    def select(self, key: Tensor, target: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
        """The best allowed token of every head and query: index and similarity, both [B, h, Q].

        The first of several equal scores wins. (Equal tokens may get unequal scores: a matrix product may round its
        columns differently.) No gradient flows through the choice, only through the token that was chosen.
        """
        empty = banned.all(dim=2, keepdim=True)
        if self.empty_mask == "reference":
            # The bans of an image are lifted only if all its queries are empty; a lone empty query takes token 0.
            empty = empty.all(dim=1, keepdim=True)
        with without_autocast(key.device):
            scores = split_heads(target, self.num_heads) @ split_heads(key, self.num_heads).transpose(2, 3)
        banned = (banned & ~empty)[:, None]
        best, index = scores.masked_fill(banned, -torch.inf).max(dim=3)
        return index, best.masked_fill(banned.all(dim=3), 0)

    def gather(self, key: Tensor, index: Tensor) -> Tensor:
        """The prototypes [B, Q, D]: the tokens of key [B, N, D] that the heads chose, index [B, h, Q], side by side."""
        heads = split_heads(key, self.num_heads)  # [B, h, N, D/h]
        picked = heads.gather(2, index[..., None].expand(-1, -1, -1, heads.shape[-1]))
        return picked.transpose(1, 2).flatten(2)

    def update(self, query: Tensor, target: Tensor, prototype: Tensor) -> Tensor:
        """The queries after they have learnt from their prototypes; all [B, Q, D]."""
        # Unit length over the Q queries, per channel, as in the reference: the queries are coupled here.
        modulation = l2_normalize(self.proj(prototype * target), dim=1)
        return query + self.final(modulation * self.alpha + prototype)

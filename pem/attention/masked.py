"""Standard masked cross-attention (Mask2Former, arXiv 2112.01527): the baseline that PEM-CA replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pem.layers import split_heads
from pem.outputs import Attended


class MaskedCrossAttention(nn.Module):
    """Softmax attention of each query over all tokens inside its previous mask.

    The interface is PrototypeCrossAttention's. A query whose mask bans every token sees all of them.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = nn.LayerNorm(dim)
        self.query_proj = nn.Linear(dim, dim)
        self.key_proj = nn.Linear(dim, dim)
        self.value_proj = nn.Linear(dim, dim)
        self.final = nn.Linear(dim, dim)
        for layer in (self.query_proj, self.key_proj, self.value_proj, self.final):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        query: Tensor,
        query_embed: Tensor,
        source: Tensor,
        position: Tensor,
        banned: Tensor,
        trace: bool = False,
    ) -> tuple[Tensor, Attended | None]:
        q, k, v, allowed = self.project(query, query_embed, source, position, banned)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        new_query = query + self.final(attended.transpose(1, 2).flatten(2))
        return new_query, self.attended(q, k, allowed) if trace else None

    def project(
        self, query: Tensor, query_embed: Tensor, source: Tensor, position: Tensor, banned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query [B, h, Q, D/h], key and value [B, h, N, D/h], and where attention may go, bool [B, 1, Q, N]."""
        allowed = (~banned).contiguous()  # a GPU's fused kernels refuse a mask whose tokens are not side by side
        allowed |= ~allowed.any(dim=2, keepdim=True)
        q = self.query_proj(self.query_norm(query) + query_embed)
        k = self.key_proj((source + position).flatten(2).transpose(1, 2))
        v = self.value_proj(source.flatten(2).transpose(1, 2))
        q, k, v = (split_heads(x, self.num_heads) for x in (q, k, v))
        return q, k, v, allowed[:, None]

    @staticmethod
    @torch.no_grad()
    def attended(q: Tensor, k: Tensor, allowed: Tensor) -> Attended:
        """Of what ``project`` returns: the token with the largest attention weight, that weight, and the vectors whose
        product, head by head, is the logit before the softmax."""
        q = q / q.shape[-1] ** 0.5
        scores = (q @ k.transpose(2, 3)).float()
        weight, index = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1).max(dim=-1)
        return Attended(index, weight, *(x.transpose(1, 2).flatten(2) for x in (q, k)))

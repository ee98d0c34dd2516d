"""The transformer decoder: queries look at the image, at each other, think, and are asked what they see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pem.attention import MaskedCrossAttention, PrototypeCrossAttention
from pem.config import PEMConfig
from pem.devices import to_float, without_autocast
from pem.layers import MLP, sine_position_embedding
from pem.outputs import Attended, LayerTrace, PEMOutput, Prediction

STRIDES = (32, 16, 8)


class SelfAttention(nn.Module):
    """Pre-norm self-attention between the queries; query_embed marks queries and keys, not values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(self, query: Tensor, query_embed: Tensor) -> Tensor:
        value = self.norm(query)
        marked = value + query_embed
        return query + self.attention(marked, marked, value, need_weights=False)[0]


class FeedForward(nn.Module):
    """Pre-norm two-layer perceptron."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, query: Tensor) -> Tensor:
        return query + self.linear2(self.linear1(self.norm(query)).relu())


class DecoderLayer(nn.Module):
    """Cross-attention to the image, self-attention between the queries, feed-forward."""

    def __init__(self, config: PEMConfig) -> None:
        super().__init__()
        dim, heads = config.hidden_dim, config.num_heads
        self.cross_attention: PrototypeCrossAttention | MaskedCrossAttention = (
            PrototypeCrossAttention(dim, heads, config.empty_mask)
            if config.attention == "prototype"
            else MaskedCrossAttention(dim, heads)
        )
        self.self_attention = SelfAttention(dim, heads)
        self.feed_forward = FeedForward(dim, config.ffn_dim)

    def forward(
        self, query: Tensor, query_embed: Tensor, source: Tensor, position: Tensor, banned: Tensor, trace: bool
    ) -> tuple[Tensor, Attended | None]:
        """The new query [B, Q, D], and for a trace what the cross-attention looked at."""
        query, attended = self.cross_attention(query, query_embed, source, position, banned, trace)
        return self.feed_forward(self.self_attention(query, query_embed)), attended


class Decoder(nn.Module):
    """L layers that visit the levels of stride 32, 16, 8 in turn, with a prediction before the first and after each."""

    def __init__(self, config: PEMConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.query_feat = nn.Embedding(config.num_queries, dim)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.level_embed = nn.Embedding(len(STRIDES), dim)
        self.input_proj = nn.ModuleList(nn.Conv2d(config.conv_dim, dim, 1) for _ in STRIDES)
        for proj in self.input_proj:
            nn.init.kaiming_uniform_(proj.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(proj.bias)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        # One set of prediction heads, used at every depth.
        self.norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, config.num_classes + 1)
        self.mask_embed = MLP(dim, 3)

    def forward(self, mask_features: Tensor, levels: list[Tensor], trace: bool = False) -> PEMOutput:
        """mask_features [B, D, H/4, W/4], levels [B, conv_dim, H/s, W/s] for s in STRIDES -> PEMOutput."""
        batch, dim = mask_features.shape[:2]
        level_embed = self.level_embed.weight[:, :, None, None]
        sources = [proj(x).add_(e) for proj, x, e in zip(self.input_proj, levels, level_embed, strict=True)]
        positions = [sine_position_embedding(x.shape[2], x.shape[3], dim, x.device).to(x.dtype) for x in sources]
        # Resizing and the mask product are both linear, so the features are resized once per level and each layer
        # takes its (small) product there, instead of a full-size product and a resize per layer.
        with torch.no_grad():
            features = to_float(mask_features)
            small_features = [
                F.interpolate(features, size=x.shape[-2:], mode="bilinear", align_corners=False)
                .flatten(2)
                .transpose(1, 2)
                for x in levels
            ]  # [B, N, D] each

        query = self.query_feat.weight.expand(batch, -1, -1)
        query_embed = self.query_embed.weight
        predictions, layer_traces = [self.predict(query, mask_features)], []
        for i, layer in enumerate(self.layers):
            scale = i % len(STRIDES)
            with torch.no_grad(), without_autocast(mask_features.device):
                embed = to_float(predictions[-1].mask_embed)
                # The tokens first, because that is how the attention's scores lie in memory.
                banned = (small_features[scale] @ embed.transpose(1, 2) < 0).transpose(1, 2)  # [B, Q, N]
            query, attended = layer(query, query_embed, sources[scale], positions[scale], banned, trace)
            predictions.append(self.predict(query, mask_features))
            if attended is not None:
                layer_traces.append(
                    LayerTrace(
                        stride=STRIDES[scale],
                        grid_size=(sources[scale].shape[2], sources[scale].shape[3]),
                        **attended._asdict(),
                        banned=banned,
                        allowed_fraction=to_float(~banned).mean(dim=2),
                        prediction=predictions[-1],
                    )
                )
        last = predictions.pop()
        return PEMOutput(
            last.pred_logits,
            last.mask_embed,
            mask_features,
            aux_outputs=tuple(predictions),
            trace=tuple(layer_traces) if trace else None,
        )

    def predict(self, query: Tensor, mask_features: Tensor) -> Prediction:
        query = self.norm(query)
        return Prediction(self.class_embed(query), self.mask_embed(query), mask_features)

"""The network written plainly, without any of the shortcuts of ``pem``: to prove them exact, and to time them against.

Every norm is a step of its own, torchvision's operator makes the deformable convolutions, masks are made at full size
and then resized, and all scores are held at once. Layers are ``Any``: what they hold is no type checker's to know.
Below it, as plainly, the panoptic reading of an output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import pem
from pem.attention import PrototypeCrossAttention
from pem.backbones.resnet import ResNet50
from pem.backbones.stdc import STDC, ConvX
from pem.categories import categories_for
from pem.config import PEMConfig
from pem.deform_conv import by_torchvision
from pem.layers import sine_position_embedding, split_heads
from pem.outputs import Batch, PEMOutput
from pem.tiles import MASK_STRIDE

LEVELS = ("res2", "res3", "res4", "res5")


@torch.no_grad()
def plain_forward(model: pem.PEM, pixels: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """All predictions, the last one last, as class logits and full-size mask logits; and each layer's prototypes."""
    return plain_decoder(model.decoder, *plain_pixel_decoder(model.pixel_decoder, plain_backbone(model, pixels)))


def plain_backbone(model: pem.PEM, pixels: Tensor) -> dict[str, Tensor]:
    net = model.backbone
    if isinstance(net, ResNet50):
        x = net.maxpool(net.bn1(net.conv1(pixels)).relu())
        outputs = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)  # torchvision's own forward
            outputs.append(x)
    else:
        assert isinstance(net, STDC)
        x, outputs = pixels, []
        for i, layer in enumerate(net.features, start=1):
            x = plain_conv_x(layer, x) if isinstance(layer, ConvX) else plain_cat_block(layer, x)
            if i in net.stage_ends:
                outputs.append(x)
    return dict(zip(LEVELS, outputs, strict=True))


def plain_conv_x(layer: Any, x: Tensor) -> Tensor:
    return layer.bn(layer.conv(x)).relu()


def plain_cat_block(block: Any, x: Tensor) -> Tensor:
    first = plain_conv_x(block.conv_list[0], x)
    outputs = [first if block.stride == 1 else block.skip(first)]
    x = first if block.stride == 1 else block.avd_layer(first)
    for layer in block.conv_list[1:]:
        x = plain_conv_x(layer, x)
        outputs.append(x)
    return torch.cat(outputs, dim=1)


def plain_conv_bn_relu(layer: Any, x: Tensor) -> Tensor:
    conv, norm = layer
    return norm(conv(x)).relu()


def plain_pixel_decoder(decoder: Any, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    def modulated(i: int) -> Tensor:
        x = plain_conv_bn_relu(decoder.lateral[i], features[LEVELS[3 - i]])
        modulation = decoder.modulation[i]
        context = modulation.expand(plain_conv_bn_relu(modulation.squeeze, x.mean((2, 3), keepdim=True)))
        return x + x * context.sigmoid().sigmoid()

    top_down = plain_conv_bn_relu(decoder.global_context, features["res5"].mean((2, 3), keepdim=True))
    levels = []
    for i, stage in enumerate(decoder.upsample):
        x = modulated(i) + top_down
        offset, factor = stage.offset(x).split((18, 9), dim=1)
        convolved = by_torchvision(x, offset, factor.sigmoid(), stage.weight)
        levels.append(stage.norm(convolved).relu())
        top_down = stage.upsample_norm(stage.upsample(levels[-1])).relu()
    return plain_conv_bn_relu(decoder.mask_projection, modulated(3) + top_down), levels


def plain_decoder(
    decoder: Any, mask_features: Tensor, levels: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    logits, masks, prototypes = [], [], []

    def predict(query: Tensor) -> None:
        query = decoder.norm(query)
        logits.append(decoder.class_embed(query))
        masks.append(torch.einsum("bqd,bdhw->bqhw", decoder.mask_embed(query), mask_features))

    query = decoder.query_feat.weight.expand(len(mask_features), -1, -1)
    query_embed = decoder.query_embed.weight
    predict(query)
    for i, layer in enumerate(decoder.layers):
        scale = i % 3
        source = decoder.input_proj[scale](levels[scale]) + decoder.level_embed.weight[scale][:, None, None]
        _, dim, height, width = source.shape
        position = sine_position_embedding(height, width, dim, source.device).to(source.dtype)
        small = F.interpolate(masks[-1], size=(height, width), mode="bilinear", align_corners=False)
        inputs = (query, query_embed, source, position, small.flatten(2) < 0)
        if isinstance(layer.cross_attention, PrototypeCrossAttention):
            query, index = plain_prototype_attention(layer.cross_attention, *inputs)
            prototypes.append(index)
        else:
            query = layer.cross_attention(*inputs)[0]
        query = layer.feed_forward(layer.self_attention(query, query_embed))
        predict(query)
    return logits, masks, prototypes


def plain_prototype_attention(
    attention: PrototypeCrossAttention,
    query: Tensor,
    query_embed: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
) -> tuple[Tensor, Tensor]:
    target = F.normalize(attention.query_proj(attention.query_norm(query + query_embed)), dim=-1)
    key = attention.key_conv(attention.key_norm(source + position)).flatten(2).transpose(1, 2)
    key = F.normalize(attention.key_proj(key), dim=-1)
    empty = banned.all(dim=2)
    if attention.empty_mask == "reference":
        empty = empty.all(dim=1, keepdim=True)
    banned = banned & ~empty[..., None]
    keys = split_heads(key, attention.num_heads)  # [B, h, N, D/h]
    scores = split_heads(target, attention.num_heads) @ keys.transpose(2, 3)
    index = scores.masked_fill(banned[:, None], -torch.inf).max(dim=-1).indices  # [B, h, Q]
    picked = keys.gather(2, index[..., None].expand(-1, -1, -1, keys.shape[-1]))
    prototype = picked.transpose(1, 2).flatten(2)
    modulation = F.normalize(attention.proj(prototype * target), dim=1)
    return query + attention.final(modulation * attention.alpha + prototype), index


def resize_masks(maps: Tensor, content: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """[Q, h, w] at the size of the padded input -> [Q, *original]: without the padding, then bilinear."""
    inside = maps[None, :, : content[0], : content[1]]
    return F.interpolate(inside, size=original, mode="bilinear", align_corners=False)[0]


def enlarge_masks(masks: Tensor) -> Tensor:
    """[Q, h, w], from mask cells to the size of the padded input."""
    return F.interpolate(masks[None], scale_factor=MASK_STRIDE, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def plain_panoptic(output: PEMOutput, batch: Batch, config: PEMConfig) -> tuple[Tensor, list[tuple[int, int]]]:
    """The first image's ids, int32 [H0, W0], and (class, pixels) of each segment: query by query on whole masks."""
    categories = categories_for(config)
    scores, labels = output.pred_logits[0].softmax(-1).max(-1)
    kept = ((labels != config.num_classes) & (scores > config.object_threshold)).nonzero()[:, 0]
    ids = torch.zeros(batch.original_sizes[0], dtype=torch.int32, device=scores.device)
    if len(kept) == 0:
        return ids, []
    masks = enlarge_masks(output.pred_masks[0][kept])
    probs = resize_masks(masks, batch.content_sizes[0], batch.original_sizes[0]).sigmoid()
    owner = (scores[kept, None, None] * probs).max(0).indices  # many times as fast as argmax
    classes: list[int] = []
    id_of_stuff: dict[int, int] = {}
    for place, label in enumerate(labels[kept].tolist()):
        owned, inside = owner == place, probs[place] >= 0.5
        visible = owned & inside
        if not visible.any() or owned.sum() / inside.sum() < config.overlap_threshold:
            continue
        if label in id_of_stuff:
            ids[visible] = id_of_stuff[label]
            continue
        classes.append(label)
        ids[visible] = len(classes)
        if not categories[label].is_thing:
            id_of_stuff[label] = len(classes)
    areas_px = ids.flatten().bincount(minlength=len(classes) + 1)[1:].tolist()
    return ids, list(zip(classes, areas_px, strict=True))

"""The tokens of prototype attention by torch's operators, with fewer trips to memory than the plain layer makes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pem.devices import without_autocast
from pem.layers import split_heads

# Added to the score of a banned token: the score is lost in rounding, so that the first of several banned tokens wins.
# It is finite, because 0 * infinity is not 0.
BAN = -1e38
# Scores that are made and searched at a time: 2 MB, which stay in the cache.
SCORES_AT_ONCE = 2**19


def convolve(x: Tensor, norm_scale: Tensor, norm_shift: Tensor, conv_weight: Tensor, conv_bias: Tensor) -> Tensor:
    """A batch norm of x [B, D, H, W] (times ``norm_scale`` [D], plus ``norm_shift`` [D]) and a depthwise 3x3
    convolution with padding 1, in one convolution."""
    shifts = conv_weight[:, 0] * norm_shift[:, None, None]  # what the shift brings through each tap, [D, 3, 3]
    weight, bias = conv_weight * norm_scale.view(-1, 1, 1, 1), conv_bias + shifts.sum((1, 2))
    y = F.conv2d(x, weight, bias, padding=1, groups=len(weight))
    # The convolution pads with zeros after the norm, so outside the image there is no shift: the taps that lie there
    # must not bring one. A corner loses a row and a column of taps, and the tap in both is taken back only once.
    shifts = shifts.to(y.dtype)
    for edge, tap in ((0, 0), (-1, 2)):
        y[:, :, edge] -= shifts[:, tap].sum(1)[:, None]
        y[..., edge] -= shifts[..., tap].sum(1)[:, None]
        y[:, :, edge, 0] += shifts[:, tap, 0]
        y[:, :, edge, -1] += shifts[:, tap, 2]
    return y


def bans(banned: Tensor, empty_mask: str) -> Tensor:
    """What is added to the scores of a query's banned tokens, float32 [B, Q]: 0 where its bans are lifted."""
    empty = bans_every_token(banned)
    if empty_mask == "reference":
        empty = empty.all(dim=1, keepdim=True).expand_as(empty)
    return BAN * ~empty  # a where() of two numbers would copy them to a GPU, and wait


def bans_every_token(banned: Tensor) -> Tensor:
    """Whether all of banned [B, Q, N] is True for a query: bool [B, Q]."""
    if banned.device.type == "cpu":
        # Tokens lie first in memory, and all(dim=2) goes through them one by one. Halves combine whole rows at a time.
        while banned.shape[2] % 2 == 0:
            first, second = banned.chunk(2, dim=2)
            banned = first & second
    return banned.all(dim=2)


def select(key: Tensor, target: Tensor, banned: Tensor, ban: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """``PrototypeCrossAttention.select``, where ``ban`` [B, Q] is what ``bans`` returns."""
    keys, targets = split_heads(key, num_heads), split_heads(target, num_heads).transpose(2, 3)
    with without_autocast(key.device):
        found = map(best_tokens, keys, targets, banned.transpose(1, 2).contiguous(), ban.to(key.dtype))
        index, similarity = map(torch.stack, zip(*found))
    return index, similarity.masked_fill(similarity <= BAN / 2, 0)


def best_tokens(key: Tensor, target: Tensor, banned: Tensor, ban: Tensor) -> tuple[Tensor, Tensor]:
    """For one image, the first token with the highest score for every head and query: index and score, [h, Q].

    The scores, key [h, N, D/h] times target [h, D/h, Q], plus ``ban`` [Q] where ``banned`` [N, Q], are never held as a
    whole on a CPU: at 64x128 tokens they would take 26 MB, and be written and read from memory several times.
    """
    num_tokens = key.shape[1]
    # torch.compile cannot write products into parts of a buffer.
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

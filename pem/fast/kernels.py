"""What prototype attention does with all tokens, as Triton kernels. See attention.py for where they are used.

Norm and convolution become one pass; of the scores only the best of every block of tokens is ever written. The
products with weights are PyTorch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pem.fast import blocks

BAN = tl.constexpr(blocks.BAN)
LEAST_LENGTH = tl.constexpr(1e-12)  # as in torch's normalize
COLS, CHANNELS = 16, 64  # of a row, and of a token: what one program convolves
TOKENS, QUERIES = 64, 128  # what one program compares


@triton.jit
def convolve_kernel(
    source,  # [B, H, W, D]
    position,  # [1 or B, H, W, D]
    norm_weight,  # [D] like all of the norm
    norm_bias,
    norm_mean,
    norm_var,
    norm_eps,
    conv_weight,  # [D, 3, 3]
    conv_bias,  # [D]
    output,  # [B, H, W, D]
    height,
    width,
    position_stride,  # from one image to the next, 0 where there is one position for all
    DIM: tl.constexpr,
    COLS: tl.constexpr,
    CHANNELS: tl.constexpr,  # a divisor of DIM
):
    """``key_conv(key_norm(source + position))`` for some columns of one row and some channels."""
    image = (tl.program_id(1) // height).to(tl.int64)
    row = tl.program_id(1) % height
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    channels = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    scale = tl.load(norm_weight + channels) / tl.sqrt(tl.load(norm_var + channels) + norm_eps)
    shift = tl.load(norm_bias + channels) - tl.load(norm_mean + channels) * scale
    source += image * height * width * DIM
    position += image * position_stride
    total = tl.zeros([COLS, CHANNELS], tl.float32) + tl.load(conv_bias + channels)
    for tap in tl.static_range(9):
        tap_row = row + tap // 3 - 1
        tap_cols = cols + tap % 3 - 1
        inside = ((tap_row >= 0) & (tap_row < height) & (tap_cols >= 0) & (tap_cols < width))[:, None]
        at = (tap_row * width + tap_cols)[:, None] * DIM + channels
        x = tl.load(source + at, mask=inside, other=0).to(tl.float32)
        x += tl.load(position + at, mask=inside, other=0).to(tl.float32)
        # Zeros outside, and after the norm.
        total += tl.where(inside, x * scale + shift, 0) * tl.load(conv_weight + channels * 9 + tap)
    output += image * height * width * DIM
    at = (row * width + cols)[:, None] * DIM + channels
    tl.store(output + at, total.to(output.dtype.element_ty), mask=(cols < width)[:, None])


@triton.jit
def compare_kernel(
    key,  # [B, N, D], of any length
    target,  # [B, Q, D]
    banned,  # [B, N, Q]
    ban,  # [B, Q]: what is added where banned
    factor,  # [B, N], made here: one by the length of the key
    best,  # [B, blocks, h, Q], made here: the highest score of a block of tokens
    index,  # the same: its token, the first of several
    num_tokens,
    num_queries,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """The best token of a block, for every head and some queries. A block's scores stay on the chip."""
    block, num_blocks = tl.program_id(0), tl.num_programs(0)
    image = tl.program_id(1).to(tl.int64)
    tokens = block * TOKENS + tl.arange(0, TOKENS)
    queries = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    is_token, is_query = tokens < num_tokens, queries < num_queries
    HEAD_DIM: tl.constexpr = DIM // HEADS
    channels = tl.arange(0, HEAD_DIM)
    key_at = key + image * num_tokens * DIM + tokens[:, None] * DIM + channels
    target_at = target + image * num_queries * DIM + queries[None, :] * DIM + channels[:, None]

    squares = tl.zeros([TOKENS], tl.float32)
    for head in range(HEADS):
        part = tl.load(key_at + head * HEAD_DIM, mask=is_token[:, None], other=0).to(tl.float32)
        squares += tl.sum(part * part, axis=1)
    one_by_length = 1 / tl.maximum(tl.sqrt(squares), LEAST_LENGTH)
    tl.store(factor + image * num_tokens + tokens, one_by_length, mask=is_token)

    pair = is_token[:, None] & is_query
    is_banned = tl.load(banned + (image * num_tokens + tokens[:, None]) * num_queries + queries, mask=pair, other=0)
    added = tl.where(is_banned != 0, tl.load(ban + image * num_queries + queries, mask=is_query, other=0), 0)
    added = tl.where(is_token[:, None], added, float("-inf"))
    for head in range(HEADS):
        part = tl.load(key_at + head * HEAD_DIM, mask=is_token[:, None], other=0).to(tl.float32)
        wanted = tl.load(target_at + head * HEAD_DIM, mask=is_query[None, :], other=0)
        # Three products of TF32 are as exact as one of float32.
        score = tl.dot(part, wanted, input_precision="tf32x3") * one_by_length[:, None] + added
        top, at = tl.max(score, axis=0, return_indices=True, return_indices_tie_break_left=True)
        entry = ((image * num_blocks + block) * HEADS + head) * num_queries + queries
        tl.store(best + entry, top, mask=is_query)
        tl.store(index + entry, block * TOKENS + at, mask=is_query)


@triton.jit
def gather_kernel(
    key,  # as in compare_kernel, like all up to index
    factor,
    best,
    index,
    prototype,  # [B, Q, D]
    chosen,  # [B, h, Q]: the best token of all blocks
    similarity,  # [B, h, Q]: its score, 0 where all tokens are banned
    num_tokens,
    num_queries,
    num_blocks,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCKS: tl.constexpr,  # at least num_blocks
):
    """The prototypes of one query, side by side."""
    query = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    HEAD_DIM: tl.constexpr = DIM // HEADS
    heads, channels = tl.arange(0, HEADS), tl.arange(0, HEAD_DIM)
    blocks = tl.arange(0, BLOCKS)
    entry = ((image * num_blocks + blocks[:, None]) * HEADS + heads) * num_queries + query
    scores = tl.load(best + entry, mask=(blocks < num_blocks)[:, None], other=float("-inf"))
    top, block = tl.max(scores, axis=0, return_indices=True, return_indices_tie_break_left=True)
    block = tl.minimum(block, num_blocks - 1)  # NaN scores are never the highest
    token = tl.load(index + ((image * num_blocks + block) * HEADS + heads) * num_queries + query)
    token = tl.minimum(token, num_tokens - 1)
    scale = tl.load(factor + image * num_tokens + token)
    of_head = heads[:, None] * HEAD_DIM + channels
    picked = tl.load(key + (image * num_tokens + token[:, None]) * DIM + of_head).to(tl.float32) * scale[:, None]
    tl.store(prototype + (image * num_queries + query) * DIM + of_head, picked)
    at = (image * HEADS + heads) * num_queries + query
    tl.store(chosen + at, token.to(tl.int64))
    tl.store(similarity + at, tl.where(top <= BAN / 2, 0, top))


def convolve(*arguments: Tensor | float) -> Tensor:
    """``launch_convolve``, which torch.compile knows as an operator."""
    launch = convolve_operator if torch.compiler.is_compiling() else launch_convolve
    return launch(*arguments)  # type: ignore[arg-type]


def launch_convolve(
    source: Tensor,
    position: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_mean: Tensor,
    norm_var: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    norm_eps: float,
) -> Tensor:
    """A batch norm of ``source + position`` and a depthwise 3x3 convolution, as tokens: source [B, D, H, W] and
    position [1 or B, D, H, W] to [B, N, D]."""
    batch, dim, height, width = source.shape
    source, position = (x.permute(0, 2, 3, 1).contiguous() for x in (source, position))
    output = torch.empty_like(source)
    channels = min(CHANNELS, dim)
    convolve_kernel[triton.cdiv(width, COLS), batch * height, dim // channels](
        *(source, position, norm_weight, norm_bias, norm_mean, norm_var, norm_eps),
        *(conv_weight, conv_bias, output, height, width, 0 if len(position) == 1 else height * width * dim),
        DIM=dim,
        COLS=COLS,
        CHANNELS=channels,
    )
    return output.flatten(1, 2)


def choose(key: Tensor, target: Tensor, banned: Tensor, ban: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every head and query the key, brought to unit length, that fits best: prototypes [B, Q, D], as float32, with
    index and similarity [B, h, Q].

    key [B, N, D] is of any length; target [B, Q, D] float32, banned [B, Q, N] and ban [B, Q] are as in
    ``PrototypeCrossAttention.select``.
    """
    launch = choose_operator if torch.compiler.is_compiling() else launch_choose
    return launch(key, target, banned, ban, num_heads)


def launch_choose(
    key: Tensor, target: Tensor, banned: Tensor, ban: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, num_tokens, dim), num_queries = key.shape, target.shape[1]
    key, target, banned, ban = (x.contiguous() for x in (key, target, banned.transpose(1, 2), ban))
    num_blocks = triton.cdiv(num_tokens, TOKENS)
    factor = target.new_empty(batch, num_tokens)
    best = target.new_empty(batch, num_blocks, num_heads, num_queries)
    index = torch.empty_like(best, dtype=torch.int32)
    compare_kernel[num_blocks, batch, triton.cdiv(num_queries, QUERIES)](
        *(key, target, banned, ban, factor, best, index, num_tokens, num_queries),
        DIM=dim,
        HEADS=num_heads,
        TOKENS=TOKENS,
        QUERIES=QUERIES,
        num_warps=8,
    )
    prototype = torch.empty_like(target)
    similarity = target.new_empty(batch, num_heads, num_queries)
    chosen = torch.empty_like(similarity, dtype=torch.int64)
    gather_kernel[num_queries, batch](
        *(key, factor, best, index, prototype, chosen, similarity, num_tokens, num_queries, num_blocks),
        DIM=dim,
        HEADS=num_heads,
        BLOCKS=triton.next_power_of_2(num_blocks),
    )
    return prototype, chosen, similarity


# Operators of their own for torch.compile, which does not look into them, but has to know their results' shapes.
convolve_operator = torch.library.custom_op("pem::convolve", launch_convolve, mutates_args=())
choose_operator = torch.library.custom_op("pem::choose", launch_choose, mutates_args=())


@convolve_operator.register_fake
def convolved_shape(source: Tensor, *_: object) -> Tensor:
    batch, dim, height, width = source.shape
    return source.new_empty(batch, height * width, dim)


@choose_operator.register_fake
def choose_shapes(
    key: Tensor, target: Tensor, banned: Tensor, ban: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    similarity = target.new_empty(len(target), num_heads, target.shape[1])
    return target.new_empty(target.shape), torch.empty_like(similarity, dtype=torch.int64), similarity

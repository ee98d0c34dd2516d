from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pem.attention import MaskedCrossAttention, PrototypeCrossAttention

B, Q, D, HEADS, H, W = 2, 7, 16, 4, 3, 5
N = H * W


def random_inputs(ban: float = 0.5) -> tuple[torch.Tensor, ...]:
    """query, query_embed, source, position, banned; float64."""
    rng = torch.Generator().manual_seed(1)
    query = torch.randn(B, Q, D, generator=rng, dtype=torch.float64)
    query_embed = torch.randn(Q, D, generator=rng, dtype=torch.float64)
    source = torch.randn(B, D, H, W, generator=rng, dtype=torch.float64)
    position = torch.randn(1, D, H, W, generator=rng, dtype=torch.float64)
    banned = torch.rand(B, Q, N, generator=rng) < ban
    return query, query_embed, source, position, banned


def random_key_and_target() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    key = torch.randn(B, N, D, generator=rng, dtype=torch.float64)
    return key, torch.randn(B, Q, D, generator=rng, dtype=torch.float64)


def prototype_attention(empty_mask: str = "reference") -> PrototypeCrossAttention:
    torch.manual_seed(0)
    return PrototypeCrossAttention(D, HEADS, empty_mask).double().eval()


def choose_plainly(key: torch.Tensor, target: torch.Tensor, banned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For every image, head and query, walk over the tokens and keep the first with the best score; token 0 if none."""
    d = D // HEADS
    index = torch.zeros(B, HEADS, Q, dtype=torch.int64)
    similarity = torch.zeros(B, HEADS, Q, dtype=torch.float64)
    for b in range(B):
        for h in range(HEADS):
            channels = slice(h * d, (h + 1) * d)
            for q in range(Q):
                best = -torch.inf
                for n in range(N):
                    score = key[b, n, channels] @ target[b, q, channels]
                    if not banned[b, q, n] and score > best:
                        best = similarity[b, h, q] = score
                        index[b, h, q] = n
    return index, similarity


def test_selection_equals_plain_loops() -> None:
    key, target = random_key_and_target()
    banned = random_inputs(ban=0.7)[4]
    index, similarity = prototype_attention().select(key, target, banned)
    expected_index, expected_similarity = choose_plainly(key, target, banned)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(similarity, expected_similarity)


def test_reference_rule_a_lone_empty_mask_takes_token_0() -> None:
    key, target = random_key_and_target()
    banned = random_inputs()[4]
    banned[0, 3] = True
    index, similarity = prototype_attention("reference").select(key, target, banned)
    assert torch.equal(index, choose_plainly(key, target, banned)[0])
    assert (index[0, :, 3] == 0).all() and (similarity[0, :, 3] == 0).all()


def test_reference_rule_an_image_whose_masks_are_all_empty_is_released() -> None:
    key, target = random_key_and_target()
    banned = random_inputs()[4]
    banned[1] = True
    index, _ = prototype_attention("reference").select(key, target, banned)
    released = banned.clone()
    released[1] = False
    assert torch.equal(index, choose_plainly(key, target, released)[0])


def test_release_rule_an_empty_mask_sees_every_token() -> None:
    key, target = random_key_and_target()
    banned = random_inputs()[4]
    banned[0, 3] = True
    index, _ = prototype_attention("release").select(key, target, banned)
    released = banned.clone()
    released[0, 3] = False
    assert torch.equal(index, choose_plainly(key, target, released)[0])


def test_ties_take_the_first_token() -> None:
    key = torch.ones(B, N, D, dtype=torch.float64)
    target = torch.ones(B, Q, D, dtype=torch.float64)
    banned = torch.zeros(B, Q, N, dtype=torch.bool)
    banned[:, :, :4] = True
    index, similarity = prototype_attention().select(key, target, banned)
    assert (index == 4).all() and (similarity == D // HEADS).all()


def test_a_prototype_is_the_chosen_token_of_each_head() -> None:
    key, _ = random_key_and_target()
    index = torch.randint(N, (B, HEADS, Q), generator=torch.Generator().manual_seed(3))
    prototype = prototype_attention().gather(key, index)
    d = D // HEADS
    for h in range(HEADS):
        assert torch.equal(prototype[1, 2, h * d : (h + 1) * d], key[1, index[1, h, 2], h * d : (h + 1) * d])


def test_similarities_of_the_heads_are_parts_of_one_cosine() -> None:
    """With every token allowed and one head, the score is a full cosine; with more heads each is a part of it."""
    attention = prototype_attention()
    query, query_embed, source, position, _ = random_inputs()
    banned = torch.ones(B, Q, N, dtype=torch.bool)
    banned[:, :, 4] = False  # the choice is forced, the same for all heads
    _, (index, similarity, _, _) = attention(query, query_embed, source, position, banned, trace=True)
    attention.num_heads = 1
    _, (_, cosine, _, _) = attention(query, query_embed, source, position, banned, trace=True)
    assert (index == 4).all()
    torch.testing.assert_close(similarity.sum(dim=1), cosine[:, 0])
    assert cosine.abs().max() <= 1


def test_only_chosen_tokens_get_a_gradient() -> None:
    attention = prototype_attention()
    nn.init.zeros_(attention.key_conv.weight)
    with torch.no_grad():
        attention.key_conv.weight[:, :, 1, 1] = 1  # no neighbours, so that a token's gradient is its own
    query, query_embed, source, position, banned = random_inputs()
    source.requires_grad_()
    result, (index, *_) = attention(query, query_embed, source, position, banned, trace=True)
    result.square().sum().backward()
    touched = source.grad.abs().sum(dim=1).flatten(1) > 1e-12
    chosen = torch.zeros(B, N, dtype=torch.bool)
    for b in range(B):
        chosen[b, index[b].flatten()] = True
    assert not chosen.all()
    assert torch.equal(touched, chosen)


def test_queries_are_coupled() -> None:
    """As published, one norm runs across the queries: without the first, all others come out differently."""
    attention = prototype_attention()
    query, query_embed, source, position, banned = random_inputs()
    with torch.no_grad():
        whole, (index, *_) = attention(query, query_embed, source, position, banned, trace=True)
        fewer, (index_of_fewer, *_) = attention(
            query[:, 1:], query_embed[1:], source, position, banned[:, 1:], trace=True
        )
    assert torch.equal(index[:, :, 1:], index_of_fewer)
    assert ((whole[:, 1:] - fewer).abs().amax(dim=2) > 1e-3).all()


# The rival.


def masked_attention() -> MaskedCrossAttention:
    torch.manual_seed(0)
    return MaskedCrossAttention(D, HEADS).double().eval()


def torch_attention(ours: MaskedCrossAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(D, HEADS, batch_first=True).double()
    projections = (ours.query_proj, ours.key_proj, ours.value_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    theirs.out_proj.load_state_dict(ours.final.state_dict())
    return theirs


def test_masked_attention_equals_torchs() -> None:
    ours = masked_attention()
    query, query_embed, source, position, banned = random_inputs()
    with torch.no_grad():
        result, (index, weight, _, _) = ours(query, query_embed, source, position, banned, trace=True)
        expected, weights = torch_attention(ours)(
            ours.query_norm(query) + query_embed,
            (source + position).flatten(2).transpose(1, 2),
            source.flatten(2).transpose(1, 2),
            attn_mask=banned.repeat_interleave(HEADS, dim=0),
            average_attn_weights=False,
        )
    torch.testing.assert_close(result, query + expected)
    expected_weight, expected_index = weights.max(dim=-1)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(weight, expected_weight, check_dtype=False)


def test_masked_attention_releases_an_empty_mask() -> None:
    ours = masked_attention()
    query, query_embed, source, position, banned = random_inputs()
    banned[0, 3] = True
    released = banned.clone()
    released[0, 3] = False
    with torch.no_grad():
        result = ours(query, query_embed, source, position, banned)[0]
        assert result.isfinite().all()
        torch.testing.assert_close(result, ours(query, query_embed, source, position, released)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_selection_on_cuda_equals_plain_loops() -> None:
    key, target = random_key_and_target()
    banned = random_inputs(ban=0.7)[4]
    index, _ = prototype_attention().select(key.cuda(), target.cuda(), banned.cuda())
    assert torch.equal(index.cpu(), choose_plainly(key, target, banned)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masked_attention_runs_on_a_fused_kernel_on_cuda() -> None:
    """Or prototypes would race against the slow path; the mask has its tokens first in memory, as in the decoder."""
    query, query_embed, source, position, banned = (x.cuda() for x in random_inputs())
    banned = banned.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad(), sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # raises where it is refused
        inputs = (x.float() for x in (query, query_embed, source, position))
        result, _ = masked_attention().float().cuda()(*inputs, banned)
    assert result.isfinite().all()

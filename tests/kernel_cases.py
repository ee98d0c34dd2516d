"""The kernels for a GPU beside PyTorch's operators. Not collected by itself: test_kernels.py runs it in Triton's
interpreter, where the kernels go through NumPy on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import small_attention
import torch
from small_model import clear_choices, small_model

import pem
from pem.attention import PrototypeCrossAttention
from pem.fast import attention as fast_attention
from pem.fast import blocks, kernels
from pem.fast.attention import FastPrototypeCrossAttention, by_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def use_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, also for tensors on a CPU."""
    if DEVICE == "cpu":
        monkeypatch.setattr(fast_attention, "pick_backend", lambda *args: by_kernels)


def attention(dim: int, num_heads: int, empty_mask: str = "reference") -> PrototypeCrossAttention:
    return small_attention.attention(dim, num_heads, empty_mask).to(DEVICE)


def random_inputs(size: tuple[int, int], dim: int = 64, queries: int = 7, batch: int = 2) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(DEVICE) for x in small_attention.random_inputs(size, dim, queries, batch))


def assert_equals_plain(layer: PrototypeCrossAttention, inputs: tuple[torch.Tensor, ...]) -> None:
    small_attention.assert_equals_plain(by_kernels, layer, inputs, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "queries"),
    [((1, 1), 7), ((3, 1), 7), ((1, 33), 130), ((4, 16), 128), ((2, 70), 9), ((7, 3), 1)],
    ids=lambda value: str(value),
)
def test_they_equal_the_plain_path_at_any_size(size: tuple[int, int], queries: int) -> None:
    """Borders, parts of blocks of tokens and queries, several of each."""
    batch = 1 if queries > 100 else 2  # the interpreter takes its time
    assert_equals_plain(attention(64, 4), random_inputs(size, queries=queries, batch=batch))


def test_they_do_with_the_paper_s_dimensions() -> None:
    assert_equals_plain(attention(256, 8), random_inputs((2, 33), dim=256, queries=100, batch=1))


def test_they_do_in_any_layout() -> None:
    query, query_embed, source, position, banned = random_inputs((3, 17))
    layer, tokens_first = attention(64, 4), banned.transpose(1, 2).contiguous().transpose(1, 2)
    source = source.to(memory_format=torch.channels_last)
    assert_equals_plain(layer, (query, query_embed, source, position.expand_as(source), tokens_first))
    positions = torch.cat((position, position.flip(2)))  # another one for each image
    assert_equals_plain(layer, (query, query_embed, source, positions, banned))


@pytest.mark.parametrize("rule", ["reference", "release"])
def test_empty_masks_follow_the_rule(rule: str) -> None:
    assert_equals_plain(attention(64, 4, rule), small_attention.with_empty_masks(random_inputs((2, 18), batch=3)))


def test_of_equal_tokens_the_first_allowed_one_is_chosen() -> None:
    """Also across blocks."""
    layer, (*inputs, _) = attention(64, 4), random_inputs((5, 40), batch=1)
    score = small_attention.equal_tokens(layer, num_queries=7)
    first = torch.tensor([0, 1, 63, 64, 65, 190, 199], device=DEVICE)
    banned = (torch.arange(200, device=DEVICE) < first[:, None])[None]
    with torch.no_grad():
        _, attended = by_kernels(layer, *inputs, banned, True)
    assert torch.equal(attended.prototype_index, first.expand(1, 4, 7))
    assert torch.equal(attended.similarity[0].cpu(), score)


def test_what_is_no_number_stays_none_and_reads_nothing_beyond() -> None:
    query, query_embed, source, *rest = random_inputs((2, 33))
    with torch.no_grad():
        new_query, attended = by_kernels(
            attention(64, 4), query, query_embed, torch.full_like(source, torch.nan), *rest, True
        )
    assert new_query.isnan().all()
    assert (attended.prototype_index >= 0).all() and (attended.prototype_index < 66).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_among_the_same_keys(dtype: torch.dtype) -> None:
    """Tokens in half precision, as autocast makes them, are convolved and compared as float32."""
    layer, (query, _, source, position, banned) = attention(64, 4), random_inputs((4, 18))
    source, position = source.to(dtype), position.to(dtype)
    with torch.no_grad():
        norm, conv = layer.key_norm, layer.key_conv
        of_norm = norm.weight, norm.bias, norm.running_mean, norm.running_var
        convolved = kernels.convolve(source, position, *of_norm, conv.weight, conv.bias, norm.eps)
        expected = conv(norm(source.float() + position.float())).flatten(2).transpose(1, 2)
        assert convolved.dtype == dtype
        torch.testing.assert_close(convolved, expected.to(dtype), rtol=1e-2, atol=1e-2)
        key = torch.nn.functional.normalize(convolved.float(), dim=-1)
        banned = small_attention.with_clear_choices(key, query, banned, 4)
        ban = blocks.bans(banned, "reference")
        prototypes, index, similarity = kernels.choose(convolved, query, banned, ban, 4)
        expected_index, expected_similarity = layer.select(key, query, banned)
        assert torch.equal(index, expected_index)
        torch.testing.assert_close(similarity, expected_similarity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(prototypes, layer.gather(key, index), rtol=1e-4, atol=1e-5)


def test_the_network_is_the_same_with_them() -> None:
    model = small_model(hidden_dim=64, num_heads=4).to(DEVICE)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    with torch.no_grad():
        plain = clear_choices(model(pixels, trace=True), num_heads=4)
        ours = pem.accelerate(model)(pixels, trace=True)
    for layer, expected in zip(ours.trace, plain.trace, strict=True):
        assert torch.equal(layer.prototype_index, expected.prototype_index)
    torch.testing.assert_close(ours.pred_masks, plain.pred_masks, rtol=1e-4, atol=1e-4)


def test_torch_compile_takes_them_as_operators() -> None:
    layer, (*inputs, banned) = FastPrototypeCrossAttention(attention(64, 4)), random_inputs((3, 17))
    banned[...] = torch.arange(51, device=DEVICE) != 40  # so that no choice hangs on rounding
    inputs = *inputs, banned
    backend = "aot_eager" if DEVICE == "cpu" else "inductor"
    with torch.no_grad():
        new_query, attended = torch.compile(layer, fullgraph=True, dynamic=False, backend=backend)(*inputs, trace=True)
        expected_query, expected = layer.plain(*inputs, trace=True)
    torch.testing.assert_close(new_query, expected_query, rtol=1e-4, atol=1e-5)
    assert torch.equal(attended.prototype_index, expected.prototype_index)


def test_their_own_check_passes() -> None:
    fast_attention.check(by_kernels, torch.device(DEVICE))

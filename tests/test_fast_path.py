"""Out of training the network takes shortcuts. Each is exact: it computes what ``analysis.plain`` computes."""

from __future__ import annotations

import io

import pytest
import torch
from small_model import clear_choices, small_model

import pem
from analysis.plain import plain_forward
from pem.attention import PrototypeCrossAttention, prototype
from pem.layers import ConvBNReLU, bans_every_token


def random_pixels(batch: int = 2, size: tuple[int, int] = (64, 96), seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals_plain_path(model: pem.PEM, pixels: torch.Tensor, rounding: float = 1e-9) -> None:
    with torch.no_grad():
        output = model(pixels, trace=True)
    logits, masks, prototypes = plain_forward(model, pixels)
    for ours, logit, mask in zip((*output.aux_outputs, output), logits, masks, strict=True):
        torch.testing.assert_close(ours.pred_logits, logit, rtol=rounding, atol=rounding)
        torch.testing.assert_close(ours.pred_masks, mask, rtol=rounding, atol=rounding)
    for layer, index in zip(output.trace, prototypes):
        assert torch.equal(layer.prototype_index, index)


@pytest.mark.parametrize(
    "changes",
    [{}, {"empty_mask": "release"}, {"attention": "masked"}, {"backbone": "resnet50"}],
    ids=["prototype", "release", "masked", "resnet50"],
)
def test_the_network_equals_its_plain_path(changes: dict[str, str]) -> None:
    assert_equals_plain_path(small_model(**changes).double(), random_pixels())


@pytest.mark.parametrize("size", [(32, 32), (32, 128), (96, 32), (288, 256)])
def test_it_does_at_sizes_of_few_cells_and_of_several_blocks(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototype, "SCORES_AT_ONCE", 4 * 12 * 100)
    assert_equals_plain_path(small_model().double(), random_pixels(1, size))


def test_it_does_in_float32() -> None:
    model, pixels = small_model(), random_pixels(seed=10).float()
    with torch.no_grad():
        clear_choices(model(pixels, trace=True), model.config.num_heads)
    assert_equals_plain_path(model, pixels, rounding=1e-4)


def train_a_step(model: pem.PEM) -> None:
    model.train()
    output = model(random_pixels())
    (output.pred_logits.square().mean() + output.pred_masks.square().mean()).backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.eval()


def load_other_weights(model: pem.PEM) -> None:
    model.load_state_dict(small_model(seed=1).state_dict())


def load_a_pickled_copy(model: pem.PEM) -> None:
    file = io.BytesIO()
    torch.save(small_model(seed=2).double().state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True), assign=True)


def write_behind_autograd(model: pem.PEM) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


@pytest.mark.parametrize(
    "change",
    [train_a_step, load_other_weights, load_a_pickled_copy, write_behind_autograd, lambda m: m.half().double()],
    ids=["training step", "load_state_dict", "assign", "data", "to another type and back"],
)
def test_no_folded_weight_is_out_of_date(change) -> None:
    model, pixels = small_model().double(), random_pixels()
    with torch.no_grad():
        before = model(pixels).pred_masks
    change(model)
    assert_equals_plain_path(model, pixels)
    with torch.no_grad():
        assert not torch.equal(model(pixels).pred_masks, before)


def test_a_folded_norm_has_the_gradients_of_a_plain_one() -> None:
    layer = ConvBNReLU(4, 6).double().eval()
    conv, norm = layer
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    learnt = [x, *layer.parameters()]
    direction = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    ours = torch.autograd.grad(layer(x), learnt, direction)
    plain = torch.autograd.grad(norm(conv(x)).relu(), learnt, direction)
    for gradient, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2), (4, 5)])
def test_the_norm_before_the_keys_is_folded_up_to_the_border(size: tuple[int, int]) -> None:
    """Zero padding comes after the norm, so that its shift is missing outside the image."""
    attention = PrototypeCrossAttention(8, 2, "reference").double().eval()
    norm = attention.key_norm
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = attention.key_conv(norm(x))
        torch.testing.assert_close(attention.normalize_and_convolve(x), expected)
        norm.weight[0] = 0  # a channel that only has its shift
        torch.testing.assert_close(attention.normalize_and_convolve(x), attention.key_conv(norm(x)))


def test_a_tie_between_blocks_of_tokens_goes_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototype, "SCORES_AT_ONCE", 2 * 3 * 100)  # of 2 heads and 3 queries: 100 tokens
    attention = PrototypeCrossAttention(8, 2, "reference")
    key, target = torch.ones(1, 230, 8), torch.ones(1, 3, 8)
    first = torch.tensor([99, 100, 229])  # of the allowed tokens of each query
    banned = torch.arange(230) < first[:, None]
    index, similarity = attention.select(key, target, banned[None])
    assert torch.equal(index, first.expand(1, 2, 3)) and (similarity == 4).all()


def test_all_of_a_row_banned() -> None:
    banned = torch.tensor([[[True, True], [True, False], [False, False]]])
    assert bans_every_token(banned).tolist() == [[True, False, False]]
    assert torch.equal(bans_every_token(banned.transpose(1, 2).contiguous().transpose(1, 2)), banned.all(dim=2))


def test_features_are_in_channels_last_out_of_training_only() -> None:
    backbone, pixels = small_model().backbone, random_pixels(1).float()
    with torch.no_grad():
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in backbone(pixels).values())
        assert all(x.is_contiguous() for x in backbone.train()(pixels).values())

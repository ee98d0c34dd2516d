"""The fast copy of a network computes what the network computes."""

from __future__ import annotations

import pytest
import small_attention
import torch
from small_attention import attention, random_inputs
from small_model import clear_choices, small_model
from torch import nn

import pem
from pem.fast import blocks
from pem.fast.attention import by_blocks
from pem.fast.folding import folded


def random_pixels(batch: int = 2, size: tuple[int, int] = (64, 96), seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals_plain_network(model: pem.PEM, pixels: torch.Tensor, rounding: float = 1e-9) -> None:
    fast = pem.accelerate(model)
    with torch.no_grad():
        ours, plain = fast(pixels, trace=True), model(pixels, trace=True)
    for output, expected in zip((*ours.aux_outputs, ours), (*plain.aux_outputs, plain), strict=True):
        torch.testing.assert_close(output.pred_logits, expected.pred_logits, rtol=rounding, atol=rounding)
        torch.testing.assert_close(output.pred_masks, expected.pred_masks, rtol=rounding, atol=rounding)
    for layer, expected_layer in zip(ours.trace, plain.trace, strict=True):
        assert torch.equal(layer.prototype_index, expected_layer.prototype_index)
        assert torch.equal(layer.banned, expected_layer.banned)
        torch.testing.assert_close(layer.similarity, expected_layer.similarity, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(
    "changes",
    [{}, {"empty_mask": "release"}, {"attention": "masked"}, {"backbone": "resnet50"}],
    ids=["prototype", "release", "masked", "resnet50"],
)
def test_a_fast_copy_equals_the_network(changes: dict[str, str]) -> None:
    assert_equals_plain_network(small_model(**changes).double(), random_pixels())


@pytest.mark.parametrize("size", [(32, 32), (32, 128), (96, 32), (288, 256)])
def test_it_does_at_sizes_of_few_cells_and_of_several_blocks(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SCORES_AT_ONCE", 4 * 12 * 100)
    assert_equals_plain_network(small_model().double(), random_pixels(1, size))


def test_it_does_in_float32() -> None:
    model, pixels = small_model(), random_pixels(seed=10).float()
    with torch.no_grad():
        clear_choices(model(pixels, trace=True), model.config.num_heads)
    assert_equals_plain_network(model, pixels, rounding=1e-4)


def test_a_copy_stays_as_it_is_and_follows_to_another_type_and_back() -> None:
    model, pixels = small_model().double(), random_pixels()
    fast = pem.accelerate(model)
    with torch.no_grad():
        before = fast(pixels).pred_masks
        for parameter in model.parameters():
            parameter.mul_(1.1)
        assert torch.equal(fast(pixels).pred_masks, before)
        torch.testing.assert_close(fast.float().double()(pixels).pred_masks, before, rtol=1e-3, atol=1e-3)


def test_a_copy_is_for_inference_alone(tmp_path) -> None:
    model = small_model()
    fast = pem.accelerate(model)
    assert not fast.eval().training and not any(parameter.requires_grad for parameter in fast.parameters())
    with pytest.raises(ValueError, match="fast copy of a model is for inference; train the model itself"):
        fast.train()
    for use in (pem.save_weights, pem.load_weights):
        with pytest.raises(ValueError, match="fast copy of a model, with other weights; take the model itself"):
            use(fast, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="training mode; call model.eval"):
        pem.accelerate(model.train())
    assert pem.accelerate(fast) is fast


@pytest.mark.parametrize(("fast", "variable", "is_fast"), [(True, "", True), (False, "", False), (True, "0", False)])
def test_a_model_is_loaded_fast_unless_it_is_switched_off(
    fast: bool, variable: str, is_fast: bool, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEM_FAST", variable)
    pem.save_weights(small_model(), tmp_path / "model.safetensors")
    model = pem.load_model(tmp_path / "model.safetensors", device="cpu", fast=fast)
    assert isinstance(model, pem.fast.FastPEM) == is_fast


def test_no_norm_is_left_of_backbone_and_pixel_decoder() -> None:
    for backbone in ("stdc1", "resnet50", "tf_efficientnet_lite2"):
        fast = pem.accelerate(small_model(backbone=backbone))
        for part in (fast.backbone, fast.pixel_decoder):
            assert not [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]


class Crossed(nn.Module):
    """The norm stands behind the convolution, and is applied before it."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 1), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_mean, 0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"res2": self.conv(self.norm(x).relu())}


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_backbone_whose_norm_stands_elsewhere_than_it_is_applied_is_not_folded(width: int, autocast: bool) -> None:
    backbone = Crossed(width).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        copied = folded(backbone)
    assert isinstance(copied.norm, nn.BatchNorm2d) and copied is not backbone


def test_a_backbone_of_one_s_own_is_folded_only_where_that_changes_nothing() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.crossed, self.channels = small_model().backbone, Crossed(), (64, 256, 512, 1024)

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.inner(self.crossed(pixels)["res2"])

    model = small_model()
    model.backbone = Own().eval()
    assert_equals_plain_network(model.double(), random_pixels())


@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_a_model_of_which_a_part_trains_has_no_copy(part: str) -> None:
    model = small_model()
    getattr(model, part).train()
    with pytest.raises(ValueError, match="training mode"):
        pem.accelerate(model)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2), (4, 5)])
def test_the_norm_before_the_keys_is_folded_up_to_the_border(size: tuple[int, int]) -> None:
    """Zero padding comes after the norm, so that its shift is missing outside the image."""
    conv, norm = nn.Conv2d(8, 8, 3, padding=1, groups=8).double(), nn.BatchNorm2d(8).double().eval()
    scale, shift = torch.randn(2, 8, dtype=torch.float64)
    scale[0] = 0  # a channel that only has its shift
    norm.weight.data, norm.bias.data, norm.running_var.data = scale, shift, 1 - norm.eps * torch.ones_like(scale)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(blocks.convolve(x, scale, shift, conv.weight, conv.bias), conv(norm(x)))


def test_a_tie_between_blocks_of_tokens_goes_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SCORES_AT_ONCE", 2 * 3 * 100)  # of 2 heads and 3 queries: 100 tokens
    key, target = torch.ones(1, 230, 8), torch.ones(1, 3, 8)
    first = torch.tensor([99, 100, 229])  # of the allowed tokens of each query
    banned = (torch.arange(230) < first[:, None])[None]
    index, similarity = blocks.select(key, target, banned, blocks.bans(banned, "reference"), 2)
    assert torch.equal(index, first.expand(1, 2, 3)) and (similarity == 4).all()


@pytest.mark.parametrize("rule", ["reference", "release"])
def test_blocks_follow_the_rule_for_empty_masks(rule: str) -> None:
    inputs = small_attention.with_empty_masks(random_inputs((5, 6), batch=3))
    small_attention.assert_equals_plain(by_blocks, attention(32, 4, rule), inputs)


def test_all_of_a_row_banned() -> None:
    banned = torch.tensor([[[True, True], [True, False], [False, False]]])
    assert blocks.bans_every_token(banned).tolist() == [[True, False, False]]
    assert torch.equal(blocks.bans_every_token(banned.transpose(1, 2).contiguous().transpose(1, 2)), banned.all(dim=2))


def test_the_features_of_a_copy_are_in_channels_last() -> None:
    seen = []
    fast = pem.accelerate(small_model())
    fast.backbone.register_forward_hook(lambda module, inputs, features: seen.extend(features.values()))
    fast(random_pixels(1).float())
    assert seen and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_gradients_of_the_pixels_flow_through_a_copy() -> None:
    model, pixels = small_model().double(), random_pixels(1).requires_grad_()
    networks = model, pem.accelerate(model)
    plain, ours = (torch.autograd.grad(network(pixels).pred_masks.sum(), pixels)[0] for network in networks)
    torch.testing.assert_close(ours, plain)

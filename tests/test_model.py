from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_model import small_config, small_model
from torch.nn import functional as F

import pem
from pem.config import PRESETS
from pem.layers import split_heads
from pem.outputs import PEMOutput


def random_pixels(batch: int = 1, size: tuple[int, int] = (64, 96), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3)).to(dtype)


def on_meta(config: pem.PEMConfig) -> pem.PEM:
    """Shapes without values: quick to build."""
    with torch.device("meta"):
        return pem.build_model(config)


def num_params(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "cityscapes", "ade20k"),
    [("r50", 35.53, 35.57), ("stdc1", 16.96, 16.99), ("stdc2", 20.99, 21.02)],
)
def test_millions_of_parameters_are_those_of_the_paper(backbone, cityscapes, ade20k) -> None:
    assert round(num_params(on_meta(pem.get_config(f"cityscapes-panoptic-{backbone}"))) / 1e6, 2) == cityscapes
    assert round(num_params(on_meta(pem.get_config(f"ade20k-panoptic-{backbone}"))) / 1e6, 2) == ade20k


def test_parameters_per_part() -> None:
    r50 = on_meta(pem.get_config("cityscapes-panoptic-r50"))
    stdc = on_meta(pem.get_config("ade20k-panoptic-stdc1"))
    assert (num_params(r50.pixel_decoder), num_params(r50.decoder)) == (2_178_001, 9_846_548)
    assert (num_params(stdc.pixel_decoder), num_params(stdc.decoder)) == (1_792_977, 9_880_215)


@pytest.mark.parametrize(("name", "attention"), [*((name, "prototype") for name in PRESETS), ("default", "masked")])
def test_every_preset_builds_and_gives_the_promised_shapes(name, attention) -> None:
    config = dataclasses.replace(pem.get_config(name), attention=attention)
    model = on_meta(config)
    assert not model.training
    output = model(torch.empty(2, 3, 64, 96, device="meta"), trace=True)
    queries, classes = config.num_queries, config.num_classes + 1
    assert output.pred_logits.shape == (2, queries, classes)
    assert output.pred_masks.shape == (2, queries, 16, 24)
    assert len(output.aux_outputs) == config.num_layers
    assert output.aux_outputs[0].pred_masks.shape == (2, queries, 16, 24)
    assert [(layer.stride, layer.grid_size) for layer in output.trace] == [(32, (2, 3)), (16, (4, 6)), (8, (8, 12))] * 2
    for layer in output.trace:
        assert layer.prototype_index.shape == layer.similarity.shape == (2, config.num_heads, queries)
        assert layer.allowed_fraction.shape == (2, queries)
        assert layer.pred_logits.shape == (2, queries, classes)


def test_masked_attention_replaces_the_cross_attention_and_nothing_else() -> None:
    ours = small_model(attention="prototype").state_dict()
    rival = small_model(attention="masked").state_dict()
    differing = {name for name in ours.keys() ^ rival.keys()}
    assert differing and all(".cross_attention." in name for name in differing)


def equal(a: PEMOutput, b: PEMOutput) -> bool:
    pairs = zip((a, *a.aux_outputs), (b, *b.aux_outputs), strict=True)
    return all(torch.equal(x.pred_logits, y.pred_logits) and torch.equal(x.pred_masks, y.pred_masks) for x, y in pairs)


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_the_trace_changes_no_bit(attention) -> None:
    model, pixels = small_model(attention=attention), random_pixels(2)
    with torch.no_grad():
        plain, traced = model(pixels), model(pixels, trace=True)
    assert plain.trace is None and len(traced.trace) == model.config.num_layers
    assert equal(plain, traced)


def test_the_trace_holds_the_predictions_after_each_layer() -> None:
    with torch.no_grad():
        output = small_model()(random_pixels(), trace=True)
    for layer, prediction in zip(output.trace, (*output.aux_outputs[1:], output), strict=True):
        assert torch.equal(layer.pred_logits, prediction.pred_logits)
        assert torch.equal(layer.pred_masks, prediction.pred_masks)


def test_level_sized_mask_products_equal_resized_full_masks() -> None:
    """Resizing and the product are both linear, so the decoder resizes the features once instead of masks per layer."""
    with torch.no_grad():
        output = small_model().double()(random_pixels(2, dtype=torch.float64), trace=True)
    for layer, previous in zip(output.trace, output.aux_outputs, strict=True):
        full = F.interpolate(previous.pred_masks, size=layer.grid_size, mode="bilinear", align_corners=False)
        features = F.interpolate(previous.mask_features, size=layer.grid_size, mode="bilinear", align_corners=False)
        small = (previous.mask_embed @ features.flatten(2)).view_as(full)
        torch.testing.assert_close(small, full, rtol=1e-10, atol=1e-10)
        allowed_fraction = (full >= 0).double().mean(dim=(2, 3))
        torch.testing.assert_close(layer.allowed_fraction, allowed_fraction, check_dtype=False)
    assert 0 < output.trace[0].allowed_fraction.mean() < 1


def test_every_prototype_lies_in_the_mask_of_its_query() -> None:
    with torch.no_grad():
        output = small_model().double()(random_pixels(2, dtype=torch.float64), trace=True)
    for layer, previous in zip(output.trace, output.aux_outputs, strict=True):
        mask = F.interpolate(previous.pred_masks, size=layer.grid_size, mode="bilinear", align_corners=False).flatten(2)
        picked = mask.gather(2, layer.prototype_index.transpose(1, 2))
        assert (picked[layer.allowed_fraction > 0] >= 0).all()
        assert (layer.prototype_index.transpose(1, 2)[layer.allowed_fraction == 0] == 0).all()


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_the_trace_holds_what_every_choice_was_made_from(attention) -> None:
    model = small_model(attention=attention, empty_mask="release").double()
    heads = model.config.num_heads
    with torch.no_grad():
        output = model(random_pixels(2, dtype=torch.float64), trace=True)
    for layer in output.trace:
        scores = split_heads(layer.target, heads) @ split_heads(layer.key, heads).transpose(2, 3)  # [B, h, Q, N]
        banned = layer.banned & ~layer.banned.all(dim=2, keepdim=True)
        scores = scores.masked_fill(banned[:, None], -torch.inf)
        best, index = (scores.softmax(-1) if attention == "masked" else scores).max(-1)
        assert torch.equal(index, layer.prototype_index)
        torch.testing.assert_close(best, layer.similarity, check_dtype=False)
        torch.testing.assert_close((~layer.banned).double().mean(2), layer.allowed_fraction, check_dtype=False)


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_a_batch_of_two_photos_of_one_size_equals_two_runs(attention) -> None:
    model, pixels = small_model(attention=attention).double(), random_pixels(2, dtype=torch.float64)
    with torch.no_grad():
        both = model(pixels, trace=True)
        for i in range(2):
            alone = model(pixels[i : i + 1], trace=True)
            torch.testing.assert_close(both.pred_logits[i], alone.pred_logits[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(both.pred_masks[i], alone.pred_masks[0], rtol=1e-9, atol=1e-9)
            for layer, layer_alone in zip(both.trace, alone.trace, strict=True):
                assert torch.equal(layer.prototype_index[i], layer_alone.prototype_index[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_half_precision_autocast_runs(dtype, attention) -> None:
    model, pixels = small_model(attention=attention), random_pixels()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        output = model(pixels, trace=True)
    assert output.pred_logits.isfinite().all() and output.pred_masks.isfinite().all()


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_every_parameter_learns(attention) -> None:
    """A loss on all predictions reaches everything: nothing is left out of the graph by mistake."""
    model = small_model(attention=attention).train()
    output = model(random_pixels(2))
    sum(
        (p.pred_logits.square().mean() + p.pred_masks.square().mean()) for p in (output, *output.aux_outputs)
    ).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_a_trace_changes_nothing_in_training_either(attention) -> None:
    plain, traced = (small_model(seed=1, attention=attention).train() for _ in range(2))
    pixels = random_pixels(2)
    assert torch.equal(plain(pixels).pred_logits, traced(pixels, trace=True).pred_logits)
    states = plain.state_dict(), traced.state_dict()
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []


def test_a_reading_before_the_loss_takes_no_gradient_away() -> None:
    model, batch = small_model(), pem.preprocess([np.zeros((40, 60, 3), np.uint8)], small_config())
    output = model(batch.pixels)
    pem.panoptic(output, batch, model.config)
    assert output.pred_masks.requires_grad
    assert output.pred_masks is output.pred_masks  # made once


@pytest.mark.parametrize("size", [(64, 90), (33, 64)])
def test_sizes_that_do_not_fit_are_refused(size) -> None:
    with pytest.raises(ValueError, match="both sides must be multiples of 32"):
        small_model()(torch.zeros(1, 3, *size))


def test_configs_vary_by_replace() -> None:
    preset = pem.get_config("cityscapes-panoptic-r50")
    model = on_meta(dataclasses.replace(preset, num_classes=150, num_queries=50))
    assert model.decoder.class_embed.out_features == 151
    assert model.decoder.query_feat.num_embeddings == 50


def test_a_timm_backbone_works() -> None:
    model = small_model(backbone="mobilenetv2_100")
    with torch.no_grad():
        assert model(random_pixels()).pred_masks.shape == (1, 12, 16, 24)
    with pytest.raises(ValueError, match="no backbone 'mobilenet_v9'"):
        pem.build_model(small_config(backbone="mobilenet_v9"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_autocast_runs_on_cuda(dtype) -> None:
    model, pixels = small_model().cuda(), random_pixels().cuda()
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype):
        output = model(pixels, trace=True)
    assert output.pred_logits.isfinite().all() and output.pred_masks.isfinite().all()

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from closed_forms import conv_macs, decoder_macs, pixel_decoder_macs, resnet50_macs
from small_model import small_config, small_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import deform_conv2d

import analysis
import pem
from analysis.closed_forms import (
    attention_macs,
    mask_product_macs,
    masked_attention_macs,
    prototype_attention_macs,
)
from analysis.counter import CostRow, mac_counter
from analysis.flops import CASES, ModelCost, count_with_fvcore
from pem.attention import MaskedCrossAttention, PrototypeCrossAttention
from pem.fast.deform_conv import fast_deform_conv2d
from pem.pixel_decoder import DeformableUpsample

count = lru_cache(
    lambda preset, size, attention="prototype": analysis.count_macs(
        dataclasses.replace(pem.get_config(preset), attention=attention), size
    )
)


def gmacs(cost: ModelCost, stage: str, part: str = "", operator: str = "") -> float:
    """Of a stage, of one of its parts or of one operator in it."""
    wanted = [r for r in cost.rows if r.stage == stage and part in ("", r.part) and operator in ("", r.operator)]
    assert wanted
    return sum(row.gmacs for row in wanted)


def counted(function: Callable[..., Any], *inputs: Tensor) -> dict[str, CostRow]:
    """What each operator did in one call."""
    with mac_counter() as counter:
        function(*inputs)
    rows = list(counter.rows())
    assert len({row.operator for _, row in rows}) == len(rows)
    return {row.operator: row for _, row in rows}


def macs_of(function: Callable[..., Any], *inputs: Tensor) -> dict[str, int]:
    return {name: round(row.gmacs * 1e9) for name, row in counted(function, *inputs).items() if row.gmacs}


# Whole networks.


@pytest.mark.parametrize(
    ("preset", "size", "backbone", "pixel_decoder", "deformable", "decoder", "total"),
    [
        ("cityscapes-panoptic-r50", (1024, 2048), 170.8, 25.0, 6.3, 34.0, 236.1),
        ("cityscapes-panoptic-stdc1", (1024, 2048), 31.5, 19.9, 6.3, 34.0, 91.7),
        ("cityscapes-panoptic-stdc2", (1024, 2048), 57.8, 19.9, 6.3, 34.0, 118.0),
        ("ade20k-panoptic-r50", (640, 640), 33.4, 4.9, 1.2, 7.5, 47.0),
    ],
)
def test_every_stage_costs_what_the_published_code_costs(
    preset: str,
    size: tuple[int, int],
    backbone: float,
    pixel_decoder: float,
    deformable: float,
    decoder: float,
    total: float,
) -> None:
    cost = count(preset, size)
    assert gmacs(cost, "backbone") == pytest.approx(backbone, abs=0.05)
    assert gmacs(cost, "pixel decoder", operator="convolution") == pytest.approx(pixel_decoder, abs=0.05)
    assert gmacs(cost, "pixel decoder", operator="deformable convolution") == pytest.approx(deformable, abs=0.05)
    others = gmacs(cost, "backbone") + gmacs(cost, "pixel decoder")
    assert cost.reference_total_gmacs - others == pytest.approx(decoder, abs=0.05)
    assert cost.reference_total_gmacs == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize(
    ("preset", "size", "total"),
    [
        ("ade20k-semantic-r50", (512, 512), 30.5),
        ("ade20k-semantic-r50", (512, 672), 39.7),
        ("ade20k-semantic-stdc1", (512, 672), 16.0),
        ("ade20k-semantic-stdc2", (512, 672), 20.3),
    ],
)
def test_the_smaller_sizes_cost_what_the_published_code_costs(preset: str, size: tuple[int, int], total: float) -> None:
    assert count(preset, size).reference_total_gmacs == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize("attention", ["prototype", "masked"])
@pytest.mark.parametrize("size", [(1024, 2048), (256, 384)])
def test_a_whole_network_equals_its_closed_form(size: tuple[int, int], attention: str) -> None:
    config = dataclasses.replace(pem.get_config("cityscapes-panoptic-r50"), attention=attention)
    cost, cells = count(config.name, size, attention), size[0] * size[1]
    backbone, pixel_decoder = resnet50_macs(cells), pixel_decoder_macs(config, (256, 512, 1024, 2048), cells)
    assert gmacs(cost, "backbone") * 1e9 == pytest.approx(backbone)
    assert gmacs(cost, "pixel decoder") * 1e9 == pytest.approx(pixel_decoder)
    published = backbone + pixel_decoder + decoder_macs(config, cells)
    assert cost.reference_total_gmacs * 1e9 == pytest.approx(published)


@pytest.mark.parametrize(("backbone", "num_classes", "mega_params"), [("r50", 19, 35.53), ("stdc2", 150, 21.02)])
def test_parameters(backbone: str, num_classes: int, mega_params: float) -> None:
    config = dataclasses.replace(pem.get_config(f"cityscapes-panoptic-{backbone}"), num_classes=num_classes)
    assert analysis.count_macs(config, (32, 32)).total_params / 1e6 == pytest.approx(mega_params, abs=0.005)


def test_every_parameter_stands_in_the_row_of_its_operator() -> None:
    model = small_model()
    rows = analysis.count_macs(small_config(), (32, 32)).grouped("operator")
    assert sum(row.params for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["deformable convolution"].params == 3 * 16 * 16 * 9
    convs = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert rows["convolution"].params == sum(p.numel() for conv in convs for p in conv.parameters())


def test_we_save_the_mask_products_and_nothing_else() -> None:
    cost = count("cityscapes-panoptic-r50", (1024, 2048))
    full_size = mask_product_macs(100, 256 * 512) / 1e9  # a quarter of the image each way
    level_size = 2 * mask_product_macs(100, 32 * 64 + 64 * 128 + 128 * 256) / 1e9  # each level is visited twice
    assert gmacs(cost, "masks") == pytest.approx(full_size)
    assert gmacs(cost, "decoder", operator="mask product") == pytest.approx(level_size)
    assert cost.reference_total_gmacs - cost.total_gmacs == pytest.approx(6 * full_size - level_size)


def test_decoder_parts_equal_their_closed_forms() -> None:
    cost = count("cityscapes-panoptic-r50", (1024, 2048))
    q, d, ffn, levels = 100, 256, 2048, (32 * 64, 64 * 128, 128 * 256)
    expected = {
        "input_proj": sum(128 * d * n for n in levels),
        "cross_attention": 2 * sum(prototype_attention_macs(n, q, d) for n in levels),
        "self_attention": 6 * (4 * q * d * d + 2 * q * q * d),
        "feed_forward": 6 * 2 * q * d * ffn,
        "class_embed": 7 * q * d * 20,
        "mask_embed": 7 * q * 3 * d * d,
    }
    assert {part: gmacs(cost, "decoder", part) * 1e9 for part in expected} == pytest.approx(expected)


def test_prototypes_are_chosen_by_comparisons_and_fetched_by_bytes() -> None:
    cost = count("cityscapes-panoptic-r50", (1024, 2048))
    rows = {row.operator: row for row in cost.rows if row.part == "cross_attention"}
    tokens = 2 * (32 * 64 + 64 * 128 + 128 * 256)
    # One per head, query and token for the maximum.
    assert rows["comparison"].comparisons == 8 * 100 * tokens
    fetched = 6 * 100 * 256 * 4
    indices = 6 * 8 * 100 * 8  # where to fetch them: an int64 per layer, head and query
    assert rows["gather"].written_mib * 2**20 == fetched
    assert rows["gather"].read_mib * 2**20 == fetched + indices
    assert "softmax" not in rows and "attention weighting" not in rows


def test_masked_attention_changes_only_its_own_part() -> None:
    prototype, masked = (
        analysis.count_macs(small_config(attention=name), (64, 96)) for name in ("prototype", "masked")
    )

    def by_part(cost: ModelCost) -> dict[tuple[str, str], float]:
        return {(r.stage, r.part): gmacs(cost, r.stage, r.part) for r in cost.rows if r.part or r.stage != "decoder"}

    different = {key for key, value in by_part(masked).items() if value != pytest.approx(by_part(prototype)[key])}
    assert different == {("decoder", "cross_attention")}
    expected = 2 * sum(masked_attention_macs(n, 12, 32) for n in (2 * 3, 4 * 6, 8 * 12))
    assert gmacs(masked, "decoder", "cross_attention") * 1e9 == pytest.approx(expected)


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_counting_without_data_sees_what_the_cpu_computes(attention: str) -> None:
    model, pixels = small_model(attention=attention), torch.zeros(1, 3, 64, 96)
    with mac_counter(model) as counter:
        _ = model(pixels).pred_masks
    computed, cost = counter.total(), analysis.count_macs(model.config, (64, 96))
    assert cost.total_gmacs == pytest.approx(computed.gmacs)
    for column in ("comparisons", "exponentials", "interpolation_gmacs", "read_mib", "written_mib"):
        assert sum(getattr(row, column) for row in cost.rows) == pytest.approx(getattr(computed, column)), column


def test_rows_add_up_in_every_grouping() -> None:
    cost = analysis.count_macs(small_config(), (64, 96))
    assert list(cost.grouped("stage")) == ["backbone", "pixel decoder", "decoder", "masks"]
    for by in ("stage", "operator"):
        assert sum(row.gmacs for row in cost.grouped(by).values()) == pytest.approx(cost.total_gmacs)
        assert sum(row.params for row in cost.grouped(by).values()) == cost.total_params


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        analysis.count_macs(small_config(), (100, 100))


# Single operators, against their closed forms.


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(groups: int) -> None:
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups)
    assert macs_of(conv, torch.zeros(2, 8, 10, 14)) == {"convolution": conv_macs(8, 12, 3, 2 * 5 * 7, groups)}


def test_transposed_convolution_costs_by_its_input() -> None:
    conv = nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1)
    assert macs_of(conv, torch.zeros(1, 8, 5, 7)) == {"convolution": conv_macs(8, 12, 4, 5 * 7)}


def test_both_ways_of_a_deformable_convolution_cost_the_same() -> None:
    x, offset, modulation = torch.zeros(2, 8, 5, 7), torch.zeros(2, 18, 5, 7), torch.zeros(2, 9, 5, 7)
    weight = torch.zeros(12, 8, 3, 3)
    expected = conv_macs(8, 12, 3, 2 * 5 * 7)
    kernel = counted(lambda: deform_conv2d(x, offset, weight, padding=1, mask=modulation))
    assert round(kernel["deformable convolution"].gmacs * 1e9) == expected
    sampled = counted(fast_deform_conv2d, x, offset, modulation, weight)
    assert sum(round(row.gmacs * 1e9) for row in sampled.values()) == expected
    # Four neighbours for each of nine taps, every channel and cell.
    reads = pytest.approx(4 * 9 * 2 * 8 * 5 * 7 / 1e9)
    assert kernel["deformable convolution"].interpolation_gmacs == reads
    assert sampled["resampling"].interpolation_gmacs == reads


def test_the_taps_of_the_pixel_decoder_are_called_by_their_name() -> None:
    with mac_counter() as counter:
        DeformableUpsample(8)(torch.zeros(1, 8, 5, 7))
    macs = {row.operator: round(row.gmacs * 1e9) for _, row in counter.rows() if row.gmacs}
    assert macs == {
        "convolution": conv_macs(8, 27, 3, 35) + conv_macs(8, 8, 4, 35),
        "deformable convolution": conv_macs(8, 8, 3, 35),
    }


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("banned", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attention_is_seen_on_every_backend(backend: SDPBackend, banned: bool, mode: Callable[[], Any]) -> None:
    q, k, v = torch.rand(2, 8, 100, 32), torch.rand(2, 8, 640, 32), torch.rand(2, 8, 640, 32)
    mask = torch.rand(2, 1, 100, 640) > 0.5 if banned else None

    class Attention(nn.Module):
        def forward(self) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with mode(), sdpa_kernel(backend):
        rows = counted(Attention())
    scores, weighting = rows["attention scores"], rows["attention weighting"]
    assert round((scores.gmacs + weighting.gmacs) * 1e9) == 2 * attention_macs(100, 640, 256)
    assert scores.gmacs == weighting.gmacs
    assert rows["softmax"].exponentials == rows["softmax"].comparisons == 2 * 8 * 100 * 640
    # The scores lie in memory when they are spelled out, and never when the kernel is fused.
    spelled_out = backend is SDPBackend.MATH
    assert scores.written_mib * 2**20 == (2 * 8 * 100 * 640 * 4 if spelled_out else 0)


@pytest.mark.parametrize("kernel", ["flash_attention", "efficient_attention", "cudnn_attention"])
def test_attention_is_seen_on_the_backends_of_a_gpu(kernel: str) -> None:
    """Called by name on tensors without data, since their machine is not here."""
    q, k, v = (torch.empty(2, 8, n, 32, device="meta", dtype=torch.float16) for n in (100, 640, 640))
    operator = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    extra = () if kernel == "flash_attention" else (None, False)
    rows = counted(lambda: operator(q, k, v, *extra))
    assert round(rows["attention scores"].gmacs * 1e9) == round(rows["attention weighting"].gmacs * 1e9)
    assert round(rows["attention scores"].gmacs * 2e9) == 2 * attention_macs(100, 640, 256)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_inside_of_multihead_attention_is_seen(need_weights: bool, mode: Callable[[], Any]) -> None:
    tokens, attention = torch.zeros(1, 100, 256), nn.MultiheadAttention(256, 8, batch_first=True).eval()
    with mode():
        macs = macs_of_modules(attention, tokens, need_weights)
    half = attention_macs(100, 100, 256) // 2
    assert macs == {"linear": 4 * 100 * 256 * 256, "attention scores": half, "attention weighting": half}


def macs_of_modules(attention: nn.Module, tokens: Tensor, need_weights: bool) -> dict[str, int]:
    with mac_counter(attention) as counter:
        attention(tokens, tokens, tokens, need_weights=need_weights)
    sums: dict[str, float] = {}
    for _, row in counter.rows():
        if row.gmacs:
            sums[row.operator] = sums.get(row.operator, 0) + row.gmacs
    return {operator: round(total * 1e9) for operator, total in sums.items()}


@pytest.mark.parametrize(("height", "width", "num_queries"), [(4, 6, 7), (8, 8, 50), (16, 32, 100)])
def test_prototype_and_masked_attention(height: int, width: int, num_queries: int) -> None:
    dim, heads, tokens = 32, 4, height * width
    inputs = (
        torch.rand(1, num_queries, dim),
        torch.rand(num_queries, dim),
        torch.rand(1, dim, height, width),
        torch.rand(1, dim, height, width),
        torch.rand(1, num_queries, tokens) < 0.5,
    )
    for layer, expected in (
        (PrototypeCrossAttention(dim, heads, "release").eval(), prototype_attention_macs(tokens, num_queries, dim)),
        (MaskedCrossAttention(dim, heads).eval(), masked_attention_macs(tokens, num_queries, dim)),
    ):
        with mac_counter(layer) as counter:
            layer(*inputs)
        assert round(counter.total().gmacs * 1e9) == expected
        products = [row for _, row in counter.rows() if row.operator.startswith("attention")]
        weighted = isinstance(layer, MaskedCrossAttention)  # a prototype is fetched, not weighted
        assert sum(round(row.gmacs * 1e9) for row in products) == attention_macs(num_queries, tokens, dim) // (
            1 if weighted else 2
        )


def test_mask_product() -> None:
    embed, features = torch.zeros(2, 7, 16), torch.zeros(2, 16, 5 * 6)
    assert macs_of(torch.matmul, embed, features) == {"mask product": 2 * mask_product_macs(7, 5 * 6, 16)}


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_product_with_a_weight_is_linear_by_whatever_kernel(contiguous: bool) -> None:
    tokens = torch.zeros(2, 6, 16) if contiguous else torch.zeros(2, 16, 6).transpose(1, 2)
    assert macs_of(nn.Linear(16, 24), tokens) == {"linear": 2 * 6 * 16 * 24}


def test_work_that_is_not_a_product() -> None:
    x = torch.rand(3, 40)
    (argmax,) = counted(lambda: x.argmax(1)).values()
    assert (argmax.operator, argmax.comparisons, argmax.gmacs) == ("comparison", 120, 0)
    assert argmax.read_mib * 2**20 == 120 * 4 and argmax.written_mib * 2**20 == 3 * 8
    (topk,) = counted(lambda: x.topk(2, dim=1)).values()
    assert topk.comparisons == 120
    pool = counted(lambda: F.max_pool2d(torch.zeros(1, 2, 8, 8), 2))["comparison"]
    assert pool.comparisons == 2 * 4 * 4 * 2 * 2
    index = torch.zeros(3, 5, dtype=torch.long)
    (gather,) = counted(lambda: x.gather(1, index)).values()
    assert gather.read_mib * 2**20 == 15 * 8 + 15 * 4  # the index and what it picks, not the whole of x
    resize = counted(lambda: F.interpolate(x[None, None], size=(6, 80), mode="bilinear"))["resampling"]
    assert resize.interpolation_gmacs == pytest.approx(4 * 6 * 80 / 1e9)


def test_views_cost_nothing_and_expanded_memory_is_read_once() -> None:
    x = torch.rand(4, 6)
    assert not counted(lambda: x.t().unsqueeze(0).expand(5, -1, -1)[:, :3])
    (added,) = counted(lambda: x[:1].expand(4, 6) + 1).values()
    assert added.read_mib * 2**20 == 6 * 4 and added.written_mib * 2**20 == 24 * 4


def test_an_operator_without_a_formula_is_refused_and_not_counted_as_nothing() -> None:
    from torchvision.ops import nms

    with pytest.raises(ValueError, match=r"no cost formula .*nms"), mac_counter():
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_the_counter_leaves_nothing_behind() -> None:
    layer = nn.Linear(2, 2)
    with mac_counter(layer) as counter:
        layer(torch.zeros(1, 2))
    before = counter.total()
    layer(torch.zeros(1, 2))
    assert counter.total() == before and before.gmacs == 4e-9
    assert torch.backends.mha.get_fastpath_enabled()


# fvcore.


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_fvcore_misses_fused_attention_and_similarities_and_nothing_else(attention: str) -> None:
    model = small_model(attention=attention)
    cost = analysis.count_macs(model.config, (64, 96))
    found = count_with_fvcore(model, torch.zeros(1, 3, 64, 96))
    tokens = (2 * 3, 4 * 6, 8 * 12)
    missed = 6 * attention_macs(12, 12, 32) + conv_macs(16, 16, 3, sum(tokens))  # the deformable convolutions
    if attention == "masked":
        missed += 2 * sum(attention_macs(12, n, 32) for n in tokens)
    assert (cost.total_gmacs - found.product_gmacs) * 1e9 == pytest.approx(missed)
    assert found.not_counted["aten::scaled_dot_product_attention"] == (6 if attention == "prototype" else 12)


def test_fvcore_misses_the_deformable_convolution_of_a_gpu() -> None:
    """The kernel that PEM takes there, here on a CPU."""

    class Convolution(nn.Module):
        def forward(self, x: Tensor) -> SimpleNamespace:
            mixed = deform_conv2d(x, torch.zeros(1, 18, 5, 7), torch.zeros(4, 8, 3, 3), padding=1)
            return SimpleNamespace(pred_masks=mixed, pred_logits=mixed, aux_outputs=())

    found = count_with_fvcore(Convolution(), torch.zeros(1, 8, 5, 7))
    assert found.product_gmacs == 0 and found.not_counted == {"torchvision::deform_conv2d": 1}


def test_the_kept_results_are_what_the_code_counts() -> None:
    kept = json.loads((Path(__file__).parent.parent / "analysis/results/macs.json").read_text(encoding="utf-8"))
    assert [(case["preset"], tuple(case["size"]), case["attention"]) for case in kept["cases"]] == list(CASES)
    for case in kept["cases"]:
        cost = count(case["preset"], tuple(case["size"]), case["attention"])
        assert case["total_gmacs"] == pytest.approx(cost.total_gmacs)
        assert case["reference_total_gmacs"] == pytest.approx(cost.reference_total_gmacs)
        assert case["total_params"] == cost.total_params
        assert len(case["rows"]) == len(cost.rows)
        assert case["fvcore"]["product_gmacs"] < cost.total_gmacs

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from small_model import small_config, small_model
from torch import nn
from torch.nn import functional as F

import analysis
import pem
from analysis.flops import CASES, ModelCost, mac_counter, masked_attention_macs, prototype_attention_macs

count = lru_cache(lambda preset, size: analysis.count_macs(pem.get_config(preset), size))


def row(cost: ModelCost, stage: str, operator: str) -> float:
    (found,) = [row.gmacs for row in cost.rows if (row.stage, row.operator) == (stage, operator)]
    return found


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
    assert cost.stage_gmacs("backbone") == pytest.approx(backbone, abs=0.05)
    assert row(cost, "pixel decoder", "convolution") == pytest.approx(pixel_decoder, abs=0.05)
    assert row(cost, "pixel decoder", "deformable convolution") == pytest.approx(deformable, abs=0.05)
    others = cost.stage_gmacs("backbone") + cost.stage_gmacs("pixel decoder")
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


@pytest.mark.parametrize(("backbone", "num_classes", "mega_params"), [("r50", 19, 35.53), ("stdc2", 150, 21.02)])
def test_parameters(backbone: str, num_classes: int, mega_params: float) -> None:
    config = dataclasses.replace(pem.get_config(f"cityscapes-panoptic-{backbone}"), num_classes=num_classes)
    assert analysis.count_macs(config, (32, 32)).total_params / 1e6 == pytest.approx(mega_params, abs=0.005)


def test_we_save_the_mask_products_and_nothing_else() -> None:
    cost = count("cityscapes-panoptic-r50", (1024, 2048))
    full_size = 100 * 256 * 256 * 512 / 1e9  # queries x channels x a quarter of the image each way
    level_size = 2 * 100 * 256 * (32 * 64 + 64 * 128 + 128 * 256) / 1e9  # each level is visited twice
    assert row(cost, "decoder", "mask product, full size") == pytest.approx(full_size)
    assert row(cost, "decoder", "mask product, level size") == pytest.approx(level_size)
    assert cost.reference_total_gmacs - cost.total_gmacs == pytest.approx(6 * full_size - level_size)


def test_decoder_rows_equal_their_closed_forms() -> None:
    cost = count("cityscapes-panoptic-r50", (1024, 2048))
    q, d, ffn, levels = 100, 256, 2048, (32 * 64, 64 * 128, 128 * 256)
    expected = {
        "input projection": sum(128 * d * n for n in levels),
        "cross-attention": 2 * sum(prototype_attention_macs(n, q, d) for n in levels),
        "self-attention": 6 * (4 * q * d * d + 2 * q * q * d),
        "feed-forward": 6 * 2 * q * d * ffn,
        "prediction heads": 7 * q * (3 * d * d + d * 20),
    }
    assert {name: row(cost, "decoder", name) * 1e9 for name in expected} == pytest.approx(expected)


def test_masked_attention_changes_only_its_own_row() -> None:
    prototype = {(r.stage, r.operator): r.gmacs for r in analysis.count_macs(small_config(), (64, 96)).rows}
    masked = {
        (r.stage, r.operator): r.gmacs for r in analysis.count_macs(small_config(attention="masked"), (64, 96)).rows
    }
    assert {key for key in masked if masked[key] != prototype[key]} == {("decoder", "cross-attention")}
    expected = 2 * sum(masked_attention_macs(n, 12, 32) for n in (2 * 3, 4 * 6, 8 * 12))
    assert masked["decoder", "cross-attention"] * 1e9 == pytest.approx(expected)


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_the_meta_device_counts_what_the_cpu_computes(attention: str) -> None:
    model = small_model(attention=attention).requires_grad_(False)
    with mac_counter() as counter:
        _ = model(torch.zeros(1, 3, 64, 96)).pred_masks
    assert analysis.count_macs(model.config, (64, 96)).total_gmacs * 2e9 == pytest.approx(counter.get_total_flops())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_counter_sees_attention(device: str) -> None:
    query, key = torch.zeros(1, 8, 100, 32, device=device), torch.zeros(1, 8, 4096, 32, device=device)
    with mac_counter() as counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() // 2 == 2 * 100 * 4096 * 256


def test_the_counter_sees_the_inside_of_multihead_attention() -> None:
    with torch.device("meta"):
        tokens, attention = torch.empty(1, 100, 256), nn.MultiheadAttention(256, 8, batch_first=True).eval()
    with mac_counter() as counter:
        attention(tokens, tokens, tokens, need_weights=False)
    assert counter.get_total_flops() // 2 == 4 * 100 * 256 * 256 + 2 * 100 * 100 * 256


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        analysis.count_macs(small_config(), (100, 100))


def test_the_kept_results_are_what_the_code_counts() -> None:
    kept = json.loads((Path(__file__).parent.parent / "analysis/results/macs.json").read_text())
    assert [(case["preset"], tuple(case["size"])) for case in kept["cases"]] == list(CASES)
    for case in kept["cases"]:
        cost = count(case["preset"], tuple(case["size"]))
        assert case["total_gmacs"] == pytest.approx(cost.total_gmacs)
        assert case["reference_total_gmacs"] == pytest.approx(cost.reference_total_gmacs)
        assert case["total_params"] == cost.total_params

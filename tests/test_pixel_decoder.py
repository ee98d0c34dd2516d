from __future__ import annotations

import torch

from pem.pixel_decoder import ContextSelfModulation, DeformableUpsample, PixelDecoder


def test_self_modulation_is_a_gain_between_1_5_and_1_7311() -> None:
    """Two sigmoids in a row, as published: it can neither switch a channel off nor double it."""
    torch.manual_seed(0)
    modulation = ContextSelfModulation(32).double().eval()
    torch.nn.init.normal_(modulation.expand.weight, std=3)
    x = torch.rand(4, 32, 5, 6, dtype=torch.float64) + 0.1
    with torch.no_grad():
        gain = modulation(x * 3) / (x * 3)
    assert gain.min() > 1.5 and gain.max() < 1.7311
    assert gain.max() - gain.min() > 0.15  # most of the range is used
    # One gain for a whole channel.
    torch.testing.assert_close(gain, gain[:, :, :1, :1].expand_as(gain))


def test_upsampling_starts_without_offsets_and_with_half_modulation() -> None:
    stage = DeformableUpsample(8).double().eval()
    x = torch.randn(1, 8, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        level, doubled = stage(x)
        convolved = torch.nn.functional.conv2d(x, stage.weight, padding=1) / 2
        torch.testing.assert_close(level, stage.norm(convolved).relu())
    assert doubled.shape == (1, 8, 8, 12)


def test_shapes_from_coarse_to_fine() -> None:
    channels = (8, 16, 24, 32)
    decoder = PixelDecoder(channels, conv_dim=12, mask_dim=20).eval()
    features = {
        f"res{i + 2}": torch.randn(2, c, 64 // s, 96 // s)
        for i, (c, s) in enumerate(zip(channels, (4, 8, 16, 32), strict=True))
    }
    with torch.no_grad():
        mask_features, levels = decoder(features)
    assert mask_features.shape == (2, 20, 16, 24)
    assert [tuple(x.shape) for x in levels] == [(2, 12, 2, 3), (2, 12, 4, 6), (2, 12, 8, 12)]
    assert mask_features.min() >= 0 and all(x.min() >= 0 for x in levels)  # all end in a ReLU

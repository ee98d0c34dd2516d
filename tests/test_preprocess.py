"""Photos of all sizes become batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pem.config import get_config
from pem.preprocess import preprocess

CONFIG = replace(get_config("default"), short_side_px=384, max_long_side_px=768)  # (x - 127) / 128


def gradient(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack((rows % 256, cols % 256, (rows + cols) % 256), axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("original", "content", "padded"),
    [
        ((384, 384), (384, 384), (384, 384)),
        ((480, 640), (384, 512), (384, 512)),
        ((375, 500), (384, 512), (384, 512)),
        ((500, 375), (512, 384), (512, 384)),
        ((300, 451), (384, 577), (384, 608)),  # 451 * 384 / 300 = 577.28
        ((427, 640), (384, 576), (384, 576)),  # 575.55 is rounded up
        ((100, 400), (192, 768), (192, 768)),  # the long side is capped
        ((10, 10_000), (1, 768), (32, 768)),  # a side never vanishes
    ],
)
def test_sizes(original: tuple[int, int], content: tuple[int, int], padded: tuple[int, int]) -> None:
    batch = preprocess([np.zeros((*original, 3), np.uint8)], CONFIG)
    assert batch.original_sizes == (original,)
    assert batch.content_sizes == (content,)
    assert batch.pixels.shape == (1, 3, *padded)


def test_pixels_are_normalised_per_channel_and_padding_is_zero_afterwards() -> None:
    config = replace(CONFIG, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 2.0, 4.0), short_side_px=16)
    image = np.full((16, 20, 3), (11, 24, 42), np.uint8)
    batch = preprocess([image], config)
    assert batch.pixels.dtype == torch.float32
    expected = torch.zeros(1, 3, 32, 32)
    expected[0, :, :16, :20] = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    torch.testing.assert_close(batch.pixels, expected)


def test_an_image_that_fits_is_not_resampled() -> None:
    image = gradient(384, 416)
    pixels = preprocess([image], CONFIG).pixels
    torch.testing.assert_close(pixels[0] * 128 + 127, torch.from_numpy(image).permute(2, 0, 1).float())


def test_a_batch_is_padded_to_its_largest_sides() -> None:
    tall, wide = gradient(600, 400), gradient(400, 600)
    batch = preprocess([tall, wide], CONFIG)
    assert batch.pixels.shape == (2, 3, 576, 576)
    assert batch.content_sizes == ((576, 384), (384, 576))
    for i, image in enumerate((tall, wide)):
        height, width = batch.content_sizes[i]
        alone = preprocess([image], CONFIG).pixels[0]
        assert torch.equal(batch.pixels[i, :, :height, :width], alone[:, :height, :width])
        assert not batch.pixels[i, :, height:].any() and not batch.pixels[i, :, :, width:].any()


def test_pil_and_array_give_the_same() -> None:
    image = gradient(50, 70)
    assert torch.equal(preprocess([image], CONFIG).pixels, preprocess([Image.fromarray(image)], CONFIG).pixels)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
    ],
)
def test_arrays_that_are_not_uint8_rgb_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8 RGB"):
        preprocess([image], CONFIG)


def test_a_single_image_or_none_is_refused() -> None:
    for images in ([], gradient(20, 20)):
        with pytest.raises(ValueError, match="list of at least one image"):
            preprocess(images, CONFIG)

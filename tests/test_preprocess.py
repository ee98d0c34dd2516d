"""Images of all kinds become one kind, and what cannot is refused with a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pem.config import get_config
from pem.photos import ImageError, load_image, to_array
from pem.preprocess import preprocess

CONFIG = replace(get_config("default"), short_side_px=384, max_long_side_px=768)  # (x - 127) / 128


def gradient(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack((rows % 256, cols % 256, (rows + cols) % 256), axis=2).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ geometry


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


# --------------------------------------------------------------------------------------------------------------- files


def reloaded(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    loaded = load_image(file)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def test_a_photo_is_turned_upright() -> None:
    image = Image.fromarray(gradient(10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(reloaded(image, exif=exif), np.rot90(gradient(10, 20), -1))


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[0, 0, 3] = 0
    rgba[0, 1, 3] = 128
    loaded = reloaded(Image.fromarray(rgba))
    assert loaded[0, 0].tolist() == [255] * 3 and loaded[0, 2].tolist() == [0] * 3
    assert abs(int(loaded[0, 1, 0]) - 127) <= 1


def test_a_transparent_palette_colour_lies_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((0, 0), 0)
    loaded = reloaded(image, transparency=0)
    assert loaded[0, 0].tolist() == [255, 255, 255] and loaded[1, 1].tolist() == [200, 0, 0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.repeat(np.array([0, 257, 32768, 65535], np.uint16), 16).reshape(8, 8)
    loaded = reloaded(Image.fromarray(levels))
    assert loaded[::2, 0, 0].tolist() == [0, 1, 128, 255]


def test_whole_numbers_without_a_depth_are_taken_for_the_depth_that_holds_them() -> None:
    levels = np.repeat(np.array([0, 100, 200, 255], np.int32), 16).reshape(8, 8)
    for factor in (1, 257):
        loaded = to_array(Image.fromarray(levels * factor))
        assert loaded[::2, 0, 0].tolist() == [0, 100, 200, 255]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e7])
def test_floats_are_scaled_by_the_white_they_must_have_had(white: float) -> None:
    levels = np.repeat(np.array([0, 0.5, 1, np.nan], np.float32), 16).reshape(8, 8) * np.float32(white)
    loaded = reloaded(Image.fromarray(levels), "TIFF")
    assert loaded[::2, 0, 0].tolist() == [0, 128, 255, 0]


def test_the_first_picture_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    loaded = reloaded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert loaded[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG"), ("P", "GIF")])
def test_other_colour_modes_become_rgb(mode: str, kind: str) -> None:
    loaded = reloaded(Image.new("RGB", (8, 8), "white").convert(mode), kind)
    assert loaded.min() >= 250


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_matter() -> None:
    loaded = reloaded(Image.fromarray(gradient(8, 8)), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(loaded, gradient(8, 8))


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims to be so large, up to where its pixels should be."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"this is no image", "not an image"),
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n", "not an image"),
        (png_header(20, 7), "at least 8"),
        (png_header(8000, 5001), "40 megapixels"),
        (png_header(12_000, 12_000), "40 megapixels"),  # Pillow would warn here
        (png_header(100_000, 100_000), "40 megapixels"),  # and refuse here
        (png_header(8, 65_501), "at most 65500 a side"),
        (png_header(8000, 5000), "damaged"),  # 40 megapixels are not too many
    ],
    ids=["text", "empty", "program", "small", "large", "larger", "huge", "long", "truncated"],
)
@pytest.mark.filterwarnings("error")
def test_refusals(content: bytes, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence) as error:
        load_image(io.BytesIO(content))
    assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    with pytest.raises(ImageError, match="damaged|not an image"):
        load_image(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no file .*nothing.jpg"):
        load_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(tmp_path)

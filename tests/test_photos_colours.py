"""Levels and colours of all depths and kinds become RGB of 8 bits with the brightness that they had."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from photo_files import RAMP, SIZE, grey_png, packed, png, png_chunk, ramp, read, saved, tiff
from PIL import Image

from pem.photos import ImageError, to_array


def reloaded(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    return read(saved(image, kind, **options))


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


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_packed_levels_have_their_brightness_or_are_refused_by_name(order: str, white_is_zero: bool, bits: int) -> None:
    levels = ramp(2**bits - 1, "u2")
    content = tiff(packed(levels, bits), SIZE, [bits], 0 if white_is_zero else 1, order)
    if bits in (10, 14):
        with pytest.raises(ImageError, match=f"cannot be read .{bits}-bit grey.*; save it as"):
            read(content)
        return
    right = levels * 255.0 / (2**bits - 1)
    assert np.abs(read(content)[..., 0] - (255 - right if white_is_zero else right)).max() <= 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tiff(b"\0" * 192, SIZE, [8, 8, 8], 6), "8-bit YCbCr, uncompressed"),
        (tiff(b"\0" * 384, SIZE, [16] * 3, 2, t341=(3, [4095] * 3)), "16-bit RGB, uncompressed, white at 4095"),
        (tiff(b"\0" * 768, SIZE, [32] * 3, 2, t339=(3, [3] * 3)), "32-bit float RGB"),
        (tiff(b"\0" * 288, SIZE, [12] * 3, 2, ">"), "12-bit RGB, uncompressed, big-endian"),
        (tiff(b"\0" * 384, SIZE, [16] * 3, 2, t284=(3, [2])), "16-bit RGB, uncompressed, each colour apart"),
        (tiff(b"\0" * 256, SIZE, [16] * 2, 1, t338=(3, [2])), "16-bit grey, uncompressed, more channels than colours"),
        (tiff(b"\0" * 192, SIZE, [8] * 3, 9), "8-bit ICC Lab"),
        (tiff(b"\0" * 192, SIZE, [8] * 3, 2, t259=(3, [34712])), "8-bit RGB, compression 34712"),
    ],
)
def test_what_pillow_would_misread_is_refused_by_name(content: bytes, named: str) -> None:
    with pytest.raises(ImageError, match=rf"^This kind of TIFF cannot be read \({named}.*\); save it as RGB .*\.$"):
        read(content)


@pytest.mark.parametrize(
    "mode", ["L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
)
def test_a_pil_image_of_any_mode_is_read(mode: str) -> None:
    grey = Image.new("L", (8, 8), 200)
    way = {
        "La": ["LA"],
        "RGBa": ["RGBA"],
        "PA": ["P"],
        "CMYK": ["RGB"],
        "YCbCr": ["RGB"],
        "HSV": ["RGB"],
        "LAB": ["RGB"],
    }
    for step in [*way.get(mode, []), mode]:
        grey = grey.convert(step)
    assert grey.mode == mode
    assert np.abs(to_array(grey).astype(int) - 200).max() <= 2


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_in_either_byte_order_are_scaled(mode: str) -> None:
    levels = ramp(65535, ">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, SIZE, levels.tobytes())
    assert np.abs(to_array(image)[..., 0].astype(int) - RAMP).max() <= 1


def test_levels_of_a_png_have_the_brightness_that_its_significant_bits_say() -> None:
    s_bit = png_chunk(b"sBIT", bytes([12]))
    raw = ramp(4095, "u2")  # as no standard has it
    spread = raw << 4 | raw >> 8
    dark = spread // 16 // 16 * 16  # sound, and of a dark room
    for levels, right in ((raw, RAMP), (spread, RAMP), (dark, RAMP // 16)):
        assert np.abs(read(grey_png(levels, s_bit))[..., 0].astype(int) - right).max() <= 1
    assert read(grey_png(raw))[..., 0].max() <= 16  # nobody says that 4095 is white


def test_the_transparent_level_or_colour_of_a_png_lies_on_white() -> None:
    def clear(*levels: int) -> bytes:
        return png_chunk(b"tRNS", struct.pack(f">{len(levels)}H", *levels))

    deep = ramp(65535, "u2")
    loaded = read(grey_png(deep, clear(int(deep[3, 3]))))[..., 0]
    assert loaded[3, 3] == 255 and loaded[3, 2] == RAMP[3, 2]
    for bits in (1, 2, 4):
        levels = np.arange(64).reshape(8, 8) % 2**bits
        loaded = read(png(packed(levels, bits), SIZE, bits, 0, clear(0)))[..., 0]
        assert (loaded[levels == 0] == 255).all() and (loaded[levels == 1] == 255 // (2**bits - 1)).all()
    colours = np.zeros((8, 8, 3), ">u2")
    colours[0] = (300, 40000, 5)
    loaded = read(png(colours.tobytes(), SIZE, 16, 2, clear(300, 40000, 5)))
    assert (loaded[0] == 255).all() and not loaded[1:].any()


def test_deep_greys_with_alpha_lie_on_white() -> None:
    levels = np.stack((ramp(65535, ">u2"), np.full((8, 8), 65535, ">u2")), 2)
    levels[0, :, 1] = 0
    loaded = read(png(levels.tobytes(), SIZE, 16, 4))[..., 0].astype(int)
    assert (loaded[0] == 255).all() and np.abs(loaded[1:] - RAMP[1:]).max() <= 1

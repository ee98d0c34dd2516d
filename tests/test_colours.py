"""Photos in other colour spaces are read as sRGB, whatever file or mode they come in."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from photo_files import HAS_AVIF, jpeg_segment, png_chunk, saved
from PIL import Image, ImageCms

from pem.photos import load_image, to_array

# Colorants, adapted to D50: those of Display P3, of sRGB, and D50 itself.
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
WHITE = np.array([0.9642, 1.0, 0.8249])
GAMMA = 2.2

# Blocks of one colour, so that lossy formats keep them.
COLOURS = np.array(
    [[200, 120, 80], [90, 160, 100], [60, 90, 180], [128, 128, 128], [255, 255, 255], [0, 0, 0]], np.uint8
)
BLOCKS = COLOURS.repeat(16, axis=0)[None].repeat(16, axis=0)


def tagged(signature: bytes, *values: float) -> bytes:
    if signature == b"XYZ ":
        return signature + bytes(4) + struct.pack(">3i", *(round(x * 65536) for x in values))
    return signature + bytes(4) + struct.pack(">IH", 1, round(values[0] * 256)) + bytes(2)  # a gamma


def icc_profile(space: bytes = b"RGB ") -> bytes:
    """Of Display P3's colours, or of grey; with a gamma of 2.2."""
    text = b"made for a test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + text,
        b"wtpt": tagged(b"XYZ ", *WHITE),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = tagged(b"curv", GAMMA)
    else:
        for name, colorant in zip((b"r", b"g", b"b"), P3.T, strict=True):
            tags |= {name + b"XYZ": tagged(b"XYZ ", *colorant), name + b"TRC": tagged(b"curv", GAMMA)}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI", start + len(data), 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + tagged(b"XYZ ", *WHITE)[8:]
    return header.ljust(128, b"\0") + table + data


PROFILE = icc_profile()


def encoded(linear: np.ndarray) -> np.ndarray:
    """sRGB's own curve: linear light 0..1 -> levels 0..255."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def in_srgb(levels: np.ndarray) -> np.ndarray:
    return encoded((levels / 255.0) ** GAMMA @ P3.T @ np.linalg.inv(SRGB).T)


EXPECTED = in_srgb(BLOCKS)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 1.5),
        ("TIFF", {}, 1.5),
        ("WEBP", {"lossless": True}, 1.5),
        ("JPEG", {"quality": 100, "subsampling": 0}, 6),
        pytest.param(
            "AVIF",
            {"quality": 100, "subsampling": "4:4:4"},
            6,
            marks=pytest.mark.skipif(not HAS_AVIF, reason="no AVIF"),
        ),
    ],
)
def test_a_wide_gamut_becomes_srgb(kind: str, options: dict[str, object], tolerance: float) -> None:
    content = saved(Image.fromarray(BLOCKS), kind, icc_profile=PROFILE, **options)
    loaded = np.asarray(load_image(io.BytesIO(content)))
    assert np.abs(EXPECTED - BLOCKS).max() > 10  # it matters
    assert np.abs(loaded - EXPECTED)[:, 4::8].max() <= tolerance
    with Image.open(io.BytesIO(content)) as image:  # opened elsewhere
        assert np.array_equal(to_array(image), loaded)
        assert image.mode == "RGB" and image.info["icc_profile"] == PROFILE


def test_alpha_and_palettes_keep_their_places() -> None:
    image = Image.fromarray(BLOCKS)
    with_alpha = image.copy()
    with_alpha.putalpha(Image.fromarray(np.full(BLOCKS.shape[:2], 128, np.uint8)))
    palette = image.quantize(16)
    for other, expected in (
        (with_alpha, EXPECTED * 128 / 255 + 127),
        (palette, in_srgb(np.asarray(palette.convert("RGB")))),
    ):
        loaded = np.asarray(load_image(io.BytesIO(saved(other, "PNG", icc_profile=PROFILE))))
        assert np.abs(loaded - expected).max() <= 1.6


def test_greys_follow_their_curve() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, axis=0)
    expected = encoded((ramp / 255.0) ** GAMMA)
    for image in (Image.fromarray(ramp), Image.merge("LA", [Image.fromarray(ramp), Image.new("L", (256, 16), 255)])):
        loaded = np.asarray(load_image(io.BytesIO(saved(image, "PNG", icc_profile=icc_profile(b"GRAY")))))
        assert np.abs(loaded - expected[..., None]).max() <= 1.5
    assert np.abs(expected - ramp).max() > 3
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    loaded = np.asarray(load_image(io.BytesIO(saved(deep, "PNG", icc_profile=icc_profile(b"GRAY")))))
    assert np.abs(loaded - expected[..., None]).max() <= 1.5
    with_clear = saved(Image.fromarray(ramp), "PNG", icc_profile=icc_profile(b"GRAY"), transparency=7)
    loaded = np.asarray(load_image(io.BytesIO(with_clear)))
    expected[ramp == 7] = 255
    assert np.abs(loaded - expected[..., None]).max() <= 1.5


def test_profiles_of_srgb_change_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    loaded = load_image(io.BytesIO(saved(Image.fromarray(noise), "PNG", icc_profile=profile)))
    assert np.array_equal(np.asarray(loaded), noise)


@pytest.mark.parametrize(
    "profile",
    [b"no profile", PROFILE[:200], icc_profile(b"GRAY"), icc_profile(b"CMYK"), PROFILE.replace(b"acsp", b"ACSP")],
    ids=["text", "cut off", "of grey", "of inks, without a table", "no signature"],
)
def test_profiles_that_do_not_fit_are_left_alone(profile: bytes) -> None:
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = saved(Image.fromarray(BLOCKS), kind, icc_profile=profile, **options)
        assert np.array_equal(np.asarray(load_image(io.BytesIO(content))), BLOCKS)


def test_a_profile_in_several_parts_is_put_together() -> None:
    plain = saved(Image.fromarray(BLOCKS), "JPEG", quality=100, subsampling=0)
    parts = [b"ICC_PROFILE\0" + bytes([i + 1, 2]) + part for i, part in enumerate((PROFILE[:300], PROFILE[300:]))]
    for order in (parts, parts[::-1]):  # they may come in any order
        content = plain[:2] + b"".join(jpeg_segment(0xE2, part) for part in order) + plain[2:]
        assert np.abs(np.asarray(load_image(io.BytesIO(content))) - EXPECTED)[:, 4::8].max() <= 6


def test_inks_are_what_their_profile_says() -> None:
    cyan = (55.0, -37.0, -50.0)  # in Lab; without a profile it would be the brightest blue-green of a screen
    corners = [(100.0, 0.0, 0.0)] + [(10.0, 0.0, 0.0)] * 7 + [cyan] + [(10.0, 0.0, 0.0)] * 7  # C changes slowest
    table = bytes(round(x) for light, a, b in corners for x in (light * 2.55, a + 128, b + 128))
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *np.eye(3, dtype=int).ravel() * 65536)
    lut += identity * 4 + table + identity * 3
    start = 128 + 4 + 12 + 12
    tags = struct.pack(">I", 2) + b"A2B0" + struct.pack(">II", start, len(lut))
    tags += b"wtpt" + struct.pack(">II", start + len(lut), 20)
    header = struct.pack(">I4xI", start + len(lut) + 20, 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    header = (header.ljust(68, b"\0") + tagged(b"XYZ ", *WHITE)[8:]).ljust(128, b"\0")
    profile = header + tags + lut + tagged(b"XYZ ", *WHITE)
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    light = (cyan[0] + 16) / 116
    expected = encoded(
        np.linalg.inv(SRGB) @ (WHITE * np.array([light + cyan[1] / 500, light, light - cyan[2] / 200]) ** 3)
    )
    loaded = np.asarray(load_image(io.BytesIO(saved(image, "TIFF", icc_profile=profile))))
    assert np.abs(loaded - expected).max() <= 3 and expected[1] < 160


def test_a_packed_profile_may_be_malformed() -> None:
    plain = saved(Image.fromarray(BLOCKS), "PNG")
    for packed in (zlib.compress(PROFILE)[:-20], zlib.compress(b"")):
        content = plain[:33] + png_chunk(b"iCCP", b"name\0\0" + packed) + plain[33:]
        assert np.asarray(load_image(io.BytesIO(content))).shape == BLOCKS.shape

"""Photos of all kinds become upright RGB of 8 bits, and what cannot is refused with a sentence."""

from __future__ import annotations

import io
import os
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from pem.photos import ImageError, load_image, open_photo, orientation, to_array, to_rgb
from pem.photos.jpeg import MAX_SCANS

Image.init()
HAS_AVIF = "AVIF" in Image.SAVE


def gradient(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack((rows % 256, cols % 256, (rows + cols) % 256), axis=2).astype(np.uint8)


def read(content: bytes) -> np.ndarray:
    return np.asarray(load_image(io.BytesIO(content)))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: bytes, size: tuple[int, int], depth: int, colour: int, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG of the rows in ``pixels``, of (width, height), with chunks before and after them."""
    row = len(pixels) // size[1]
    rows = b"".join(b"\0" + pixels[i : i + row] for i in range(0, len(pixels), row))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    end = png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + png_chunk(b"IDAT", zlib.compress(rows)) + after + end


def grey_png(levels: np.ndarray, *before: bytes, after: bytes = b"") -> bytes:
    """Of 8 or 16 bits."""
    depth = 8 * levels.itemsize
    return png(levels.astype(f">u{levels.itemsize}").tobytes(), levels.shape[::-1], depth, 0, *before, after=after)


def ifd(order: str, tags: dict[int, tuple[int, list[int] | bytes]], start: int, next_at: int = 0) -> bytes:
    """A directory of TIFF or EXIF at ``start``, with what does not fit into its entries behind it."""
    entries, behind = b"", b""
    data_at = start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        letter = {1: "B", 2: "s", 3: "H", 4: "I", 9: "i", 11: "f"}.get(kind, "B")
        data = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(data) > 4:
            data, behind = struct.pack(f"{order}I", data_at + len(behind)), behind + data
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", next_at) + behind


def exif(order: str = "<", **tags: tuple[int, list[int] | bytes]) -> bytes:
    """``t274=(3, [6])``: tag 274 of type 3 (SHORT) is 6. 2 is text, 1 a byte, 4 a LONG."""
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(f"{order}HI", 42, 8) + ifd(order, {int(n[1:]): tag for n, tag in tags.items()}, 8)


def tiff(data: bytes, size: tuple[int, int], bits: list[int], colour: int, order: str = "<", **tags: object) -> bytes:
    """An uncompressed TIFF of (width, height); ``tags`` as in ``exif``, or None for those that it shall lack."""
    width, height = size
    all_tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, bits), 259: (3, [1]), 262: (3, [colour]), 273: (4, [8]),
        277: (3, [len(bits)]), 278: (4, [height]), 279: (4, [len(data)]),
    } | {int(name[1:]): tag for name, tag in tags.items()}  # fmt: skip
    data += b"\0" * (len(data) % 2)
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(f"{order}HI", 42, 8 + len(data)) + data + ifd(order, all_tags, 8 + len(data))


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_exif(kind: str, *blocks: bytes, image: Image.Image | None = None) -> bytes:
    """A photo of that kind with those EXIF blocks, however malformed."""
    image = Image.fromarray(gradient(10, 20)) if image is None else image
    if kind == "JPEG":
        content = saved(image, "JPEG", quality=95)
        return content[:2] + b"".join(jpeg_segment(0xE1, b"Exif\0\0" + block) for block in blocks) + content[2:]
    if kind == "PNG":
        content = saved(image, "PNG")
        return content[:33] + b"".join(png_chunk(b"eXIf", block) for block in blocks) + content[33:]
    return saved(image, kind, exif=b"Exif\0\0" + blocks[0], lossless=True)


# --------------------------------------------------------------------------------------------------------- orientation

UPRIGHT = gradient(16, 24)
SIX: dict[str, tuple[int, list[int] | bytes]] = {"t274": (3, [6])}
STORED = np.rot90(UPRIGHT)  # what Orientation 6 asks to turn by 90 degrees clockwise
EXACT = ["PNG", "WEBP"]  # formats with EXIF and without loss


def is_upright(content: bytes) -> bool:
    loaded = read(content).astype(int)
    return loaded.shape == UPRIGHT.shape and np.abs(loaded - UPRIGHT).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_is_turned_once_and_its_stored_pixels_can_be_had(kind: str, turn: int, tmp_path: Path) -> None:
    if kind == "AVIF" and not HAS_AVIF:
        pytest.skip("This Pillow reads no AVIF.")
    tags = Image.Exif()
    tags[0x0112] = {6: 8, 8: 6}.get(turn, turn)  # the way back, to make what will be turned
    plain = Image.fromarray(UPRIGHT)
    plain.getexif()[0x0112] = tags[0x0112]
    stored = ImageOps.exif_transpose(plain)
    tags[0x0112] = turn
    path = tmp_path / "photo"
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind != "TIFF" else {}
    stored.save(path, kind, exif=tags, **options)
    assert is_upright(path.read_bytes())
    opened = open_photo(path)
    assert opened.size == stored.size and orientation(opened) == turn
    lying = np.asarray(to_rgb(opened, upright=False)).astype(int)
    assert np.abs(lying - np.asarray(stored)).mean() < 8
    right = read(path.read_bytes())
    assert np.array_equal(to_array(Image.open(path)), right)
    for upright in (load_image(path), to_rgb(Image.open(path)), to_rgb(open_photo(path))):
        assert orientation(upright) == 1 and np.array_equal(to_array(upright), right)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "beside",
    [
        {"t282": (2, b"72\0")},  # a resolution as text: Pillow cannot write it back
        {"t271": (2, b"maker" * 20)},
        {"t34665": (4, [0xFFFFFFF0])},  # a directory far outside
        {"t36867": (3, [1, 2, 3])},
    ],
    ids=["text for a number", "long text", "lost directory", "numbers for a date"],
)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.filterwarnings("error")
def test_a_malformed_tag_beside_the_orientation_does_not_matter(
    kind: str, beside: dict[str, tuple[int, list[int] | bytes]], order: str
) -> None:
    block = exif(order, **SIX, **beside)
    assert is_upright(with_exif(kind, block, image=Image.fromarray(STORED)))
    # The same with a length that leads outside: Pillow then stops before it comes to the Orientation.
    length_at = 10 + 4 if "t271" in beside else 10 + 12 + 4
    cut = block[:length_at] + b"\x7f\xff\xff\x7f" + block[length_at + 4 :]
    assert is_upright(with_exif(kind, cut, image=Image.fromarray(STORED)))


@pytest.mark.parametrize("tag", [(4, [6]), (1, [6]), (9, [6]), (3, [6, 1]), (3, [6, 0, 0]), (1, [6, 0])])
def test_an_orientation_of_another_type_counts(tag: tuple[int, list[int]]) -> None:
    for kind in EXACT:
        assert is_upright(with_exif(kind, exif(t274=tag), image=Image.fromarray(STORED)))


@pytest.mark.parametrize(
    "block",
    [exif(t274=(3, [value])) for value in (0, 9, 65535)]
    + [exif(t274=(2, b"6\0")), exif(t282=(3, [6])), b"", b"II", b"MM\0*\xff\xff\xff\xff", b"JJ\0*" + exif(**SIX)[4:]],
)
@pytest.mark.filterwarnings("error")
def test_a_photo_without_an_orientation_that_can_be_read_stays(block: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        content = with_exif(kind, block, image=Image.fromarray(UPRIGHT))
        assert is_upright(content)


def test_the_first_of_several_orientations_counts() -> None:
    blocks = exif(t282=(3, [1])), exif(**SIX), exif(t274=(3, [3]))
    assert is_upright(with_exif("JPEG", *blocks, image=Image.fromarray(STORED)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_alone_does_not_count(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(UPRIGHT)
    if kind == "PNG":
        text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        plain = saved(image, kind)
        content = plain[:33] + text + plain[33:]
    elif kind == "TIFF":
        content = saved(image, kind, tiffinfo={700: xmp})
    else:
        content = saved(image, kind, xmp=xmp, **({"lossless": True} if kind == "WEBP" else {"quality": 100}))
    assert is_upright(content)


def test_exif_behind_the_pixels_of_a_png_counts_as_does_that_in_a_text() -> None:
    plain = saved(Image.fromarray(STORED), "PNG")
    behind = plain[:-12] + png_chunk(b"eXIf", exif(**SIX)) + plain[-12:]
    digits = b"\nexif\n      %d\n%s\n" % (len(exif(**SIX)), exif(**SIX).hex().encode())
    text = png_chunk(b"tEXt", b"Raw profile type exif\0" + digits)
    packed = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits))
    for content in (behind, plain[:33] + text + plain[33:], plain[:33] + packed + plain[33:]):
        assert orientation(open_photo(io.BytesIO(content))) == 6
        assert is_upright(content)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
@pytest.mark.parametrize("name", ["orientation", "significant_bits", "transparency", "exif", "Raw profile type exif"])
def test_a_text_of_a_png_is_only_a_text_whatever_its_name(name: str, mode: str) -> None:
    text = PngInfo()
    text.add_text(name, "portrait")
    plain = Image.fromarray(UPRIGHT).convert(mode)
    content = saved(plain, "PNG", pnginfo=text)
    image = Image.open(io.BytesIO(content))
    assert orientation(image) == 1
    for loaded in (to_array(image), read(content)):
        assert np.array_equal(loaded, np.asarray(plain.convert("RGB")))


def test_a_phone_photo_of_several_pictures_is_read_though_their_index_is_malformed() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    stored = Image.fromarray(STORED)
    content = saved(stored, "MPO", save_all=True, append_images=[stored], exif=tags, quality=100)
    assert is_upright(content)
    index = content.index(b"MPF\0")
    assert is_upright(content[: index + 12] + b"\xff" * 30 + content[index + 42 :])


@pytest.mark.skipif(not HAS_AVIF, reason="This Pillow reads no AVIF.")
def test_an_avif_is_turned_by_its_own_field_whatever_its_exif_says() -> None:
    content = saved(Image.fromarray(UPRIGHT), "AVIF", exif=exif(t271=(2, b"maker\0")), quality=100)
    begin = content.rindex(b"II*\0")
    assert is_upright(content)
    assert is_upright(content[:begin] + b"JUNK" + content[begin + 4 :])


# -------------------------------------------------------------------------------------------------------------- colours


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


RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
SIZE = (8, 8)


def ramp(white: float, dtype: str) -> np.ndarray:
    levels = RAMP.astype(float) / 255 * white
    return (levels if dtype.endswith("f4") else levels.round()).astype(dtype)


def packed(levels: np.ndarray, bits: int) -> bytes:
    """Levels one behind the other without gaps, most significant bit first."""
    return np.packbits((levels[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(bool)).tobytes()


def told_white(white: int) -> dict[str, tuple[int, list[int]]]:
    return {"t341": (3, [white])}


SIGNED, FLOAT = {"t339": (3, [2])}, {"t339": (3, [3])}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize(
    ("bits", "dtype", "white", "tags"),
    [
        (8, "u1", 255, {}),
        (16, "u2", 65535, {}),
        (16, "u2", 4095, told_white(4095)),  # of a camera with 12 bits
        (16, "u2", 1023, told_white(1023)),
        (16, "u2", 65535, told_white(200)),  # cannot be
        (32, "f4", 1, FLOAT),
        (32, "f4", 3, FLOAT | {"t341": (11, [3.0])}),
        (8, "i1", 127, SIGNED),
        (16, "i2", 32767, SIGNED),
        (32, "u4", 2**32 - 1, {}),
    ],
)
def test_the_levels_of_a_tiff_have_their_brightness(
    order: str, white_is_zero: bool, bits: int, dtype: str, white: float, tags: dict[str, object]
) -> None:
    levels = ramp(white, order + dtype)
    content = tiff(levels.tobytes(), SIZE, [bits], 0 if white_is_zero else 1, order, **tags)
    if (white_is_zero and "t339" in tags and dtype != "f4") or (dtype == "u4" and (white_is_zero or order == ">")):
        with pytest.raises(ImageError, match=f"This kind of TIFF cannot be read .{bits}-bit .*grey"):
            read(content)
        return
    right = 255 - RAMP if white_is_zero else RAMP
    assert np.abs(read(content)[..., 1].astype(int) - right).max() <= 1


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


@pytest.mark.parametrize("order", ["<", ">"])
def test_compressed_greys_of_a_tiff_have_their_brightness(order: str) -> None:
    levels = zlib.compress(ramp(65535, order + "u2").tobytes())
    for colour, right in ((0, 255 - RAMP), (1, RAMP)):
        content = tiff(levels, SIZE, [16], colour, order, t259=(3, [8]))
        assert np.abs(read(content)[..., 0].astype(int) - right).max() <= 1


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


def test_the_colours_of_a_tiff_are_right_however_they_are_stored() -> None:
    colours = (
        np.array([[[200, 30, 60], [20, 160, 90]], [[10, 40, 220], [128, 128, 128]]], np.uint8).repeat(8, 0).repeat(8, 1)
    )
    image = Image.fromarray(colours)
    deep = (colours.astype(np.uint16) * 257).tobytes()
    for content in (
        tiff(deep, (16, 16), [16] * 3, 2),
        tiff((colours.astype(">u2") * 257).tobytes(), (16, 16), [16] * 3, 2, ">"),
        saved(image.convert("CMYK"), "TIFF"),
        saved(image.convert("YCbCr"), "TIFF", compression="jpeg", quality=100),
        saved(image.convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        saved(image.convert("LAB"), "TIFF"),
        saved(image.convert("CMYK"), "JPEG", quality=100),
        saved(image.convert("YCbCr"), "JPEG", quality=100, subsampling=0),
    ):
        assert np.abs(read(content).astype(int) - colours).mean() < 3


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


# ------------------------------------------------------------------------------------------------------------ metadata

BOMB = zlib.compress(b"\0" * 50_000_000, 9)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        png_chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        png_chunk(b"iCCP", b"profile\0\0" + BOMB),
        png_chunk(b"iCCP", b"profile\0\x07" + b"unknown"),
        png_chunk(b"iCCP", b""),
        png_chunk(b"eXIf", b""),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0no zlib"),
        png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 3\nno digits"),
        png_chunk(b"tEXt", b"Comment\0fine")[:-1] + b"?",  # a wrong checksum
        png_chunk(b"pHYs", b"short"),
        png_chunk(b"acTL", b""),
    ],
)
@pytest.mark.filterwarnings("error")
def test_no_metadata_make_a_png_unreadable(chunk: bytes) -> None:
    for content in (grey_png(RAMP, chunk), grey_png(RAMP, after=chunk)):
        tracemalloc.start()
        loaded = read(content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(loaded[..., 0], RAMP)
        assert peak < 10_000_000


@pytest.mark.parametrize(
    "segment",
    [
        jpeg_segment(0xE2, b"ICC_PROFILE\0\1\5" + b"cut off"),
        jpeg_segment(0xE2, b"ICC_PROFILE\0"),
        jpeg_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
        jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed"),
        jpeg_segment(0xE1, b"Exif\0\0"),
        jpeg_segment(0xE1, b""),
        jpeg_segment(0xFE, b"\xff" * 100),
        b"\xff\xff\xff",  # bytes to fill up
    ],
)
@pytest.mark.filterwarnings("error")
def test_no_metadata_make_a_jpeg_unreadable(segment: bytes) -> None:
    plain = saved(Image.fromarray(UPRIGHT), "JPEG", quality=100)
    assert np.array_equal(read(plain[:2] + segment + plain[2:]), read(plain))


@pytest.mark.parametrize("tag", [270, 271, 272, 305, 306, 33432, 34665, 34675])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.filterwarnings("error")
def test_no_metadata_make_a_tiff_unreadable(tag: int, order: str) -> None:
    content = bytearray(tiff(STORED.tobytes(), STORED.shape[1::-1], [8] * 3, 2, order, **SIX, **{f"t{tag}": (2, b"")}))
    entry = content.index(struct.pack(f"{order}HHI", tag, 2, 0))
    content[entry + 4 : entry + 12] = struct.pack(f"{order}II", 1000, 0x7FFFFFFF)  # a text far outside
    assert is_upright(bytes(content))


def test_a_jpeg_can_be_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    Image.fromarray(gradient(160, 240)).save(tmp_path / "photo.jpg")
    image = open_photo(tmp_path / "photo.jpg")
    image.draft("RGB", (60, 40))
    assert to_rgb(image).size == (60, 40)


# ------------------------------------------------------------------------------------------------------------ refusals


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims to be so large, up to where its pixels should be."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 1000) + b"IDAT"


def test_a_jpeg_with_more_scans_than_anybody_needs_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert load_image(io.BytesIO(content)).size == (16, 16)
    many = content[:-2] + scan * MAX_SCANS + content[-2:]
    with pytest.raises(ImageError, match="takes too long to decode"):
        open_photo(io.BytesIO(many))


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


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not HAS_AVIF:
        pytest.skip("This Pillow reads no AVIF.")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = saved(Image.fromarray(noise), kind)
    for share in (0.3, 0.5, 0.9):
        path = tmp_path / "cut"
        path.write_bytes(content[: int(share * len(content))])
        for file in (path, io.BytesIO(path.read_bytes())):
            with pytest.raises(ImageError, match="damaged|not an image"):
                load_image(file)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_may_lack_the_marker_of_its_end_but_no_pixels(progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = saved(Image.fromarray(noise), "JPEG", progressive=progressive)
    for cut in (content[:-1], content[:-2]):
        assert np.array_equal(read(cut), read(content))
        assert np.array_equal(to_array(Image.open(io.BytesIO(cut))), read(content))
    for missing in (8, 20, len(content) // 2):
        image = Image.open(io.BytesIO(content[:-missing]))
        for _ in range(2):  # the second time, too
            with pytest.raises(ImageError, match="damaged"):
                to_rgb(image)


def tiff_pages(*pages: tuple[int, int]) -> bytes:
    """Grey pages of (side, NewSubfileType); all levels of a page are its side."""
    content = b"II" + struct.pack("<HI", 42, 8)
    for number, (side, kind) in enumerate(pages):
        page = {
            254: (4, [kind]), 256: (4, [side]), 257: (4, [side]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]),
            277: (3, [1]), 278: (4, [side]), 279: (4, [side * side]),
        }  # fmt: skip
        start = len(content)
        data_at = start + len(ifd("<", {**page, 273: (4, [0])}, start))
        next_at = data_at + side * side if number + 1 < len(pages) else 0
        content += ifd("<", {**page, 273: (4, [data_at])}, start, next_at) + bytes([side]) * (side * side)
    return content


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_grey_with_its_alpha_apart_is_refused_by_name(compression: int, order: str) -> None:
    """Pillow would lose the alpha, and an opaque photo would be white."""
    planes = [gradient(16, 24)[:, :, 0].tobytes(), b"\xff" * 16 * 24]
    if compression == 8:
        planes = [zlib.compress(plane) for plane in planes]
    places = {"t273": (4, [8, 8 + len(planes[0])]), "t279": (4, [len(plane) for plane in planes])}
    kinds = {"t259": (3, [compression]), "t284": (3, [2]), "t338": (3, [2])}
    with pytest.raises(ImageError, match="This kind of TIFF cannot be read .*each colour apart"):
        load_image(io.BytesIO(tiff(b"".join(planes), (24, 16), [8, 8], 1, order, **places, **kinds)))


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="The system has no /dev/fd.")
def test_a_pipe_is_read_as_a_file_is() -> None:
    content = saved(Image.fromarray(UPRIGHT), "PNG")
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(content)  # less than a pipe holds
    with os.fdopen(read_end, "rb"):
        assert np.array_equal(load_image(f"/dev/fd/{read_end}"), UPRIGHT)


def test_a_sound_file_of_a_kind_that_pillow_does_not_know_is_not_called_damaged() -> None:
    """A BMP whose masks say that red comes first."""
    masks = struct.pack("<3I", 0xFF, 0xFF00, 0xFF0000)
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 32, 3, 1024, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 66 + 1024, 0, 0, 66) + header + masks + bytes(1024)
    with pytest.raises(ImageError, match="This kind of image file cannot be read .*BMP.*; save it as JPEG or PNG"):
        load_image(io.BytesIO(content))


def test_a_tiff_is_read_past_its_previews() -> None:
    assert (read(tiff_pages((10, 1), (12, 1), (40, 0), (50, 0))) == np.full((40, 40, 3), 40)).all()
    assert (read(tiff_pages((40, 0), (10, 1))) == np.full((40, 40, 3), 40)).all()
    assert (read(tiff_pages((4, 1), (40, 2))) == np.full((40, 40, 3), 40)).all()  # the preview's size does not matter
    for pages in ([(10, 1)], [(10, 1), (12, 1)]):
        with pytest.raises(ImageError, match="^The file holds only a small preview; export the photo as JPEG"):
            read(tiff_pages(*pages))
    with pytest.raises(ImageError, match="at least 8"):
        read(tiff_pages((10, 1), (4, 0)))


@pytest.mark.parametrize("scale", [1, 257])
def test_a_palette_of_a_tiff_may_have_eight_bits(scale: int) -> None:
    colours = np.arange(768).reshape(3, 256) % 251
    content = tiff(RAMP.tobytes(), SIZE, [8], 3, t320=(3, (colours * scale).ravel().tolist()))
    right = colours.T[RAMP]
    assert np.array_equal(read(content), right)
    assert np.array_equal(to_array(Image.open(io.BytesIO(content))), right)


@pytest.mark.parametrize(
    ("missing", "tags"),
    [(-3.4e38, {}), (3.4e38, {}), (1e20, {"t42113": (2, b"1e20\0")}), (3.4e38, {"t341": (11, [3.4e38])})],
)
def test_missing_values_of_a_tiff_do_not_darken_the_others(missing: float, tags: dict[str, object]) -> None:
    levels = ramp(1, "f4")
    levels[0, 0] = missing
    loaded = read(tiff(levels.tobytes(), SIZE, [32], 1, **FLOAT, **tags))[..., 0].astype(int)
    assert loaded[0, 0] == 0 and np.abs(loaded - RAMP).ravel()[1:].max() <= 1


@pytest.mark.parametrize(
    ("text", "white"),
    [
        (b'<OME><Pixels SignificantBits="12"/></OME>', 4095),
        (b"ImageJ=1.53\nmin=0.0\nmax=4095.0\n", 4095),
        (b'<OME><Pixels SignificantBits="99"/></OME>', 65535),  # cannot be
    ],
)
def test_the_description_of_a_tiff_tells_its_white(text: bytes, white: int) -> None:
    described = {"t270": (2, text + b"\0")}
    for brightest in (white, 65535):  # the second shows that the description is wrong
        loaded = read(tiff(ramp(brightest, "<u2").tobytes(), SIZE, [16], 1, **described))[..., 0]
        assert np.abs(loaded.astype(int) - RAMP).max() <= 1


def test_a_big_endian_bigtiff_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="^A big-endian BigTIFF cannot be read; save it as ordinary TIFF or PNG.$"):
        read(b"MM\0+" + struct.pack(">HHQ", 8, 0, 16) + b"\0" * 100)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_damaged_compressed_tiff_is_refused(compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = bytearray(saved(Image.fromarray(noise), "TIFF", compression=compression))
    tags = Image.open(io.BytesIO(content)).tag_v2
    begin, length = tags[273][0], tags[279][0]
    content[begin + length // 2 : begin + length] = b"\0" * (length - length // 2)
    with pytest.raises(ImageError, match="damaged"):
        read(bytes(content))


def test_a_pil_image_of_a_damaged_file_is_refused_as_the_file_is() -> None:
    content = saved(Image.fromarray(gradient(64, 64)), "JPEG")
    with pytest.raises(ImageError, match="damaged"):
        to_array(Image.open(io.BytesIO(content[:-100])))


def test_a_jpeg_of_twelve_bits_is_refused_by_name() -> None:
    content = bytearray(saved(Image.fromarray(gradient(16, 16)), "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="The JPEG file is damaged or of a rare kind, such as 12 bits; save it as"):
        read(bytes(content))


@pytest.mark.filterwarnings("error")
def test_files_are_closed(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "TIFF"):
        Image.fromarray(UPRIGHT).save(tmp_path / "photo", kind)
        load_image(tmp_path / "photo")
        open_photo(tmp_path / "photo").close()
        stream = io.BytesIO((tmp_path / "photo").read_bytes())
        load_image(stream)
        assert not stream.closed  # the caller's
    (tmp_path / "photo").write_bytes(tiff(b"\0" * 192, SIZE, [8, 8, 8], 6))
    with pytest.raises(ImageError):
        open_photo(tmp_path / "photo")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="There is no file .*nothing.jpg"):
        load_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- HEIC


@pytest.fixture
def heic() -> object:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed.")
    heif.register_heif_opener()
    if not heif.libheif_info()["encoders"]:
        pytest.skip("This pillow-heif cannot write.")
    return heif


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_heic_photos_are_read_upright(heic: object, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    content = saved(Image.fromarray(UPRIGHT), "HEIF", quality=100, chroma=444, exif=exif.tobytes())
    expected = {1: UPRIGHT, 3: np.rot90(UPRIGHT, 2), 6: np.rot90(UPRIGHT, -1), 8: np.rot90(UPRIGHT)}[turn]
    loaded = read(content)
    assert loaded.shape == expected.shape and np.abs(loaded.astype(int) - expected).mean() < 4
    opened = open_photo(io.BytesIO(content))
    assert (opened.size[::-1], orientation(opened)) == (expected.shape[:2], 1)


def test_heic_photos_are_known_by_their_content_and_may_be_damaged(heic: object, tmp_path: Path) -> None:
    content = saved(Image.fromarray(UPRIGHT), "HEIF", quality=100, chroma=444, exif=b"Exif\0\0malformed")
    path = tmp_path / "photo.jpg"  # as some programs rename them
    path.write_bytes(content)
    assert np.array_equal(to_array(path), read(content))
    path.write_bytes(content.replace(b"ftypheic", b"ftypmif1", 1))  # it passes as heic, too
    assert np.array_equal(to_array(path), read(content))
    for length in (40, len(content) // 2):
        with pytest.raises(ImageError, match="damaged"):
            read(content[:length])


def test_without_its_package_a_heic_photo_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="HEIC photos are read by the package pillow-heif"):
        read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100)


@pytest.mark.parametrize("missing", [4, 20, 100, 3000])
def test_a_tiff_that_lacks_its_end_is_damaged(missing: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), "TIFF", compression="tiff_lzw")  # libtiff writes the directory last
    with pytest.raises(ImageError, match="damaged or incomplete"):
        read(content[:-missing])

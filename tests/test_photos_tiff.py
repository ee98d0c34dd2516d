"""TIFF: what Pillow would misread is read right, or refused with a sentence that names the kind."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from photo_files import FLOAT, RAMP, SIGNED, SIX, SIZE, STORED, ifd, is_upright, ramp, read, saved, tiff, told_white
from PIL import Image

from pem.photos import ImageError, to_array


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
def test_compressed_greys_of_a_tiff_have_their_brightness(order: str) -> None:
    levels = zlib.compress(ramp(65535, order + "u2").tobytes())
    for colour, right in ((0, 255 - RAMP), (1, RAMP)):
        content = tiff(levels, SIZE, [16], colour, order, t259=(3, [8]))
        assert np.abs(read(content)[..., 0].astype(int) - right).max() <= 1


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


@pytest.mark.parametrize("tag", [270, 271, 272, 305, 306, 33432, 34665, 34675])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.filterwarnings("error")
def test_no_metadata_make_a_tiff_unreadable(tag: int, order: str) -> None:
    content = bytearray(tiff(STORED.tobytes(), STORED.shape[1::-1], [8] * 3, 2, order, **SIX, **{f"t{tag}": (2, b"")}))
    entry = content.index(struct.pack(f"{order}HHI", tag, 2, 0))
    content[entry + 4 : entry + 12] = struct.pack(f"{order}II", 1000, 0x7FFFFFFF)  # a text far outside
    assert is_upright(bytes(content))


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


@pytest.mark.parametrize("missing", [4, 20, 100, 3000])
def test_a_tiff_that_lacks_its_end_is_damaged(missing: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), "TIFF", compression="tiff_lzw")  # libtiff writes the directory last
    with pytest.raises(ImageError, match="damaged or incomplete"):
        read(content[:-missing])

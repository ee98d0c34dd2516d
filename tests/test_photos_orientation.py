"""Photos are turned upright once, by their EXIF Orientation alone, however malformed the rest of it is."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from photo_files import (
    EXACT,
    HAS_AVIF,
    SIX,
    STORED,
    UPRIGHT,
    exif,
    is_upright,
    png_chunk,
    read,
    saved,
    with_exif,
)
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from pem.photos import load_image, open_photo, orientation, to_array, to_rgb


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

"""Photos of all kinds are read in spite of their metadata, and what cannot be read is refused with a sentence."""

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
from photo_files import (
    HAS_AVIF,
    RAMP,
    SIZE,
    UPRIGHT,
    gradient,
    grey_png,
    jpeg_segment,
    png_chunk,
    read,
    saved,
    tiff,
)
from PIL import Image

from pem.photos import ImageError, load_image, open_photo, orientation, to_array, to_rgb
from pem.photos.jpeg import MAX_SCANS

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


def test_a_jpeg_can_be_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    Image.fromarray(gradient(160, 240)).save(tmp_path / "photo.jpg")
    image = open_photo(tmp_path / "photo.jpg")
    image.draft("RGB", (60, 40))
    assert to_rgb(image).size == (60, 40)


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
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 2 * MAX_SCANS  # as phones append it
    assert load_image(io.BytesIO(content + video)).size == (16, 16)
    comment = b"\xff\xfe\0\x06\xff\xd9\xff\xd9"  # an end that is none
    with pytest.raises(ImageError, match="takes too long to decode"):
        open_photo(io.BytesIO(content[:-2] + comment + scan * MAX_SCANS + content[-2:]))
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

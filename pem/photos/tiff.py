"""TIFF: mends what Pillow reads wrong or not at all, or refuses it with a sentence that names the kind."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from typing import IO, Any

from PIL import ExifTags, Image, ImagePalette
from PIL import TiffImagePlugin as tiff

from pem.photos.exif import ORIENTATION, TURN_UPRIGHT
from pem.photos.limits import DAMAGED, ImageError

_MAX_PAGES = 32
_NEW_SUBFILE_TYPE, S_MAX_SAMPLE_VALUE, GDAL_NODATA = 254, 341, 42113
# They say how the pixels are stored: their size, colours, compression, strips and tiles.
_TAGS_OF_PIXELS = {*range(254, 267), 273, 274, *range(277, 280), 284, 292, 293, *range(317, 326), *range(332, 348)}
_TAGS_OF_PIXELS |= {*range(512, 522), *range(529, 533)}
_BYTES_OF_KIND = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a value of a tag; the others have 1
_COLOURS = {0: "grey with white as 0", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "ICC Lab"}
_GREYS, _RGB, _YCBCR = (0, 1), 2, 6  # PhotometricInterpretation
UNSIGNED, SIGNED, _FLOAT = 1, 2, 3  # SampleFormat
_KINDS = {UNSIGNED: "", SIGNED: "signed ", _FLOAT: "float "}
# Pillow's decoders can read more than Pillow lets them. Where white is 0, we invert the levels.
for order, is_white, bits, modes in (
    (b"MM", 0, 16, ("I;16B", "I;16B")),
    (b"II", 0, 12, ("I;16", "I;12")),
    (b"MM", 0, 12, ("I;16", "I;12")),
    (b"MM", 1, 12, ("I;16", "I;12")),
):
    tiff.OPEN_INFO.setdefault((order, is_white, (UNSIGNED,), 1, (bits,), ()), modes)


def number(tags: tiff.ImageFileDirectory_v2, tag: int, default: int) -> Any:
    """The first number of a tag, or the default where it is missing or no number."""
    try:
        value = tags.get(tag, default)
        value = value[0] if isinstance(value, tuple) else value
    except Exception:  # malformed
        return default
    return value if isinstance(value, (int, float)) else default


def open_tiff(file: str | os.PathLike[str] | IO[bytes], stream: IO[bytes]) -> tiff.TiffImageFile:
    """The first page that is no preview, not decoded yet; ``stream`` is the open file. Raises ImageError."""
    stream.seek(0)
    if stream.read(4) == b"MM\0+":
        raise ImageError("A big-endian BigTIFF cannot be read; save it as ordinary TIFF or PNG.")
    image: Image.Image
    try:
        image = Image.open(file, formats=["TIFF"])
    except Image.UnidentifiedImageError:
        stream.seek(0)
        image = _open_bare(bytearray(stream.read()))
    assert isinstance(image, tiff.TiffImageFile)
    _skip_previews(image)
    _keep_as_stored(image)
    return image


def _skip_previews(image: tiff.TiffImageFile) -> None:
    """Go to the first page that is no smaller copy of another page."""
    with contextlib.suppress(EOFError):
        for page in range(_MAX_PAGES):
            try:
                image.seek(page)
            except SyntaxError as error:  # Pillow knows no such pixels
                raise ImageError(unreadable(image.tag_v2)) from error
            if not int(number(image.tag_v2, _NEW_SUBFILE_TYPE, 0)) & 1:
                return
    raise ImageError("The file holds only a small preview; export the photo as JPEG, PNG or TIFF.")


def _keep_as_stored(image: tiff.TiffImageFile) -> None:
    """Stops Pillow from turning a TIFF while it decodes. It would also turn it by XMP, or stop at a malformed tag."""
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    turn = number(image.tag_v2, ExifTags.Base.Orientation, 1)
    image.info[ORIENTATION] = turn if turn in TURN_UPRIGHT else 1
    exif = image.getexif()
    for tag in list(exif):
        del exif[tag]
    image.tag_v2.pop(ExifTags.Base.Orientation, None)
    image._size = (image.tag_v2[tiff.IMAGEWIDTH], image.tag_v2[tiff.IMAGELENGTH])


def mend_palette(image: tiff.TiffImageFile) -> None:
    """Takes the colours of a palette from their lower 8 bits, where old programs write them; Pillow takes the upper."""
    levels = image.tag_v2.get(tiff.COLORMAP)
    if image.mode in ("P", "PA") and isinstance(levels, tuple) and max(levels) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(levels))


def check_kind(tags: tiff.ImageFileDirectory_v2) -> None:
    """Raises ImageError for a TIFF that Pillow would decode to wrong colours, or not at all."""
    colour, bits = number(tags, tiff.PHOTOMETRIC_INTERPRETATION, 0), number(tags, tiff.BITSPERSAMPLE, 1)
    is_raw, has_planes = number(tags, tiff.COMPRESSION, 1) == 1, number(tags, tiff.PLANAR_CONFIGURATION, 1) == 2
    if (
        (is_raw and colour == _YCBCR)
        or (has_planes and colour in _GREYS and number(tags, tiff.SAMPLESPERPIXEL, 1) > 1)  # Pillow loses alpha
        or (is_raw and has_planes and (bits > 8 or number(tags, tiff.EXTRASAMPLES, 0) == 1))  # 1: times alpha
        or (not is_raw and tags.prefix == b"MM" and bits > 8 and number(tags, tiff.SAMPLEFORMAT, 1) != UNSIGNED)
        or (colour == _RGB and bits == 16 and 0 < number(tags, S_MAX_SAMPLE_VALUE, 0) < 2**15)  # 8 bits of 16 remain
    ):
        raise ImageError(unreadable(tags))


def _open_bare(content: bytearray) -> Image.Image:
    """A TIFF that Pillow refuses, without the tags that no pixel needs: one of them may lead outside of the file."""
    order = {b"II": "<", b"MM": ">"}[bytes(content[:2])]
    is_big = 43 in content[2:4]  # such files have another kind of directory
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", content, len(content) if is_big else 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        entries = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
        needed = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TAGS_OF_PIXELS]
        for entry in needed:
            kind, length, at = struct.unpack_from(f"{order}2xHII", entry)
            size = _BYTES_OF_KIND.get(kind, 1) * length
            if size > 4 and at + size > len(content):
                raise ImageError(DAMAGED)
        directory = struct.pack(f"{order}H", len(needed)) + b"".join(needed)
        content[start : start + len(directory) + 4] = directory + b"\0" * 4  # no other picture follows
    bare = io.BytesIO(content)
    try:
        return Image.open(bare, formats=["TIFF"])
    except Image.UnidentifiedImageError:
        tags = tiff.ImageFileDirectory_v2(bytes(content[: 16 if is_big else 8]))
        bare.seek(tags.next)
        tags.load(bare)
        raise ImageError(unreadable(tags)) from None


def unreadable(tags: tiff.ImageFileDirectory_v2) -> str:
    """The sentence for a TIFF that cannot be read."""
    if tiff.BITSPERSAMPLE not in tags or tiff.PHOTOMETRIC_INTERPRETATION not in tags:
        return DAMAGED
    colour, compression = number(tags, tiff.PHOTOMETRIC_INTERPRETATION, 0), number(tags, tiff.COMPRESSION, 1)
    kind = _KINDS.get(number(tags, tiff.SAMPLEFORMAT, UNSIGNED), "unusual ")
    details = [
        f"{number(tags, tiff.BITSPERSAMPLE, 1)}-bit {kind}{_COLOURS.get(colour, f'colours of type {colour}')}",
        {"raw": "uncompressed"}.get(name := tiff.COMPRESSION_INFO.get(compression, f"compression {compression}"), name),
    ]
    if tiff.EXTRASAMPLES in tags:
        details.append("more channels than colours")
    if number(tags, tiff.PLANAR_CONFIGURATION, 1) == 2:
        details.append("each colour apart")
    if tags.prefix == b"MM":
        details.append("big-endian")
    if (white := number(tags, S_MAX_SAMPLE_VALUE, 0)) > 0:
        details.append(f"white at {white}")
    return f"This kind of TIFF cannot be read ({', '.join(details)}); save it as RGB with 8 bits per colour, or as PNG."

"""The one reader of photos: a file becomes upright RGB of 8 bits, or an ImageError says in one sentence why not."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from bisect import bisect
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImagePalette
from PIL import TiffImagePlugin as tiff

from pem.colours import to_srgb

MIN_SIDE_PX = 8
MAX_SIDE_PX = 65_500  # the longest that a JPEG can be
MAX_PIXELS = 40_000_000
MAX_SCANS = 64  # of a JPEG: usual ones have 10, and every one costs a pass over all pixels
ROWS_AT_ONCE = 256
# Pillow knows dozens more, some of which start other programs (EPS: Ghostscript), which a stranger's file must not.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # as such files name themselves
# Said of every other exception: for broken data Pillow's parsers raise half a dozen unrelated types.
_DAMAGED = "The image file is damaged or incomplete."

_SLOW = "The image takes too long to decode; save it anew, as an ordinary JPEG or PNG."
_MAX_METADATA_BYTES = 1 << 20

_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Keys of Image.info that no file can set, for a PNG may hold a text of any name.
_ORIENTATION: Any = ("pem", "orientation")
_SIGNIFICANT_BITS: Any = ("pem", "significant bits")
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # types of EXIF tags; Orientation should be a 3

Photo: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"


class ImageError(ValueError):
    """A file that cannot be used as a photo. Its message is one sentence for the person who chose the file."""


def load_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """The first picture in a file, upright, in RGB, with transparency on white and deeper pixels scaled to 8 bits.

    Raises ImageError for what is missing, no image, damaged or of a kind that Pillow does not read right; for a side
    below 8 px or above 65,500; and for more than 40 megapixels. The size is looked at before anything is decoded.
    """
    with open_photo(file) as image:
        return to_rgb(image)


def to_array(image: Photo) -> np.ndarray:
    """A photo (path, PIL image or uint8 RGB [H0, W0, 3]) as uint8 RGB [H0, W0, 3].

    A PIL image is read as ``load_image`` reads a file. Raises ValueError for an array of another dtype or shape, and
    ImageError for a file that is no usable photo.
    """
    if isinstance(image, (str, os.PathLike)):
        with open_photo(image) as opened:
            return _pixels(_to_upright_rgb(opened))
    if isinstance(image, Image.Image):
        return _pixels(_to_upright_rgb(image))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"An image must be a path, a PIL image or a numpy array, not {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"An image array must be uint8 RGB of shape [height, width, 3], not {image.dtype} of {list(image.shape)}."
        )
    return image


def _pixels(image: Image.Image) -> np.ndarray:
    """What np.asarray(image) is, without a copy of the whole on the way."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def open_photo(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """A file as a PIL image that is not decoded yet; its size is that of the pixels as stored, before any turning.

    Raises ImageError for all that ``load_image`` refuses, as far as the header tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of sizes that are beyond our own limits
            image = _open(file)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"There is no file {str(file)!r}.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"The image has more than {MAX_PIXELS // 10**6} megapixels; make it smaller.") from None
    except Image.UnidentifiedImageError:
        raise ImageError(
            "The file is not an image that can be read; use JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF."
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the file system, not of a parser
            raise ImageError(f"The file cannot be opened: {error.strerror}.") from error
        if str(error).startswith("Unsupported "):  # as Pillow says of a BMP
            raise ImageError(f"This kind of image file cannot be read ({error}); save it as JPEG or PNG.") from error
        raise ImageError(_DAMAGED) from error
    try:
        _check_size(*image.size)
        if isinstance(image, tiff.TiffImageFile):
            _check_kind(image.tag_v2)
    except ImageError:
        image.close()
        raise
    return image


def orientation(image: Image.Image) -> int:
    """How a photo lies, from 1 (upright) to 8: its EXIF Orientation, or 1 where there is none or it cannot be read.

    With 5 to 8 the sides are swapped. No other tag counts: the rest of EXIF may be malformed, and XMP data often keep
    the Orientation of a photo that has been turned since. Browsers do the same.
    """
    if _ORIENTATION in image.info:  # open_photo has read it
        return image.info[_ORIENTATION]
    if isinstance(image, tiff.TiffImageFile):  # opened elsewhere: Pillow turns it while it decodes
        return 1
    exif, text = image.info.get("exif"), image.info.get("Raw profile type exif")  # a text may have either name
    if isinstance(exif, bytes) and exif:
        return _orientation_in(exif)
    return _orientation_in(_exif_of_text(text)) if isinstance(text, str) else 1


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """In RGB of 8 bits, with transparency on white; turned as ``orientation`` says, unless ``upright`` is False.

    Raises ImageError for a file that turns out to be damaged, and for colours that Pillow cannot convert.
    """
    rgb = _to_upright_rgb(image, upright)
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {}  # or whoever gets it would turn it again
    return rgb


def _to_upright_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """The same, but the image itself where there is nothing to do."""
    if isinstance(image, tiff.TiffImageFile):
        _check_kind(image.tag_v2)
        _mend_palette(image)
    try:
        _load(image)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(image, tiff.TiffImageFile) and image.info.get("compression") in ("webp", "zstd", "lzma"):
            raise ImageError(_unreadable(image.tag_v2)) from error  # not every Pillow has them
        raise ImageError(_DAMAGED) from error
    turn = _TURN_UPRIGHT.get(orientation(image)) if upright else None
    try:
        image = _to_8_bits(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"Colours of the kind {image.mode} cannot be read; save the image as RGB.") from error
    return image if turn is None else image.transpose(turn)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"The image has {width} x {height} pixels; make it smaller than {MAX_PIXELS // 10**6} megapixels."
        )
    if max(width, height) > MAX_SIDE_PX:
        raise ImageError(f"The image has {width} x {height} pixels; it may have at most {MAX_SIDE_PX} a side.")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"The image has {width} x {height} pixels; it needs at least {MIN_SIDE_PX} a side.")


def _orientation_in(exif: bytes) -> int:
    """Not read by Pillow, for it stops at the first tag that is malformed."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "!")  # of anything else nothing will come
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == ExifTags.Base.Orientation and kind in _INTEGERS:
                number = order + _INTEGERS[kind]
                inside = length * struct.calcsize(number) <= 4  # else the entry says where the numbers are
                position = entry + 8 if inside else struct.unpack_from(f"{order}I", exif, entry + 8)[0]
                (value,) = struct.unpack_from(number, exif, position)
                return value if value in _TURN_UPRIGHT else 1
    except struct.error:  # a photo with a broken EXIF block is still a photo
        pass
    return 1


def _open(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            if not stream.seekable():  # a pipe
                return _open(io.BytesIO(stream.read()))
            open_excerpt = _EXCERPTS.get(stream.read(3))
            if open_excerpt is None:
                return _open_other(file, stream)
        return open_excerpt(open(file, "rb"), True)  # noqa: SIM115 - it is read when the image is decoded
    try:
        file.seek(0)
    except (AttributeError, io.UnsupportedOperation):
        file = io.BytesIO(file.read())
    open_excerpt = _EXCERPTS.get(file.read(3))
    return _open_other(file, file) if open_excerpt is None else open_excerpt(file, False)


def _open_other(file: str | os.PathLike[str] | IO[bytes], stream: IO[bytes]) -> Image.Image:
    """Neither PNG nor JPEG; ``stream`` is the open file."""
    start = _read_at(stream, 0, 12)
    if start[4:8] == b"ftyp" and not _HEIC.isdisjoint(_brands(stream)):
        return _open_heic(file)
    if start[4:] in (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"):
        # Malformed EXIF would make an AVIF unreadable, and how it lies is said elsewhere.
        content = _read_at(stream, 0, 12) + stream.read()
        file = io.BytesIO(re.sub(rb"(infe\x02.{7}|infe\x03.{9})Exif", rb"\1skip", content, flags=re.DOTALL))
    if start[:4] == b"MM\0+":
        raise ImageError("A big-endian BigTIFF cannot be read; save it as ordinary TIFF or PNG.")
    Image.init()
    image: Image.Image
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])  # AVIF needs Pillow 11.3
    except Image.UnidentifiedImageError:
        if start[:4] not in tiff.PREFIXES:
            raise
        image = _open_bare_tiff(stream)
    if isinstance(image, tiff.TiffImageFile):
        _skip_previews(image)
    for name in ("xmp", "XML:com.adobe.xmp"):  # Pillow would also turn a TIFF by what it finds there
        image.info.pop(name, None)
    if isinstance(image, tiff.TiffImageFile):
        _keep_as_stored(image)
    return image


def _brands(stream: IO[bytes]) -> set[bytes]:
    """What a file of the family of HEIC and AVIF says that it is, and what else it can pass as."""
    size = min(int.from_bytes(_read_at(stream, 0, 4), "big"), _MAX_METADATA_BYTES)
    names = _read_at(stream, 8, max(size - 8, 0))
    return {names[at : at + 4] for at in range(0, len(names), 4) if at != 4}  # the second is a version


def _open_heic(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            "HEIC photos are read by the package pillow-heif, which is not installed; save the photo as JPEG."
        ) from None
    pillow_heif.register_heif_opener(thumbnails=False)
    try:
        image = Image.open(file, formats=["HEIF"])
    except Image.UnidentifiedImageError:
        raise ImageError(_DAMAGED) from None
    image.info[_ORIENTATION] = 1  # it is turned while it is decoded
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not isinstance(image.info.get("transparency", 0), (int, bytes, tuple)):  # a text of that name
        image = image.copy()
        del image.info["transparency"]
    if image.mode.startswith(("I", "F")) or (image.mode == "L" and _is_signed(image)):
        return _scale_levels(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data and image.mode != "LA":
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    image = to_srgb(image, image.info.get("icc_profile"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_levels(image: Image.Image) -> Image.Image:
    """Greys that are deeper than 8 bits, signed or float -> RGB of 8 bits. Pillow's own conversion would clip them.

    Where the file does not say what white is, it is the largest level of its bits. Floats, and whole numbers of 32 bits
    or of no file, are 0..1, 0..255 or 0..65535, whichever holds them. Where all that fails, the brightest is white.
    """
    levels = np.asarray(image)
    whites: tuple[float, ...] = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white_is_zero = False
    if isinstance(image, tiff.TiffImageFile):
        tags = image.tag_v2
        bits, kind = _number(tags, tiff.BITSPERSAMPLE, 1), _number(tags, tiff.SAMPLEFORMAT, _UNSIGNED)
        if (bits, kind) in _NUMBERS:
            levels = levels.view(_NUMBERS[bits, kind])
        if bits < 32:
            whites = (2 ** (bits - (kind == _SIGNED)) - 1,)
        if (bits, kind) == (16, _UNSIGNED) and 0 < (described := _described_white(tags)) < 65536:
            whites = (described, *whites)
        if 0 < (told := _number(tags, _S_MAX_SAMPLE_VALUE, 0)) <= _LARGEST_LEVEL:
            whites = (told, *whites)
        white_is_zero = _number(tags, tiff.PHOTOMETRIC_INTERPRETATION, 0) == 0
    elif (bits := image.info.get(_SIGNIFICANT_BITS, 16)) < 16:
        # By the standard such levels are spread over all 16 bits, so the low bits repeat the high ones or are 0. Where
        # that cannot be, a program has left them in the low bits.
        if levels.max() < 2**bits and (levels % 2 ** (16 - bits)).any():
            whites = (2**bits - 1,)

    clear = image.info.get("transparency")
    is_clear = levels == clear if isinstance(clear, int) else None
    scaled = levels.astype(np.float32)
    scaled[~(np.abs(scaled) <= _LARGEST_LEVEL)] = 0  # and what is no number
    if image.mode == "F" and isinstance(image, tiff.TiffImageFile):
        with contextlib.suppress(TypeError, ValueError):  # no such tag, or no number in it
            scaled[scaled == np.float32(image.tag_v2.get(_GDAL_NODATA))] = 0
    brightest = float(scaled.max())
    white = next((level for level in whites if brightest <= level), brightest)
    np.clip(scaled, 0, white, out=scaled)
    scaled *= 255 / white
    if white_is_zero:
        np.subtract(255, scaled, out=scaled)
    grey = (scaled + 0.5).astype(np.uint8)
    if is_clear is not None:
        grey[is_clear] = 255
    return to_srgb(Image.fromarray(grey), image.info.get("icc_profile")).convert("RGB")


# -------------------------------------------------------------------------------------------------------- JPEG and PNG


_ICC = b"ICC_PROFILE\0"


class _Excerpt(io.RawIOBase):
    """Parts of a file as one file.

    Pillow refuses a whole photo for metadata that are malformed, or unpack to more than a megabyte. So it gets to see
    only what the pixels need.
    """

    def __init__(self, file: IO[bytes], owns_file: bool) -> None:
        self._file, self._owns_file = file, owns_file
        self._position = 0
        self._parts: list[tuple[int, int]] = []  # where they begin and end in the file
        self._ends: list[int] = []  # where they end in the excerpt

    def add(self, begin: int, end: int) -> None:
        self._parts.append((begin, end))
        self._ends.append(end - begin + (self._ends[-1] if self._ends else 0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = bisect(self._ends, self._position)
        if part == len(self._parts):
            return 0
        left = self._ends[part] - self._position
        data = _read_at(self._file, self._parts[part][1] - left, min(len(buffer), left))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if self._owns_file:
            self._file.close()
        super().close()


def _open_jpeg(file: IO[bytes], owns_file: bool) -> Image.Image:
    excerpt, begin, turn = _Excerpt(file, owns_file), 2, 1
    profile: dict[int, bytes] = {}  # its parts, by their numbers from 1
    excerpt.add(0, begin)
    while True:
        marker, length = struct.unpack(">HH", _read_at(file, begin, 4).ljust(4, b"\0"))
        if marker == 0xFFFF:  # a byte to fill up
            begin += 1
            continue
        if not 0xFFC0 <= marker <= 0xFFFE or 0xFFD0 <= marker <= 0xFFDA:  # from the first scan on all is pixels
            break
        end = begin + 2 + length
        if marker == 0xFFE1 and turn == 1:  # there may be several
            turn = _orientation_in(file.read(max(length - 2, 0)))
        elif marker == 0xFFE2 and (data := file.read(max(length - 2, 0))).startswith(_ICC) and len(data) > 14:
            profile[data[12]] = data[14:]
        # Of the applications' segments, JFIF's and Adobe's say which colours these are; the last are comments.
        if marker < 0xFFE0 or marker in (0xFFE0, 0xFFEE) or 0xFFEF < marker < 0xFFFE:
            excerpt.add(begin, end)
        begin = end
    pixels = _read_at(file, begin, -1)
    if pixels.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(_SLOW)
    excerpt.add(begin, begin + len(pixels))
    del pixels
    try:
        image = Image.open(io.BufferedReader(excerpt), formats=["JPEG"])
    except Image.UnidentifiedImageError:
        raise ImageError(
            "The JPEG file is damaged or of a rare kind, such as 12 bits; save it as an 8-bit JPEG or as PNG."
        ) from None
    image.info[_ORIENTATION] = turn
    if profile:
        image.info["icc_profile"] = b"".join(part for _, part in sorted(profile.items()))
    return image


def _open_png(file: IO[bytes], owns_file: bool) -> Image.Image:
    excerpt, begin = _Excerpt(file, owns_file), 8
    excerpt.add(0, begin)
    is_grey, depth, significant_bits, exif, profile = False, 8, 16, b"", b""
    while len(start := _read_at(file, begin, 8)) == 8:
        length, name = struct.unpack(">I4s", start)
        end = begin + 12 + length
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            excerpt.add(begin, end)
        if name in (b"IHDR", b"sBIT", b"iCCP", b"eXIf", b"tEXt", b"zTXt"):
            data = file.read(min(length, _MAX_METADATA_BYTES))
            if name == b"IHDR" and length >= 13:
                depth, is_grey = data[8], data[9] == 0
            elif name == b"sBIT" and length:
                significant_bits = data[0]
            elif name == b"eXIf":
                exif = data
            elif name == b"iCCP":
                profile = _unpack(data.partition(b"\0")[2][1:])
            elif data.startswith(b"Raw profile type exif\0"):  # of ImageMagick, before there was eXIf
                text = data.partition(b"\0")[2]
                text = _unpack(text[1:]) if name == b"zTXt" else text
                exif = exif or _exif_of_text(text.decode("latin-1"))
        if name == b"IEND":
            break
        begin = end
    image = Image.open(io.BufferedReader(excerpt), formats=["PNG"])
    image.info[_ORIENTATION] = _orientation_in(exif)
    if profile:
        image.info["icc_profile"] = profile
    if is_grey and depth == 16 and 0 < significant_bits < 16:
        image.info[_SIGNIFICANT_BITS] = significant_bits
    # Pillow scales levels to 8 bits, but not the level or colour that is transparent.
    clear = image.info.get("transparency")
    if is_grey and depth in (2, 4) and clear is not None:
        image.info["transparency"] = clear * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(clear, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    return image


def _load(image: Image.Image) -> None:
    """Decode a photo, also a JPEG that lacks nothing but the marker of its end."""
    try:
        image.load()
    except OSError:
        if image.format != "JPEG" or not isinstance(image, ImageFile.ImageFile) or not image.fp:
            raise
        file, tiles = image.fp, image.tile
        file.seek(0)
        content = file.read().removesuffix(b"\xff")
        # libjpeg fills up missing pixels without an error. Where none is missing, it does not matter what follows.
        is_whole, decoded = False, []
        try:
            for filling in (b"\xaa" * 64, b""):
                image.fp, image.tile = io.BytesIO(content + filling + b"\xff\xd9"), list(tiles)
                image.load()
                decoded.append(image.tobytes())
            is_whole = decoded[0] == decoded[1]
        finally:
            if not is_whole:
                image.fp, image.tile = file, tiles
        if not is_whole:
            raise
        if image._exclusive_fp:  # Pillow has opened it
            file.close()


_EXCERPTS = {b"\xff\xd8\xff": _open_jpeg, b"\x89PN": _open_png}  # by how a file begins


def _read_at(file: IO[bytes], position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _unpack(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_METADATA_BYTES)
    except zlib.error:
        return b""


def _exif_of_text(text: str) -> bytes:
    """EXIF as ImageMagick writes it into a text of a PNG: an empty line, a name, the length, and hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


# ---------------------------------------------------------------------------------------------------------------- TIFF

_MAX_PAGES = 32
_NEW_SUBFILE_TYPE, _S_MAX_SAMPLE_VALUE, _GDAL_NODATA = 254, 341, 42113
_LARGEST_LEVEL = 1e30  # programs mark missing values with larger ones
# Of how the pixels are stored: their size, colours, compression, strips and tiles.
_TAGS_OF_PIXELS = {*range(254, 267), 273, 274, *range(277, 280), 284, 292, 293, *range(317, 326), *range(332, 348)}
_TAGS_OF_PIXELS |= {*range(512, 522), *range(529, 533)}
_BYTES_OF_KIND = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a value of a tag; the others have 1
_COLOURS = {0: "grey with white as 0", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "ICC Lab"}
_GREYS, _RGB, _YCBCR = (0, 1), 2, 6  # PhotometricInterpretation
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # SampleFormat
# Pillow's decoders can do more than it allows; they leave the inversion to us.
for order, is_white, bits, modes in (
    (b"MM", 0, 16, ("I;16B", "I;16B")),
    (b"II", 0, 12, ("I;16", "I;12")),
    (b"MM", 0, 12, ("I;16", "I;12")),
    (b"MM", 1, 12, ("I;16", "I;12")),
):
    tiff.OPEN_INFO.setdefault((order, is_white, (_UNSIGNED,), 1, (bits,), ()), modes)
_NUMBERS = {(32, _UNSIGNED): np.uint32, (8, _SIGNED): np.int8}  # Pillow gives them the other sign
_KINDS = {_UNSIGNED: "", _SIGNED: "signed ", _FLOAT: "float "}


def _number(tags: tiff.ImageFileDirectory_v2, tag: int, default: int) -> Any:
    """The first number of a tag, or the default where it is missing or no number."""
    try:
        value = tags.get(tag, default)
        value = value[0] if isinstance(value, tuple) else value
    except Exception:  # malformed
        return default
    return value if isinstance(value, (int, float)) else default


def _described_white(tags: tiff.ImageFileDirectory_v2) -> float:
    """The white that the description tells, as microscopes (OME) and ImageJ write it, or 0."""
    text = tags.get(tiff.IMAGEDESCRIPTION)
    if not isinstance(text, str):
        return 0
    if bits := re.search(r'\bSignificantBits="(\d{1,2})"', text):
        return float(2 ** int(bits[1]) - 1)
    white = re.search(r"^max=(\d+(?:\.\d+)?)\s*$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    return float(white[1]) if white else 0


def _is_signed(image: Image.Image) -> bool:
    return isinstance(image, tiff.TiffImageFile) and _number(image.tag_v2, tiff.SAMPLEFORMAT, _UNSIGNED) == _SIGNED


def _skip_previews(image: tiff.TiffImageFile) -> None:
    """Go to the first page that is no smaller copy of another page."""
    with contextlib.suppress(EOFError):
        for page in range(_MAX_PAGES):
            try:
                image.seek(page)
            except SyntaxError as error:  # Pillow knows no such pixels
                raise ImageError(_unreadable(image.tag_v2)) from error
            if not int(_number(image.tag_v2, _NEW_SUBFILE_TYPE, 0)) & 1:
                return
    raise ImageError("The file holds only a small preview; export the photo as JPEG, PNG or TIFF.")


def _keep_as_stored(image: tiff.TiffImageFile) -> None:
    """Stop Pillow from turning a TIFF while it decodes, for there it also reads tags that may be malformed."""
    turn = _number(image.tag_v2, ExifTags.Base.Orientation, 1)
    image.info[_ORIENTATION] = turn if turn in _TURN_UPRIGHT else 1
    exif = image.getexif()
    for tag in list(exif):
        del exif[tag]
    image.tag_v2.pop(ExifTags.Base.Orientation, None)
    image._size = (image.tag_v2[tiff.IMAGEWIDTH], image.tag_v2[tiff.IMAGELENGTH])


def _mend_palette(image: tiff.TiffImageFile) -> None:
    """Old programs write the colours of a palette with 8 bits; Pillow takes the upper 8 of 16."""
    levels = image.tag_v2.get(tiff.COLORMAP)
    if image.mode in ("P", "PA") and isinstance(levels, tuple) and max(levels) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(levels))


def _check_kind(tags: tiff.ImageFileDirectory_v2) -> None:
    """Raises ImageError for a TIFF that Pillow would decode to wrong colours, or not at all."""
    colour, bits = _number(tags, tiff.PHOTOMETRIC_INTERPRETATION, 0), _number(tags, tiff.BITSPERSAMPLE, 1)
    is_raw, has_planes = _number(tags, tiff.COMPRESSION, 1) == 1, _number(tags, tiff.PLANAR_CONFIGURATION, 1) == 2
    if (
        (is_raw and colour == _YCBCR)
        or (has_planes and colour in _GREYS and _number(tags, tiff.SAMPLESPERPIXEL, 1) > 1)  # Pillow loses alpha
        or (is_raw and has_planes and (bits > 8 or _number(tags, tiff.EXTRASAMPLES, 0) == 1))  # 1: times alpha
        or (not is_raw and tags.prefix == b"MM" and bits > 8 and _number(tags, tiff.SAMPLEFORMAT, 1) != _UNSIGNED)
        or (colour == _RGB and bits == 16 and 0 < _number(tags, _S_MAX_SAMPLE_VALUE, 0) < 2**15)  # 8 bits of 16 remain
    ):
        raise ImageError(_unreadable(tags))


def _open_bare_tiff(file: IO[bytes]) -> Image.Image:
    """For a TIFF that Pillow refuses, which it also does where a tag that no pixel needs leads outside of the file."""
    content = bytearray(_read_at(file, 0, 8) + file.read())
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
                raise ImageError(_DAMAGED)
        directory = struct.pack(f"{order}H", len(needed)) + b"".join(needed)
        content[start : start + len(directory) + 4] = directory + b"\0" * 4  # no other picture follows
    bare = io.BytesIO(content)
    try:
        return Image.open(bare, formats=["TIFF"])
    except Image.UnidentifiedImageError:
        tags = tiff.ImageFileDirectory_v2(_read_at(bare, 0, 16 if is_big else 8))
        bare.seek(tags.next)
        tags.load(bare)
        raise ImageError(_unreadable(tags)) from None


def _unreadable(tags: tiff.ImageFileDirectory_v2) -> str:
    """The sentence for a TIFF that cannot be read."""
    if tiff.BITSPERSAMPLE not in tags or tiff.PHOTOMETRIC_INTERPRETATION not in tags:
        return _DAMAGED
    colour, compression = _number(tags, tiff.PHOTOMETRIC_INTERPRETATION, 0), _number(tags, tiff.COMPRESSION, 1)
    kind = _KINDS.get(_number(tags, tiff.SAMPLEFORMAT, _UNSIGNED), "unusual ")
    details = [
        f"{_number(tags, tiff.BITSPERSAMPLE, 1)}-bit {kind}{_COLOURS.get(colour, f'colours of type {colour}')}",
        {"raw": "uncompressed"}.get(name := tiff.COMPRESSION_INFO.get(compression, f"compression {compression}"), name),
    ]
    if tiff.EXTRASAMPLES in tags:
        details.append("more channels than colours")
    if _number(tags, tiff.PLANAR_CONFIGURATION, 1) == 2:
        details.append("each colour apart")
    if tags.prefix == b"MM":
        details.append("big-endian")
    if (white := _number(tags, _S_MAX_SAMPLE_VALUE, 0)) > 0:
        details.append(f"white at {white}")
    return f"This kind of TIFF cannot be read ({', '.join(details)}); save it as RGB with 8 bits per colour, or as PNG."

"""The names of segments, written where each of them has most room, in a font that has their letters."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from scipy import ndimage

from pem.outputs import Segmentation

# To find a place for a name, an id map of at most this many pixels a side is enough.
SEARCHED_PX = 480
FONT_SHARE = 1 / 48  # of the long side of the image
JOINERS = "\u200c\u200d"  # invisible: they say whether the letters beside them join
# Fonts of the system come last if their files' names hold an unusual word. The second list has a box for every letter.
UNUSUAL = ("bold", "italic", "oblique", "light", "thin", "mono", "condensed", "serif")
NO_LETTERS = ("lastresort", "notdef")

_log = logging.getLogger("pem")
_font_of: dict[tuple[str, frozenset[str]], str | None] = {}  # by the font that the user named, and by letters
_told: set[str] = set()  # names that were logged


def write_names(pixels: np.ndarray, segmentation: Segmentation) -> np.ndarray:
    """A copy of uint8 RGB [H0, W0, 3] with the name of every segment of ``segmentation`` that has room for it.

    The largest segments come first. A name is left out if it would cover another, does not fit into its segment's
    thickest part, or is wider than the image. So is a name if no font has all its letters; the log says so, once per
    name. The fonts are the file in the environment variable PEM_FONT, DejaVu Sans, and those of the system, in this
    order.

    Raises ValueError when PEM_FONT names no font.
    """
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image, "RGBA")
    height_px = max(11, round(max(image.size) * FONT_SHARE))
    margin = height_px / 2.5
    taken: list[tuple[float, float, float, float]] = []
    names = {segment.id: _plain_text(segment.label) for segment in segmentation.segments}
    font_files = _font_files_for(names.values())
    for segment in sorted(segmentation.segments, key=lambda segment: -segment.area_px):
        name = names[segment.id]
        if name not in font_files:
            continue
        y, x, depth = deepest_place(segmentation.ids, segment.id)
        font = _open(font_files[name], height_px)
        half = draw.textlength(name, font) / 2 + margin
        if depth < 0.8 * height_px or 2 * half > image.width:
            continue
        x = min(max(x, half), image.width - half)
        box = (x - half, y - height_px / 2 - margin / 2, x + half, y + height_px / 2 + margin / 2)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=margin, fill=(0, 0, 0, 170))
        draw.text((x, y), name, fill=(255, 255, 255), font=font, anchor="mm")
    return np.array(image)  # which may be written to


def _plain_text(label: str) -> str:
    """On one line, with letters and marks composed, and without what nobody sees: controls, directions, variants."""
    text = unicodedata.normalize("NFC", " ".join(label.split()))
    return "".join(
        c for c in text if c in JOINERS or not (unicodedata.category(c) in ("Cc", "Cf", "Cs") or c == "\ufe0f")
    )


def _needs_shaping(name: str) -> bool:
    """Whether letters run from right to left, join or carry marks. Such letters cannot just be set side by side."""
    return any(
        c in JOINERS or unicodedata.category(c).startswith("M") or unicodedata.bidirectional(c) in ("R", "AL", "AN")
        for c in name
    )


def _font_files_for(names: Iterable[str]) -> dict[str, str]:
    """A font file for each name that can be written; the others are logged."""
    user_font = os.environ.get("PEM_FONT", "")
    can_shape = features.check("raqm")
    names = [name for name in dict.fromkeys(names) if name.strip(JOINERS)]
    writable = {
        name: frozenset(name).difference(JOINERS, " ") for name in names if can_shape or not _needs_shaping(name)
    }
    _find_fonts(user_font, writable.values())
    found = {name: _font_of[user_font, letters] for name, letters in writable.items()}
    _tell(
        "Some names are not written, for no font here has all their letters: %s. Install a font, such as Debian's "
        "fonts-noto-cjk or fonts-noto-core, or name one in the environment variable PEM_FONT.",
        [name for name, file in found.items() if file is None],
    )
    _tell(
        "Some names are not written, for Pillow has no Raqm to join or order their letters: %s. Install one with Raqm.",
        [name for name in names if name not in writable],
    )
    return {name: file for name, file in found.items() if file is not None}


def _tell(sentence: str, names: list[str]) -> None:
    if new := [name for name in names if name not in _told]:
        _told.update(new)
        _log.warning(sentence, ", ".join(new))


def _find_fonts(user_font: str, wanted: Iterable[frozenset[str]]) -> None:
    """Fills ``_font_of``. A system may have thousands of fonts, so each is opened once for all letters."""
    missing = {letters for letters in wanted if (user_font, letters) not in _font_of}
    for file in _font_files(user_font) if missing else ():
        present = _present(file, frozenset().union(*missing))
        found = {letters for letters in missing if letters <= present}
        _font_of.update({(user_font, letters): file for letters in found})
        missing -= found
        if not missing:
            break
    _font_of.update({(user_font, letters): None for letters in missing})


def _font_files(user_font: str) -> Iterator[str]:
    if user_font:
        try:
            _open(user_font, 16)
        except OSError:
            raise ValueError(
                f"PEM_FONT is {user_font!r}, which is no font file; name a .ttf, .otf or .ttc file."
            ) from None
        yield user_font
    yield _own_font()
    yield from _system_fonts()


def _own_font() -> str:
    """DejaVu Sans, which matplotlib brings, has Latin, Greek and Cyrillic letters; Pillow's own ("") only ASCII."""
    matplotlib = find_spec("matplotlib")  # without importing it
    if matplotlib is not None and matplotlib.origin is not None:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return str(path)
    return ""


@cache
def _system_fonts() -> tuple[str, ...]:
    try:
        from matplotlib import font_manager  # the import takes a second, and most names need no other font
    except ImportError:
        return ()

    def unusual(file: str) -> int:
        return sum(word in Path(file).stem.lower() for word in UNUSUAL)

    files = [file for file in font_manager.findSystemFonts() if not Path(file).stem.lower().startswith(NO_LETTERS)]
    return tuple(sorted(files, key=lambda file: (unusual(file), file)))


def _open(file: str, height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(file, height_px) if file else ImageFont.load_default(height_px)


def _present(file: str, letters: frozenset[str]) -> set[str]:
    """The letters that a font has: it draws them, and not as the box that stands for a missing one. A damaged font, or
    one of pictures in fixed sizes, as of emoji, has none."""
    try:
        font = _open(file, 16)
        pictures = {letter: _picture(font, letter) for letter in letters}
        box = _picture(font, "\uffff")
    except (OSError, ValueError):
        return set()
    return {letter for letter, picture in pictures.items() if picture != box and any(picture[1])}


def _picture(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def deepest_place(ids: np.ndarray, segment_id: int) -> tuple[float, float, float]:
    """Where a segment is thick, (y, x, depth) in pixels: nearly as deep inside it as possible, and near to its middle.

    Depth is the distance to the next pixel of anything else, or out of the image; 0 for a segment without pixels.
    """
    step = -(-max(ids.shape) // SEARCHED_PX)
    inside = ids[::step, ::step] == segment_id
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        return 0.0, 0.0, 0.0
    [(rows, cols)] = found
    depth = ndimage.distance_transform_edt(np.pad(inside[rows, cols], 1))[1:-1, 1:-1]
    ys, xs = np.nonzero(depth >= 0.9 * depth.max())
    middle_y, middle_x = ndimage.center_of_mass(depth > 0)
    best = np.argmin((ys - middle_y) ** 2 + (xs - middle_x) ** 2)
    y, x = ((first.start + at[best] + 0.5) * step for first, at in ((rows, ys), (cols, xs)))
    return float(y), float(x), float(depth.max() * step)

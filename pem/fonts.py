"""Fonts that have the letters of a name, among the user's own, DejaVu Sans and those of the system."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont, features

JOINERS = "\u200c\u200d"  # invisible: they say whether the letters beside them join
# Fonts of the system come last if their files' names hold an unusual word. The second list has a box for every letter.
UNUSUAL = ("bold", "italic", "oblique", "light", "thin", "mono", "condensed", "serif")
NO_LETTERS = ("lastresort", "notdef")

_log = logging.getLogger("pem")
_font_of: dict[tuple[str, frozenset[str]], str | None] = {}  # by the font that the user named, and by letters
_told: set[str] = set()  # names that were logged


def font_files_for(names: Iterable[str]) -> dict[str, str]:
    """A font file for each name that can be written; the others are logged.

    Raises ValueError when the environment variable PEM_FONT names no font.
    """
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


def _needs_shaping(name: str) -> bool:
    """Whether letters run from right to left, join or carry marks. Such letters cannot just be set side by side."""
    return any(
        c in JOINERS or unicodedata.category(c).startswith("M") or unicodedata.bidirectional(c) in ("R", "AL", "AN")
        for c in name
    )


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
            open_font(user_font, 16)
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


def open_font(file: str, height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(file, height_px) if file else ImageFont.load_default(height_px)


def _present(file: str, letters: frozenset[str]) -> set[str]:
    """The letters that a font has: it draws them, and not as the box for a missing letter.

    A damaged font has none, nor has a font of pictures in fixed sizes, such as emoji.
    """
    try:
        font = open_font(file, 16)
        pictures = {letter: _picture(font, letter) for letter in letters}
        box = _picture(font, "\uffff")
    except (OSError, ValueError):
        return set()
    return {letter for letter, picture in pictures.items() if picture != box and any(picture[1])}


def _picture(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)

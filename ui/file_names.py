"""The names of visitors' files: kept with their results, and made safe where they name files of ours."""

from __future__ import annotations

import os
import re
import unicodedata

MAX_LETTERS = 60  # each takes up to four bytes in UTF-8, and file systems take names of 255 bytes


def plain_name(given: str) -> str:
    """The name of a file without its folders and without characters that are no text; "" if nothing is left."""
    name = re.split(r"[/\\]", given)[-1]
    # Of the invisible characters the two joiners stay: without them, Persian words and some emoji are different ones.
    return "".join(c for c in name if c in "\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")).strip()


def safe_stem(file_name: str) -> str:
    """The name of a file without its ending, safe in every file system and every URL; "photo" if nothing is left."""
    stem = unicodedata.normalize("NFC", file_name.rpartition(".")[0] or file_name)
    kept = (c if unicodedata.category(c)[0] in "LMN" or c in "-+()" else "_" for c in stem[:MAX_LETTERS])
    stem = re.sub("_+", "_", "".join(kept)).strip("_-")
    try:
        os.fsencode(stem)
    except UnicodeEncodeError:  # this system does not write its file names in UTF-8
        return "photo"
    return stem or "photo"

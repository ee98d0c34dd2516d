"""The names of visitors' files: kept with their results, and made safe where they name files of ours."""

from __future__ import annotations

import os
import re
import unicodedata

MAX_LETTERS = 60  # in UTF-8 each may take four bytes, and file systems take 255


def plain_name(given: str) -> str:
    """A file's name without its folders, by either kind of slash, and without what is no text; "" if none is left."""
    name = re.split(r"[/\\]", given)[-1]
    # Of what is invisible only the two joiners stay, without which Persian words and some emoji are others.
    return "".join(c for c in name if c in "\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")).strip()


def safe_stem(file_name: str) -> str:
    """A file's name without its ending, as every system takes it for a file and every URL has it; "photo" for none."""
    stem = unicodedata.normalize("NFC", file_name.rpartition(".")[0] or file_name)
    kept = (c if unicodedata.category(c)[0] in "LMN" or c in "-+()" else "_" for c in stem[:MAX_LETTERS])
    stem = re.sub("_+", "_", "".join(kept)).strip("_-")
    try:
        os.fsencode(stem)
    except UnicodeEncodeError:  # this system's names of files are not in UTF-8
        return "photo"
    return stem or "photo"

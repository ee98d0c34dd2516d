"""What the command works on, and where its results go: settled before any work is done."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pem.photos import FORMATS

ENDINGS = sorted(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)
PHOTO_ENDINGS = [*ENDINGS, ".heic", ".heif", ".hif", ".mpo"]  # of phones; the first picture of an MPO is a JPEG
SOFTWARE = "PEM Studio"  # marks our own overlays and id maps, which are no photos


class Work(NamedTuple):
    """One photo, and the files to be made of it."""

    photo: Path
    overlay: Path
    id_map: Path | None


def find_photos(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Each photo once, those of a folder by name; and a sentence for each folder without a photo."""
    photos: dict[Path, Path] = {}
    problems = []
    for path in paths:
        found = [path]
        try:
            if path.is_dir():
                found = sorted(filter(_is_photo, path.iterdir()))
                if not found:
                    problems.append(f"The folder {path} holds no photo ({', '.join(PHOTO_ENDINGS)}).")
        except OSError as error:
            found = []
            problems.append(f"{path} cannot be read: {error.strerror}.")
        for photo in found:
            photos.setdefault(photo.resolve(), photo)
    return list(photos.values()), problems


def _is_photo(file: Path) -> bool:
    """By its ending. Other programs' hidden files beside photos do not count, nor what this command has written."""
    if file.suffix.lower() not in PHOTO_ENDINGS or file.name.startswith(".") or not file.is_file():
        return False
    if file.suffix == ".png":
        with suppress(OSError), Image.open(file, formats=["PNG"]) as image:
            return image.info.get("Software") != SOFTWARE
    return True


def plan_one(photo: Path, task: str, out: Path | None, json: Path | None) -> list[Work]:
    """``out`` is the overlay or its folder; the id map lies beside the file ``json``, if there is one.

    Raises ValueError for what cannot be written, before the work is done.
    """
    name = f"{photo.stem}-{task}.png"
    overlay = out or Path(name)
    if overlay.is_dir():
        overlay /= name
    if overlay.suffix.lower() not in ENDINGS:
        raise ValueError(f"{overlay} has no ending of an image file; use .png or .jpg.")
    works = [Work(photo, overlay, json and json.with_name(f"{json.stem}-ids.png"))]
    _check_targets(works, json)
    return works


def plan_several(photos: list[Path], task: str, out: Path | None, json: Path | None) -> list[Work]:
    """As ``plan_one``, but ``out`` is a folder, and the id maps go into one named like ``json``. Makes both folders."""
    folder, id_maps = out or Path(), json and json.with_suffix("")
    if folder.suffix.lower() in ENDINGS and not folder.is_dir():
        raise ValueError(f"{folder} has the ending of an image file; with several photos --out is a folder.")
    if id_maps == json and id_maps is not None:
        raise ValueError(
            f"{id_maps} has no ending; name it {id_maps}.json, for the id maps go into a folder {id_maps}."
        )
    if id_maps and id_maps.resolve() in {photo.resolve().parent for photo in photos}:
        raise ValueError(f"The id maps of {json} would go among the photos in {id_maps}; choose another name.")
    works = []
    taken: set[str] = set()
    for photo in photos:
        # As JSON can hold it, and short enough for file systems with the task, a number and the ending behind it.
        photo_stem = os.fsdecode(os.fsencode(photo.stem)[:200].decode("utf-8", "ignore").encode("utf-8"))
        stem, number = photo_stem, 1
        # Two photos may have one stem. Some file systems take capital and small letters for the same.
        while (key := unicodedata.normalize("NFC", stem).casefold()) in taken:
            number += 1
            stem = f"{photo_stem}-{number}"
        taken.add(key)
        works.append(Work(photo, folder / f"{stem}-{task}.png", id_maps and id_maps / f"{stem}.png"))
    if works:
        for path in filter(None, (folder, id_maps)):
            _make_folder(path)
    _check_targets(works, json)
    return works


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, where a folder is needed; choose another name.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to make {path.name} in.")
    with writing(path):
        path.mkdir(exist_ok=True)


def _check_targets(works: list[Work], json: Path | None) -> None:
    """Raises ValueError for what cannot be written, and where a file would overwrite another, least of all a photo."""
    taken = {work.photo.resolve() for work in works}
    for path in filter(None, (*(target for work in works for target in work[1:]), json)):
        if path.resolve() in taken:
            raise ValueError(f"{path} would be written over another file of this run; choose another name.")
        taken.add(path.resolve())
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path.name} into.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written (permission denied); choose another place.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the OSError of what is written inside into a ValueError of one sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error

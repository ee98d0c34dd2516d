"""``python -m pem PHOTO...``: segment photos in a terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pem.outputs import Segmentation
from pem.photos import FORMATS, load_image
from pem.predict import READINGS, predict
from pem.render import id_map_png, legend, panoptic_json, render
from pem.terminal import INTERRUPTED, escape_missing_letters, leave_to_reader
from pem.weights import load_model

THRESHOLDS: dict[str, tuple[str, ...]] = {
    "panoptic": ("object_threshold", "overlap_threshold"),
    "semantic": (),
    "instance": ("score_threshold",),
}
ENDINGS = sorted(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)
SOFTWARE = "PEM Studio"  # by this mark an overlay is known, so that a folder's overlays are not taken for photos
PHOTO_ENDINGS = [*ENDINGS, ".heic", ".heif", ".hif", ".mpo"]  # of phones; in an MPO the first picture is a JPEG


class Work(NamedTuple):
    """One photo, and the files to be made of it."""

    photo: Path
    overlay: Path
    id_map: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 when something was wrong, which is then said on stderr."""
    options = _parser().parse_args(arguments)
    escape_missing_letters()
    try:
        return 0 if _segment_all(options) else 2
    except KeyboardInterrupt:
        print("pem: stopped; what was written before stays.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return leave_to_reader()
    except (ValueError, OSError, RuntimeError) as error:
        _complain(error)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pem", description="Segment photos.")
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTO", help="photos, and folders whose photos are all taken")
    add("--task", choices=READINGS, default="panoptic", help="default: %(default)s")
    add("--object-threshold", type=float, metavar="T", help="panoptic: a query counts above this score, 0 to 1")
    add("--overlap-threshold", type=float, metavar="T", help="panoptic: the least share of its mask that it must win")
    add("--score-threshold", type=float, metavar="T", help="instance: the score that an instance must exceed")
    add("--out", type=Path, help="the overlay of one photo, or a folder; default: ./PHOTO-TASK.png")
    add("--names", action=argparse.BooleanOptionalAction, default=True, help="write names on overlays; default: yes")
    add(
        "--json",
        type=Path,
        metavar="NAME.json",
        help="segments in COCO panoptic format: with one PHOTO the id map goes beside it as NAME-ids.png, with several "
        "or a folder the id maps go into the folder NAME",
    )
    add("--model", default="default", help="a preset, a weights file or a Hub id; default: %(default)s")
    add("--weights", help="the weights of a preset")
    add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    return parser


def _segment_all(options: argparse.Namespace) -> bool:
    """Whether all went well; what was wrong with one photo has been said, and the others are done."""
    thresholds = _thresholds(options)
    if options.json and options.json.is_dir():
        raise ValueError(f"{options.json} is a folder; give the name of a file.")
    photos, all_done = _find_photos(options.photos)
    several = len(options.photos) > 1 or options.photos[0].is_dir()
    works = _plan_several(photos, options) if several else _plan_one(photos[0], options)
    model, content = None, None
    times_named = Counter(photo.name for photo in photos)
    common = Path(os.path.commonpath([photo.resolve().parent for photo in photos])) if photos else Path()
    try:
        for number, work in enumerate(works, 1):
            try:
                image = load_image(work.photo)
            except (ValueError, OSError, MemoryError) as error:
                all_done = _complain(error, work.photo)
                continue
            model = model or load_model(options.model, device=options.device, weights=options.weights)
            try:
                segmentation = predict(model, image, options.task, **thresholds)
                _write(work, image, segmentation, options.names)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                all_done = _complain(error, work.photo)
                continue
            if work.id_map:
                is_unique = times_named[work.photo.name] == 1  # else the folder tells the photos apart
                name = work.photo.name if is_unique else work.photo.resolve().relative_to(common).as_posix()
                record = panoptic_json(segmentation, model.config, name, work.id_map.name, number)
                content = content or record | {"images": [], "annotations": []}
                for key in ("images", "annotations"):
                    content[key] += record[key]
            # Last, for nobody may be there to read it.
            if several:
                print(f"{work.photo}:")
            _print_legend(segmentation)
            print(f"Wrote {', '.join(str(path) for path in work[1:] if path)}")
    finally:  # also when the rest was given up
        if content:
            with _writing(options.json):
                options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(f"Wrote {options.json}")
    return all_done


def _complain(error: Exception, photo: Path | None = None) -> bool:
    """Says in one line what was wrong, and with which photo. Returns False, as what is not done."""
    sentence, *_ = str(error).splitlines() or [type(error).__name__]  # torch's messages go on for a page
    if photo is not None and photo.name not in sentence:
        sentence = f"{photo}: {sentence}"
    print(f"pem: {sentence}", file=sys.stderr)
    return False


def _thresholds(options: argparse.Namespace) -> dict[str, float]:
    """Those that were given, by their names in ``pem.predict``."""
    own = THRESHOLDS[options.task]
    given = {name: getattr(options, name) for names in THRESHOLDS.values() for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name not in own:
            others = " and ".join(f"--{name.replace('_', '-')}" for name in own) or "no threshold"
            raise ValueError(f"The task {options.task} does not have {option}; it takes {others}.")
        if not 0 <= value <= 1:
            raise ValueError(f"{option} is {value:g}; it must lie between 0 and 1.")
    return given


def _find_photos(paths: Iterable[Path]) -> tuple[list[Path], bool]:
    """Each photo once, those of a folder by name; and whether every folder has one."""
    photos: dict[Path, Path] = {}
    all_have_one = True
    for path in paths:
        found = [path]
        try:
            if path.is_dir():
                found = sorted(file for file in path.iterdir() if _is_photo(file) and not _is_ours(file))
                if not found:
                    endings = ", ".join(PHOTO_ENDINGS)
                    all_have_one = _complain(ValueError(f"The folder {path} holds no photo ({endings})."))
        except OSError as error:
            all_have_one = _complain(ValueError(f"{path} cannot be read: {error.strerror}."))
            continue
        for photo in found:
            photos.setdefault(photo.resolve(), photo)
    return list(photos.values()), all_have_one


def _is_photo(file: Path) -> bool:
    """By its ending; names that begin with a point are what systems write beside photos."""
    return file.suffix.lower() in PHOTO_ENDINGS and not file.name.startswith(".") and file.is_file()


def _is_ours(file: Path) -> bool:
    """Whether an earlier run wrote this file, as the overlay or the id map of a photo."""
    if file.suffix != ".png":
        return False
    with suppress(OSError), Image.open(file, formats=["PNG"]) as image:
        return image.info.get("Software") == SOFTWARE
    return False


def _plan_one(photo: Path, options: argparse.Namespace) -> list[Work]:
    name = f"{photo.stem}-{options.task}.png"
    overlay = options.out or Path(name)
    if overlay.is_dir():
        overlay /= name
    if overlay.suffix.lower() not in ENDINGS:
        raise ValueError(f"{overlay} has no ending of an image file; use .png or .jpg.")
    id_map = options.json and options.json.with_name(f"{options.json.stem}-ids.png")
    works = [Work(photo, overlay, id_map)]
    _check_targets(works, options.json)
    return works


def _plan_several(photos: list[Path], options: argparse.Namespace) -> list[Work]:
    """As _plan_one, for a file of its own per photo; makes the folders."""
    folder, id_maps = options.out or Path(), options.json and options.json.with_suffix("")
    if folder.suffix.lower() in ENDINGS and not folder.is_dir():
        raise ValueError(f"{folder} has the ending of an image file; with several photos --out is a folder.")
    if id_maps == options.json and id_maps is not None:
        raise ValueError(
            f"{id_maps} has no ending; name it {id_maps}.json, for the id maps go into a folder {id_maps}."
        )
    if id_maps and id_maps.resolve() in {photo.resolve().parent for photo in photos}:
        raise ValueError(f"The id maps of {options.json} would go among the photos in {id_maps}; choose another name.")
    works = []
    taken: set[str] = set()
    for photo in photos:
        # Shorter than file systems allow, for the task, a number and the ending follow; and as JSON can tell it.
        photo_stem = os.fsdecode(os.fsencode(photo.stem)[:200].decode("utf-8", "ignore").encode("utf-8"))
        stem, number = photo_stem, 1
        # Two photos may have one stem, and to some file systems a capital letter is no difference.
        while (key := unicodedata.normalize("NFC", stem).casefold()) in taken:
            number += 1
            stem = f"{photo_stem}-{number}"
        taken.add(key)
        works.append(Work(photo, folder / f"{stem}-{options.task}.png", id_maps and id_maps / f"{stem}.png"))
    if works:
        for path in filter(None, (folder, id_maps)):
            _make_folder(path)
    _check_targets(works, options.json)
    return works


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, where a folder is needed; choose another name.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to make {path.name} in.")
    with _writing(path):
        path.mkdir(exist_ok=True)


def _check_targets(works: list[Work], json_path: Path | None) -> None:
    """Say what cannot be written before the work is done, and let no file overwrite another, least of all a photo."""
    taken = {work.photo.resolve() for work in works}
    for path in filter(None, (*(target for work in works for target in work[1:]), json_path)):
        if path.resolve() in taken:
            raise ValueError(f"{path} would be written over another file of this run; choose another name.")
        taken.add(path.resolve())
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path.name} into.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written (permission denied); choose another place.")


def _write(work: Work, image: Image.Image, segmentation: Segmentation, names: bool) -> None:
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    with _writing(work.overlay):
        overlay = Image.fromarray(render(image, segmentation, names=names))
        overlay.save(work.overlay, pnginfo=mark)  # of which other formats take no notice
    if work.id_map:
        with _writing(work.id_map):
            Image.fromarray(id_map_png(segmentation)).save(work.id_map, pnginfo=mark)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error


def _print_legend(segmentation: Segmentation) -> None:
    rows = legend(segmentation)
    if not rows:
        print("Nothing was recognised.")
        return
    width = max(len(row.label) for row in rows)
    print(f"{'class':{width}}  score    area")
    for row in rows:
        print(f"{row.label:{width}}  {row.score:5.2f}  {row.area_fraction:6.1%}")


if __name__ == "__main__":
    sys.exit(main())

"""``python -m pem PHOTO...``: segment photos in a terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see pem/cores.py

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pem.coco import id_map_png, panoptic_json
from pem.exported import ExportedPEM
from pem.fastest import installed_version, kept_choice
from pem.files import SOFTWARE, Work, find_photos, plan_one, plan_several, writing
from pem.load import DEFAULT_EXPORT, load_model, runtimes_of_default
from pem.outputs import Segmentation
from pem.photos import load_image
from pem.postprocess import READINGS
from pem.predict import predict
from pem.render import legend, render
from pem.runtimes import RUNTIMES
from pem.terminal import INTERRUPTED, escape_missing_letters, leave_to_reader

if TYPE_CHECKING:
    from pem.model import PEM


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
    add("--model", default="default", help="a preset, a file of weights, an .onnx file, a Hub id; default: %(default)s")
    add("--weights", help="the weights of a preset")
    add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    add("--runtime", choices=("auto", "torch", *RUNTIMES), help="what runs the network; auto: the fastest here")
    add("--version", action="version", version=_versions(), help="of PEM Studio and of the runtimes that it found")
    return parser


def _versions() -> str:
    """Of this program and the runtimes, and which of them is known to be the fastest for the bundled model."""
    runtimes = runtimes_of_default()
    text = ", ".join(f"{name} {installed_version(name)}" for name in ("pem-studio", *runtimes))
    if not DEFAULT_EXPORT.is_file() or not (kept := kept_choice(DEFAULT_EXPORT, runtimes)):
        return f"{text}; the fastest runtime was not measured yet (--runtime auto)"
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in kept["median_ms"].items())
    return f"{text}; the fastest for the bundled model: {kept['runtime']} ({times}; measured {kept['date'][:10]})"


def _segment_all(options: argparse.Namespace) -> bool:
    """Returns whether all went well. Says what was wrong with a photo, and does the others."""
    thresholds = _thresholds(options)
    if options.json and options.json.is_dir():
        raise ValueError(f"{options.json} is a folder; give the name of a file.")
    photos, problems = find_photos(options.photos)
    for problem in problems:
        _complain(ValueError(problem))
    all_done = not problems
    several = len(options.photos) > 1 or options.photos[0].is_dir()
    places = (options.task, options.out, options.json)
    works = plan_several(photos, *places) if several else plan_one(photos[0], *places)
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
            model = model or _load(options)
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
            # Printed last: nobody may be there to read it.
            if several:
                print(f"{work.photo}:")
            _print_legend(segmentation)
            print(f"Wrote {', '.join(str(path) for path in work[1:] if path)}")
    finally:  # also when the rest was given up
        if content:
            with writing(options.json):
                options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(f"Wrote {options.json}")
    return all_done


def _load(options: argparse.Namespace) -> PEM | ExportedPEM:
    model = load_model(options.model, options.device, options.weights, runtime=options.runtime)
    if not isinstance(model, ExportedPEM):  # then torch is there
        from pem.devices import use_given_cores

        use_given_cores()
    return model


def _complain(error: Exception, photo: Path | None = None) -> bool:
    """Says in one line what was wrong, and with which photo. Returns False: it is not done."""
    sentence, *_ = str(error).splitlines() or [type(error).__name__]  # torch's messages go on for a page
    if photo is not None and photo.name not in sentence:
        sentence = f"{photo}: {sentence}"
    print(f"pem: {sentence}", file=sys.stderr)
    return False


def _thresholds(options: argparse.Namespace) -> dict[str, float]:
    """Those that the user gave, by their names in ``pem.predict``."""
    own = [name for name in signature(READINGS[options.task]).parameters if name.endswith("_threshold")]
    given = {name: value for name, value in vars(options).items() if name.endswith("_threshold") and value is not None}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name not in own:
            others = " and ".join(f"--{name.replace('_', '-')}" for name in own) or "no threshold"
            raise ValueError(f"The task {options.task} does not have {option}; it takes {others}.")
        if not 0 <= value <= 1:
            raise ValueError(f"{option} is {value:g}; it must lie between 0 and 1.")
    return given


def _write(work: Work, image: Image.Image, segmentation: Segmentation, names: bool) -> None:
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    with writing(work.overlay):
        overlay = Image.fromarray(render(image, segmentation, names=names))
        overlay.save(work.overlay, pnginfo=mark)  # of which other formats take no notice
    if work.id_map:
        with writing(work.id_map):
            Image.fromarray(id_map_png(segmentation)).save(work.id_map, pnginfo=mark)


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

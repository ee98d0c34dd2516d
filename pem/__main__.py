"""``python -m pem PHOTO``: segment one photo in a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pem.outputs import Segmentation
from pem.predict import READINGS, predict
from pem.preprocess import FORMATS, load_image
from pem.render import id_map_png, legend, panoptic_json, render
from pem.weights import load_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 when something was wrong, which is then said on stderr."""
    options = _parser().parse_args(arguments)
    try:
        _segment(options)
    except (ValueError, OSError, RuntimeError) as error:
        sentence, *_ = str(error).splitlines() or [type(error).__name__]  # torch's messages go on for a page
        print(f"pem: {sentence}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pem", description="Segment a photo.")
    parser.add_argument("photo", type=Path, metavar="PHOTO")
    parser.add_argument("--task", choices=READINGS, default="panoptic", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="the overlay; default: PHOTO-TASK.png in the current folder")
    parser.add_argument(
        "--json", type=Path, help="segments in COCO panoptic format; their id map goes beside it as NAME-ids.png"
    )
    parser.add_argument("--model", default="default", help="a preset, a weights file or a Hub id; default: %(default)s")
    parser.add_argument("--weights", help="the weights of a preset")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    return parser


def _segment(options: argparse.Namespace) -> None:
    targets = [options.out or Path(f"{options.photo.stem}-{options.task}.png")]
    if options.json:
        targets += [options.json, options.json.with_name(f"{options.json.stem}-ids.png")]
    _check_targets(options.photo, targets)

    image = load_image(options.photo)
    model = load_model(options.model, device=options.device, weights=options.weights)
    segmentation = predict(model, image, options.task)

    _print_legend(segmentation)
    Image.fromarray(render(image, segmentation, names=True)).save(targets[0])
    if options.json:
        _, json_path, id_map_path = targets
        record = panoptic_json(segmentation, model.config, options.photo.name, id_map_path.name)
        json_path.write_text(json.dumps(record, indent=1) + "\n")
        Image.fromarray(id_map_png(segmentation)).save(id_map_path)
    print(f"Wrote {', '.join(map(str, targets))}")


def _check_targets(photo: Path, targets: list[Path]) -> None:
    """Say what cannot be written before the work is done, and let no file overwrite another, least of all the photo."""
    if Image.registered_extensions().get(targets[0].suffix.lower()) not in FORMATS:
        raise ValueError(f"{targets[0]} has no ending of an image file; use .png or .jpg.")
    resolved = [path.resolve() for path in (photo, *targets)]
    for number, path in enumerate(targets, 1):
        if resolved[number] in resolved[:number]:
            raise ValueError(f"{path} would be written over another file of this run; choose another name.")
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path.name} into.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file.")


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

"""The types of command-line arguments, checked before anything is measured, and the arguments that commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from analysis.timing import PRECISIONS
from pem.config import get_config
from pem.devices import pick_device
from pem.preprocess import check_size

T = TypeVar("T")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` as the type of an argument. argparse would not show the text of a ValueError."""

    @wraps(parse)
    def argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


@checked
def parse_preset(text: str) -> str:
    """The name of a preset."""
    return get_config(text).name


@checked
def natural(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise ValueError(f"{text!r} is not a whole number of at least 1.")
    return int(text)


@checked
def json_file(text: str) -> Path:
    """The file of a result."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"{text!r} is not the name of a .json file.")
    return path


@checked
def parse_grid(text: str) -> tuple[int, int]:
    """ "16x32" is (16, 32): height, width."""
    if not re.fullmatch(r"0*[1-9]\d*x0*[1-9]\d*", text):
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH; write it like 16x32, both at least 1.")
    height, width = text.split("x")
    return int(height), int(width)


@checked
def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" is (512, 1024): height and width in pixels of an image that the network can take."""
    size = parse_grid(text)
    check_size(size)
    return size


SHARED: dict[str, dict[str, Any]] = {
    "data": {"type": Path, "required": True, "help": "folder with panoptic_SPLIT.json and the photos or their tars"},
    "size": {"type": parse_size, "metavar": "HEIGHTxWIDTH", "help": "of the image in pixels"},
    "repeats": {"type": natural, "help": "how often everything is timed, after the warm-up"},
    "precision": {"choices": PRECISIONS},
    "device": {"type": checked(pick_device)},
    "out": {"type": json_file, "help": "JSON to write; its rows go beside it as CSV and Markdown"},
}


def add_shared(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds those of SHARED that are named, with the defaults that are given."""
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default, **SHARED[name])

"""What the commands share: arguments that are checked before anything is measured, and errors of one sentence."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TypeVar

from pem.config import get_config
from pem.preprocess import check_size
from pem.weights import pick_device

T = TypeVar("T")


def title(docstring: str | None) -> str:
    """The first line. ``python -OO`` leaves no docstrings."""
    return (docstring or "").partition("\n")[0]


@contextmanager
def one_sentence() -> Iterator[None]:
    """Ends the command with what an OSError or ValueError says, without a traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` as the type of an argument: of a ValueError argparse would show nothing that it says."""

    @wraps(parse)
    def argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


parse_device = checked(pick_device)


@checked
def parse_preset(text: str) -> str:
    """The name of a preset."""
    return get_config(text).name


@checked
def natural(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise ValueError(f"{text!r} is not a whole number of at least 1.")
    return int(text)


@checked
def json_file(text: str) -> Path:
    """Where a result goes; tables are put beside it under other endings."""
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
    """ "512x1024" is (512, 1024): height and width of an image in pixels that the network can take."""
    size = parse_grid(text)
    check_size(size)
    return size

"""How the page is served: the options of ``python app.py``, each also as an environment variable ``PEM_NAME``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def whole(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``least`` to ``most``; it raises ArgumentTypeError for others."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def host_names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Option:
    """One option of the command line, as --help shows it."""

    name: str
    metavar: str
    meaning: str
    default: Any = None
    parse: Callable[[str], Any] = str

    @property
    def variable(self) -> str:
        return f"PEM_{self.name.upper().replace('-', '_')}"


OPTIONS = (
    Option("host", "ADDRESS", "the address to serve at; 0.0.0.0 is all of this machine's (127.0.0.1)"),
    Option("port", "NUMBER", "the port (the first free one from 7860)", parse=whole(1, 65_535)),
    Option("host-names", "NAME,...", "answer only at these names, for example *.example.org (any)", [], host_names),
    Option("model", "MODEL", "default, a checkpoint, or owner/repo@revision on the Hugging Face Hub", "default"),
    Option("device", "DEVICE", "auto, cpu or cuda", "auto"),
    Option("runtime", "RUNTIME", "auto (the fastest here), torch, onnxruntime or openvino", "auto"),
    Option(
        "max-side",
        "PIXELS",
        "larger photos are scaled down to this for the network (as trained)",
        parse=whole(32, 8192),
    ),
    Option("threads", "NUMBER", "threads of the CPU (all cores)", parse=whole(1, 1024)),
    Option("queue", "NUMBER", "how many visitors may wait at once", 200, whole(1, 10_000)),
    Option("log", "FILE", "append one line of JSON per request to this file; - is the standard output (none)"),
    Option("metrics-port", "NUMBER", "serve metrics for Prometheus at this port (none)", parse=whole(1, 65_535)),
)


def read_settings(arguments: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """The value of every option: the given one, or that of its environment variable, or its default.

    Ends the process with a sentence for an impossible value.
    """
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="Serves PEM Studio.",
        epilog="Each option is also an environment variable, such as PEM_MAX_SIDE; one that is empty is not set.",
    )
    for option in OPTIONS:
        spelling, kind = f"--{option.name}", {"type": option.parse, "default": option.default}
        parser.add_argument(spelling, metavar=option.metavar, help=option.meaning, **kind)
    for option in OPTIONS:
        if told := environment.get(option.variable):
            try:
                parser.set_defaults(**{option.name.replace("-", "_"): option.parse(told)})
            except argparse.ArgumentTypeError as error:
                parser.error(f"{option.variable}: {error}")
    return parser.parse_args(arguments)

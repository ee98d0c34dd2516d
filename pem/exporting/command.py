"""The command ``python -m pem.export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pem.exporting import FORMATS, PRECISIONS, export
from pem.load import is_export, load_model
from pem.terminal import escape_missing_letters


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, 2 when something was wrong, which is then said on stderr."""
    description = "Write a PEM into one file that runs without PyTorch."
    parser = argparse.ArgumentParser(prog="python -m pem.export", description=description)
    add = parser.add_argument
    add("--model", default="default", help="a preset, a weights file or a Hub id; default: %(default)s")
    add("--weights", help="the weights of a preset")
    add("--to", choices=FORMATS, help="the format, which the ending of FILE says, too: .onnx, .xml or .pt2")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the weights; default: %(default)s")
    add("--trace", action="store_true", help="the file also says which prototypes each layer chose")
    add("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    escape_missing_letters()
    ending = FORMATS.get(options.to, options.out.suffix.lower())
    if options.out.suffix.lower() != ending:
        parser.error(f"a file of {options.to} ends in {ending}; write --out {options.out.stem}{ending}.")
    try:
        if is_export(options.model):
            raise ValueError(f"{options.model} is exported already; give the weights that it was made from.")
        model = load_model(options.model, "cpu", options.weights, fast=False)
        print("Exporting, which takes a minute...", flush=True)
        for comparison in export(model, options.out, options.precision, options.trace):
            print(comparison)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"pem.export: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 0

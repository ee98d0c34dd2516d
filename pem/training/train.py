"""Train a PEM: ``python -m pem.training.train --config default --data FOLDER --out FOLDER``.

One process on CPU or GPU; with ``torchrun --nproc_per_node=N -m -- pem.training.train ...`` one per GPU. Run the same
command again and it goes on from the last checkpoint to the state that an uninterrupted run would have had: the photos
and all random numbers of a step depend on the seed and the step alone. SIGINT and SIGTERM stop it after a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, get_origin, get_type_hints

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see pem/cores.py

import torch
from pydantic import TypeAdapter, ValidationError

from pem.config import PEMConfig, get_config
from pem.devices import pick_device, use_given_cores
from pem.errors import is_out_of_memory
from pem.terminal import INTERRUPTED, escape_missing_letters, lasting_output
from pem.training.config import TrainingConfig, get_training_config
from pem.training.folder import CHECKPOINT, MODEL
from pem.training.processes import process_group
from pem.training.run import run
from pem.training.start import Start

# The type of every field that --set knows.
_FIELDS: dict[str, Any] = get_type_hints(PEMConfig) | {
    f"training.{name}": kind for name, kind in get_type_hints(TrainingConfig).items()
}
# Options that are short for --set: the field and what it means.
_SHORT = {
    "--name": ("name", "of the model, otherwise that of the --out folder"),
    "--attention": ("attention", "prototype or masked"),
    "--num-queries": ("num_queries", "if a --start has others, all are new"),
    "--iterations": (
        "training.iterations",
        "more than before extend a run, and its learning rate rises to what the longer schedule has at that step",
    ),
    "--batch-size": ("training.batch_size", "of all processes together"),
    "--lr": ("training.base_lr", "base learning rate"),
    "--backbone-lr-factor": ("training.backbone_lr_factor", "0 freezes the backbone"),
    "--copy-paste": ("training.copy_paste", "how often things are pasted in"),
}


def parse_arguments() -> argparse.Namespace:
    # Not from __doc__, which python -OO takes away.
    parser = argparse.ArgumentParser(
        prog="python -m pem.training.train",
        description="Train a PEM, or go on with it.",
        epilog=f"The fields of --set: {', '.join(_FIELDS)}. pem/config.py and pem/training/config.py explain them.",
    )
    parser.add_argument("--config", default="default", help="preset name (default: %(default)s)")
    parser.add_argument("--data", required=True, type=Path, help="folder with panoptic_train.json and its photos")
    parser.add_argument("--out", required=True, type=Path, help="folder for the checkpoint, the log and the weights")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="other values than the preset's, such as num_queries=50 training.base_lr=2e-4 training.crop_px=128,128 "
        "training.pad_to_crop=true; the fields are listed below",
    )
    for option, (field, meaning) in _SHORT.items():
        parser.add_argument(
            option,
            dest="set",
            action="append",
            type=f"{field}={{}}".format,
            metavar="VALUE",
            help=f"{meaning} (short for --set {field}=VALUE)",
        )
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="crop in pixels, instead of the preset's")
    parser.add_argument(
        "--short-sides",
        type=int,
        nargs="+",
        help="of the scale jitter, instead of the preset's; the median becomes the size at which the model is run",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast, not even where the device has it")
    parser.add_argument(
        "--start", help="start from a whole model: what pem.load_model takes, or a published checkpoint of the preset"
    )
    parser.add_argument("--backbone-weights", type=Path, help="a file of ImageNet weights, where no library has them")
    parser.add_argument("--random-backbone", action="store_true", help="do not start from ImageNet weights")
    parser.add_argument("--workers", type=int, default=1, help="processes that load photos (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of this process")
    parser.add_argument(
        "--seed", type=int, default=0, help="of order and crops; take another one to go on from an older run's weights"
    )
    parser.add_argument(
        "--save-minutes",
        type=float,
        default=5.0,
        help="between checkpoints (default: %(default)s); Ctrl-C, SIGTERM and a closed terminal save one, too",
    )
    parser.add_argument("--anew", action="store_true", help="begin anew: replace the run that is in --out")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what no training can have; the configs check the rest."""
    for option, least in (("threads", 1), ("workers", 0), ("save_minutes", 0), ("seed", 0)):
        value = getattr(arguments, option)
        if value is not None and not value >= least:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; it must be at least {least}.")
    if arguments.seed >= 2**32:
        raise ValueError(f"--seed is {arguments.seed}; it must be less than 2**32.")
    if arguments.backbone_weights is not None and (arguments.start or arguments.random_backbone):
        other = "--start" if arguments.start else "--random-backbone"
        raise ValueError(f"--backbone-weights and {other} exclude each other; give one of them.")
    if arguments.start == "":
        raise ValueError("--start is empty; name a model, or leave the option out.")
    if arguments.data.is_file():
        raise ValueError(f"{arguments.data} is a file; --data is the folder with panoptic_train.json.")
    if arguments.out.is_file():
        raise ValueError(f"{arguments.out} is a file; --out is a folder.")
    for result in (arguments.out / name for name in (CHECKPOINT, MODEL)):
        if result.is_dir():
            raise ValueError(f"{result} is a folder, where the run keeps a file; give another --out.")
        if arguments.anew and arguments.start and Path(arguments.start).resolve() == result.resolve():
            raise ValueError(f"--anew would replace {result}, which is the --start; give another --out.")


def configure(arguments: argparse.Namespace) -> tuple[PEMConfig, TrainingConfig]:
    """The preset with all that the command changes. Raises ValueError for an unknown field or a wrong value."""
    config, training = get_config(arguments.config), get_training_config(arguments.config)
    # The name of a folder may have signs that are no text.
    folder = "".join(filter(str.isprintable, arguments.out.resolve().name)).strip()
    values: dict[str, Any] = {"name": folder or config.name}
    if arguments.short_sides:
        side = sorted(arguments.short_sides)[len(arguments.short_sides) // 2]
        ratio = config.max_long_side_px / config.short_side_px
        longest = round(max(arguments.short_sides) * ratio)
        values |= {
            "short_side_px": side,  # a model is run at a size that it was trained at
            "max_long_side_px": round(side * ratio),
            "training.short_sides_px": tuple(arguments.short_sides),
            "training.max_long_side_px": max(training.max_long_side_px, longest),
        }
    if arguments.crop:
        values["training.crop_px"] = tuple(arguments.crop)
    for assignment in arguments.set:
        field, equals, text = assignment.partition("=")
        if not equals or field not in _FIELDS:
            raise ValueError(f"--set {assignment} cannot be used; give FIELD=VALUE with a field that --help lists.")
        values[field] = parse_value(text, _FIELDS[field])
    if not (values["name"].strip() and values["name"].isprintable()):
        raise ValueError(f"--name is {values['name']!r}; give the model a name of one line.")
    lr = values.get("training.base_lr")
    if isinstance(lr, float) and not 0 < lr < math.inf:
        raise ValueError(f"--lr is {lr}; it must be a number above 0.")
    of_training = {name for name in values if name.startswith("training.")}
    return (
        dataclasses.replace(config, **{name: values[name] for name in values.keys() - of_training}),
        dataclasses.replace(training, **{name.removeprefix("training."): values[name] for name in of_training}),
    )


def parse_value(text: str, kind: Any) -> Any:
    """The text as a value of that type. Any other text stays as it is, and the config says what is wrong with it."""
    try:
        return TypeAdapter(kind).validate_python(text.split(",") if get_origin(kind) is tuple else text)
    except ValidationError:
        return text


def main() -> None:
    arguments = parse_arguments()
    escape_missing_letters()
    use_given_cores()
    try:
        check(arguments)
        config, training = configure(arguments)
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        start = Start(arguments.start, arguments.config, arguments.backbone_weights, arguments.random_backbone)
        options = {name: getattr(arguments, name) for name in ("seed", "float32", "workers", "save_minutes", "anew")}
        with lasting_output(), process_group(pick_device(arguments.device)) as device:
            run(config, training, start, arguments.data, arguments.out, device, **options)
    except KeyboardInterrupt:  # there is no step yet to go on from
        sys.exit(INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit("There is not enough memory for this training; use a smaller --batch-size, --crop or --num-queries.")
    except (OSError, ValueError, FloatingPointError) as error:
        # A process that loads photos sends its traceback; the last line is the error's type and its sentence.
        sys.exit(re.sub(r"^[\w.]*Error: ", "", str(error).strip().splitlines()[-1]))


if __name__ == "__main__":
    main()

"""Train a PEM: ``python -m pem.training.train --config default --data FOLDER --out FOLDER``.

One process on CPU or GPU; with ``torchrun --nproc_per_node=N -m -- pem.training.train ...`` one per GPU. Run the same
command again and it goes on from the last checkpoint to the state that an uninterrupted run would have had: the photos
and all random numbers of a step depend on the seed and the step alone. SIGINT and SIGTERM stop it after a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import safetensors
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pem.config import MOST_QUERIES, PEMConfig, TrainingConfig, get_config
from pem.layers import first_line, has_bfloat16, is_out_of_memory
from pem.model import PEM
from pem.terminal import INTERRUPTED, escape_missing_letters, lasting_output
from pem.training.data import PanopticDataset, collate, open_split, with_classes_of
from pem.training.processes import (
    largest,
    let_loaders_end_quietly,
    noted_signals,
    process_group,
    rank_and_world_size,
    start_loader,
)
from pem.training.sampler import RepeatableSampler, SeededDataset
from pem.training.start import prepare
from pem.training.trainer import Trainer, learning_rate
from pem.weights import pick_device, save_weights

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_log = logging.getLogger("pem")
RESULTS = ("checkpoint.pt", "model.safetensors")  # of a run, in its folder


def train(
    trainer: Trainer,
    dataset: PanopticDataset,
    out: Path,
    workers: int = 1,
    log_every: int = 20,
    save_minutes: float = 5.0,
) -> None:
    """Runs to the last iteration; writes log.jsonl, checkpoint.pt and at the end model.safetensors into ``out``.

    Raises Stopped when a signal ended it before.
    """
    config, (rank, _) = trainer.config, rank_and_world_size()
    if rank == 0:
        forget_after(trainer.step, out / "log.jsonl")
        if trainer.step == 0:
            for name in RESULTS:  # of the run that this one replaces
                (out / name).unlink(missing_ok=True)
    loader = DataLoader(
        SeededDataset(dataset),
        batch_sampler=RepeatableSampler(dataset, config.batch_size, trainer.step, config.iterations, trainer.seed),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_loader,
    )
    bar = tqdm(total=config.iterations, initial=trainer.step, unit="it", disable=rank > 0, dynamic_ncols=True)
    log, last_save, stopped_by = Log(out / "log.jsonl", trainer), time.monotonic(), 0
    with noted_signals() as noted:
        for images, targets in batches_of(loader, trainer, out / "checkpoint.pt"):
            log.add(trainer.train_step(images, targets))
            bar.update()
            done = trainer.step == config.iterations
            # All processes stop after the same step, whichever of them got the signal.
            stopped_by = 0 if done else largest(noted[0] if noted else 0, trainer.device)
            if rank == 0 and (done or trainer.step % log_every == 0):
                bar.clear()  # what is said has a line of its own
                bar.set_postfix_str(log.write())
            if rank == 0 and (done or stopped_by or time.monotonic() - last_save > save_minutes * 60):
                trainer.save(out / "checkpoint.pt")
                last_save = time.monotonic()
            if stopped_by:
                largest(0, trainer.device)  # wait for the checkpoint: torchrun ends all when one has ended
                break
    bar.close()
    if stopped_by:
        raise Stopped(stopped_by)
    if rank == 0:
        model = trainer.best_model
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise FloatingPointError("The last step made weights that are not finite; use a lower learning rate.")
        model.config = trainer.dated_config
        save_weights(model, out / "model.safetensors", {"step": str(trainer.step)})


def batches_of(loader: DataLoader, trainer: Trainer, checkpoint: Path) -> Iterator[tuple[Tensor, list]]:
    """The batches. Saves the last step when the next batch cannot be had, as of a file that is damaged.

    Raises OSError when the system has ended a process that loads photos.
    """
    batches = iter(loader)
    if loader.num_workers:
        let_loaders_end_quietly()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            saved = trainer.step > 0 and rank_and_world_size()[0] == 0
            if saved:
                trainer.save(checkpoint)
            if not is_of_a_lost_loader(error):
                raise
            raise OSError(
                "A process that loads photos was ended from outside, mostly for lack of memory; use fewer --workers, or"
                f" --workers 0. {'The same command goes on.' if saved else ''}".strip()
            ) from error
        yield batch


def is_of_a_lost_loader(error: Exception) -> bool:
    """Torch says so itself, unless it was just taking over a batch: then a pipe or a socket breaks off."""
    if "Caught " in str(error):  # raised in a loader, which lives
        return False
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    nameless = isinstance(error, FileNotFoundError) and error.filename is None  # a socket that went with its process
    return nameless or isinstance(error, (ConnectionError, EOFError))


def check_shared_memory(config: TrainingConfig, workers: int, path: Path = Path("/dev/shm")) -> None:
    """Raises ValueError where the batches that wait do not fit into memory that processes share: torch would hang."""
    height, width = config.crop_px
    batches = 2 * workers  # as many as torch loads ahead
    need = batches * config.batch_size // rank_and_world_size()[1] * height * width * (3 + 2)  # RGB, and an id in int16
    if workers and path.is_dir() and (free := shutil.disk_usage(path).free) < need:
        raise ValueError(
            f"{path} has {free / 2**20:.0f} MiB for photos that wait, and they need {need / 2**20:.0f}; use --workers "
            "0 or a smaller --batch-size, or enlarge it (docker run --shm-size)."
        )


class Stopped(SystemExit):
    """A signal stopped the training, and a checkpoint was saved. Its code is what a shell gives for that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Log:
    """log.jsonl: the mean losses of an interval of steps, its speed, and how long all the rest will take."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        self.path, self.trainer = path, trainer
        self.first_step = self.last_step = trainer.step
        self.started = self.last_time = time.monotonic()
        self.sums: dict[str, float] = {}
        self.said_nothing_learned = False

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self) -> str:
        """Ends an interval and adds its line; returns the most important of it."""
        config, step, now = self.trainer.config, self.trainer.step, time.monotonic()
        if self.sums["mask"] == self.sums["dice"] == 0 and not self.said_nothing_learned:
            self.said_nothing_learned = True
            _log.warning(
                f"No segment was learned in steps {self.last_step + 1} to {step}: the losses of all masks were 0; look "
                "whether the labels fit the photos."
            )
        count = step - self.last_step
        memory = peak_memory_mib(self.trainer.device)
        entry = {
            "step": step,
            **{name: round(value / count, 4) for name, value in self.sums.items()},
            "lr": learning_rate(step - 1, config),
            "photos_per_s": round(count * config.batch_size / (now - self.last_time), 2),
            "eta_s": round((now - self.started) / (step - self.first_step) * (config.iterations - step)),
            **({} if memory is None else {"memory_mib": round(memory)}),
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror}); make room for it.") from error
        self.last_time, self.last_step, self.sums = now, step, {}
        loss = sum(entry[name] for name in ("class", "mask", "dice"))
        in_memory = "" if memory is None else f", {memory:.0f} MiB"
        return f"loss {loss:.2f}, {entry['photos_per_s']} photos/s{in_memory}"


def forget_after(step: int, log: Path) -> None:
    """Takes out what a run that was killed had logged after its last checkpoint: those steps come again."""
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
        if kept != lines:
            log.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """Of a line that is damaged, as by a power cut, infinity: it is taken out as well."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory that the process had, on a GPU that of the device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS gives bytes, others KiB


def parse_arguments() -> argparse.Namespace:
    # Not from __doc__, which python -OO takes away.
    parser = argparse.ArgumentParser(prog="python -m pem.training.train", description="Train a PEM, or go on with it.")
    parser.add_argument("--config", default="default", help="preset name (default: %(default)s)")
    parser.add_argument("--data", required=True, type=Path, help="folder with panoptic_train.json and its photos")
    parser.add_argument("--out", required=True, type=Path, help="folder for the checkpoint, the log and the weights")
    parser.add_argument("--name", help="of the model (default: the name of the --out folder)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--iterations",
        type=int,
        help="instead of the preset's; more than before extend a run, and its learning rate rises to what the longer "
        "schedule has at that step",
    )
    parser.add_argument("--batch-size", type=int, help="of all processes together, instead of the preset's")
    parser.add_argument("--lr", type=float, help="base learning rate, instead of the preset's")
    parser.add_argument("--backbone-lr-factor", type=float, help="0 freezes the backbone; instead of the preset's")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="crop in pixels, instead of the preset's")
    parser.add_argument(
        "--short-sides",
        type=int,
        nargs="+",
        help="of the scale jitter, instead of the preset's; the median becomes the size at which the model is run",
    )
    parser.add_argument("--copy-paste", type=float, help="how often things are pasted in, instead of the preset's")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast, not even where the device has it")
    parser.add_argument("--attention", choices=("prototype", "masked"), help="instead of the preset's")
    parser.add_argument(
        "--start", help="start from a whole model: what pem.load_model takes, or a published checkpoint of the preset"
    )
    parser.add_argument("--num-queries", type=int, help="instead of the preset's; if a --start has others, all are new")
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
    """Raises ValueError for what no training can have; the config checks the rest."""
    for option, least in (("threads", 1), ("workers", 0), ("save_minutes", 0), ("seed", 0)):
        value = getattr(arguments, option)
        if value is not None and not value >= least:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; it must be at least {least}.")
    if arguments.seed >= 2**32:
        raise ValueError(f"--seed is {arguments.seed}; it must be less than 2**32.")
    if arguments.lr is not None and not 0 < arguments.lr < math.inf:
        raise ValueError(f"--lr is {arguments.lr}; it must be a number above 0.")
    if arguments.name is not None and not (arguments.name.strip() and arguments.name.isprintable()):
        raise ValueError(f"--name is {arguments.name!r}; give the model a name of one line.")
    if arguments.backbone_weights is not None and (arguments.start or arguments.random_backbone):
        other = "--start" if arguments.start else "--random-backbone"
        raise ValueError(f"--backbone-weights and {other} exclude each other; give one of them.")
    if arguments.start == "":
        raise ValueError("--start is empty; name a model, or leave the option out.")
    if arguments.data.is_file():
        raise ValueError(f"{arguments.data} is a file; --data is the folder with panoptic_train.json.")
    if arguments.out.is_file():
        raise ValueError(f"{arguments.out} is a file; --out is a folder.")
    for result in (arguments.out / name for name in RESULTS):
        if result.is_dir():
            raise ValueError(f"{result} is a folder, where the run keeps a file; give another --out.")
        if arguments.anew and arguments.start and Path(arguments.start).resolve() == result.resolve():
            raise ValueError(f"--anew would replace {result}, which is the --start; give another --out.")


def configure(arguments: argparse.Namespace) -> PEMConfig:
    config = get_config(arguments.config)
    changes = {
        "iterations": arguments.iterations,
        "batch_size": arguments.batch_size,
        "base_lr": arguments.lr,
        "backbone_lr_factor": arguments.backbone_lr_factor,
        "crop_px": arguments.crop and tuple(arguments.crop),
        "copy_paste": arguments.copy_paste,
        "short_sides_px": arguments.short_sides and tuple(arguments.short_sides),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if arguments.short_sides:  # a model is run at a size that it was trained at
        side = sorted(arguments.short_sides)[len(arguments.short_sides) // 2]
        ratio = config.max_long_side_px / config.short_side_px
        config = dataclasses.replace(config, short_side_px=side, max_long_side_px=round(side * ratio))
        longest = round(max(arguments.short_sides) * ratio)
        changes["max_long_side_px"] = max(config.training.max_long_side_px, longest)
    return dataclasses.replace(
        config,
        # The name of a folder need not be text.
        name=arguments.name or "".join(filter(str.isprintable, arguments.out.resolve().name)) or config.name,
        attention=arguments.attention or config.attention,
        num_queries=config.num_queries if arguments.num_queries is None else arguments.num_queries,
        training=dataclasses.replace(config.training, **changes),
    )


def run(arguments: argparse.Namespace, device: torch.device) -> None:
    """The command, in a process that has joined the others. Raises OSError, ValueError, FloatingPointError, Stopped."""
    rank, _ = rank_and_world_size()
    torch.manual_seed(arguments.seed)
    config = with_classes_of(configure(arguments), arguments.data)
    checkpoint = arguments.out / "checkpoint.pt"
    resumes = checkpoint.is_file() and not arguments.anew
    if not resumes:
        check_writable(arguments.out)
        if (model_file := arguments.out / "model.safetensors").exists() and not arguments.anew:
            raise ValueError(
                f"{model_file} has no checkpoint beside it to go on from; give another --out, or replace it by --anew."
            )
    check_shared_memory(config.training, arguments.workers)
    dataset = open_split(arguments.data, "train", config)
    if rank == 0 and dataset.max_segments > config.num_queries:
        _log.warning(
            f"A photo has {dataset.max_segments} segments and the model {config.num_queries} queries, so it learns no "
            f"more of them; --num-queries {min(dataset.max_segments, MOST_QUERIES)} is "
            f"{'enough for all' if dataset.max_segments <= MOST_QUERIES else 'the most'}."
        )
    model = PEM(config)
    origin = {"labels": dataset.fingerprint, "start": prepare(model, arguments, resumes)}
    autocast = has_bfloat16(device) and not arguments.float32
    trainer = Trainer(model, device, autocast, arguments.seed, origin)
    if resumes:
        trainer.load(checkpoint)
        if trainer.step == config.training.iterations and is_model_of(
            trainer.step, arguments.out / "model.safetensors"
        ):
            if rank == 0:
                print(
                    f"{arguments.out} is complete with {trainer.step} iterations, so nothing was done; extend it with "
                    "more --iterations, or begin anew with --anew or another --out."
                )
            return
        check_writable(arguments.out)
    try:
        with claimed(arguments.out) if rank == 0 else nullcontext():
            if rank == 0 and checkpoint.is_file() and not (resumes or arguments.anew):
                raise ValueError(
                    f"Another training has ended in {arguments.out} meanwhile; run the command again to go on with it, "
                    "or give another --out."
                )
            train(trainer, dataset, arguments.out, arguments.workers, save_minutes=arguments.save_minutes)
    except Stopped:
        if rank == 0:
            command = "the same command without --anew" if arguments.anew else "the same command"
            print(f"Stopped after step {trainer.step} of {config.training.iterations}; {command} goes on.")
        raise


def check_writable(folder: Path) -> None:
    """Makes the folder if there is none. Raises ValueError when no file can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}); give another folder as --out.") from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder. Raises ValueError when one is there."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"Another training runs in {folder}; wait for its end, or give another --out.") from None
    except (OSError, NotImplementedError) as error:  # as of some network file systems
        _log.warning(f"{folder} cannot be locked ({first_line(error)}); start no second training in it.")
    try:
        yield
    finally:
        lock.release()


def is_model_of(step: int, path: Path) -> bool:
    """Whether the file is the model after that step; older files do not tell."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("step", str(step)) == str(step)
    except (OSError, safetensors.SafetensorError):
        return False


def main() -> None:
    arguments = parse_arguments()
    escape_missing_letters()
    try:
        check(arguments)
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        with lasting_output(), process_group(pick_device(arguments.device)) as device:
            run(arguments, device)
    except KeyboardInterrupt:  # there is no step yet to go on from
        sys.exit(INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit("There is not enough memory for this training; use a smaller --batch-size, --crop or --num-queries.")
    except (OSError, ValueError, FloatingPointError) as error:
        # From a process that loads photos comes its traceback, at whose end are the error's type and its sentence.
        sys.exit(re.sub(r"^[\w.]*Error: ", "", str(error).strip().splitlines()[-1]))


if __name__ == "__main__":
    main()

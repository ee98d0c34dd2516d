"""The training loop: batches in, steps and checkpoints out, until the last step or a signal."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pem.training.config import TrainingConfig
from pem.training.data import PanopticDataset, collate
from pem.training.folder import CHECKPOINT, LOG, MODEL
from pem.training.log import Log, forget_after
from pem.training.processes import (
    largest,
    let_loaders_end_quietly,
    noted_signals,
    rank_and_world_size,
    start_loader,
)
from pem.training.sampler import RepeatableSampler, SeededDataset
from pem.training.trainer import Trainer
from pem.weights import save_weights


class Stopped(SystemExit):
    """A signal stopped the training, and a checkpoint was saved. The exit code is a shell's for that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


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
        forget_after(trainer.step, out / LOG)
        if trainer.step == 0:
            for name in (CHECKPOINT, MODEL):  # of the run that this one replaces
                (out / name).unlink(missing_ok=True)
    loader = DataLoader(
        SeededDataset(dataset),
        batch_sampler=RepeatableSampler(dataset, config.batch_size, trainer.step, config.iterations, trainer.seed),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_loader,
    )
    bar = tqdm(total=config.iterations, initial=trainer.step, unit="it", disable=rank > 0, dynamic_ncols=True)
    log, last_save, stopped_by = Log(out / LOG, trainer), time.monotonic(), 0
    with noted_signals() as noted:
        for images, targets in batches_of(loader, trainer, out / CHECKPOINT):
            log.add(trainer.train_step(images, targets))
            bar.update()
            done = trainer.step == config.iterations
            # All processes stop after the same step, whichever of them got the signal.
            stopped_by = 0 if done else largest(noted[0] if noted else 0, trainer.device)
            if rank == 0 and (done or trainer.step % log_every == 0):
                bar.clear()  # what is said has a line of its own
                bar.set_postfix_str(log.write())
            if rank == 0 and (done or stopped_by or time.monotonic() - last_save > save_minutes * 60):
                trainer.save(out / CHECKPOINT)
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
        about = {"step": str(trainer.step), "training": json.dumps(dataclasses.asdict(config))}
        save_weights(model, out / MODEL, about)


def batches_of(loader: DataLoader, trainer: Trainer, checkpoint: Path) -> Iterator[tuple[Tensor, list]]:
    """The batches. Saves a checkpoint when the next batch fails, for example because of a damaged file.

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
    """Whether a process that loads photos is gone. Torch says so, or a pipe or socket breaks while it takes a batch."""
    if "Caught " in str(error):  # raised in a loader, which lives
        return False
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    nameless = isinstance(error, FileNotFoundError) and error.filename is None  # a socket of a process that is gone
    return nameless or isinstance(error, (ConnectionError, EOFError))


def check_shared_memory(config: TrainingConfig, workers: int, path: Path = Path("/dev/shm")) -> None:
    """Raises ValueError if the batches loaded ahead do not fit into shared memory, because torch would hang."""
    height, width = config.crop_px
    batches = 2 * workers  # as many as torch loads ahead
    need = batches * config.batch_size // rank_and_world_size()[1] * height * width * (3 + 2)  # RGB, and an id in int16
    if workers and path.is_dir() and (free := shutil.disk_usage(path).free) < need:
        raise ValueError(
            f"{path} has {free / 2**20:.0f} MiB for photos that wait, and they need {need / 2**20:.0f}; use --workers "
            "0 or a smaller --batch-size, or enlarge it (docker run --shm-size)."
        )

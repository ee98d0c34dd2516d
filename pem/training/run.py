"""One run from its folder and data to the trained model: begun, gone on with, or complete already."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pem.config import MOST_QUERIES, PEMConfig
from pem.devices import has_bfloat16
from pem.model import PEM
from pem.training.coco import with_classes_of
from pem.training.config import TrainingConfig
from pem.training.data import PanopticDataset, collate, open_split
from pem.training.folder import CHECKPOINT, LOG, MODEL, check_writable, claimed, is_model_of
from pem.training.log import Log, forget_after
from pem.training.processes import largest, let_loaders_end_quietly, noted_signals, rank_and_world_size, start_loader
from pem.training.sampler import RepeatableSampler, SeededDataset
from pem.training.start import Start, prepare, raise_prototypes
from pem.training.trainer import Trainer
from pem.weights import save_weights

_log = logging.getLogger("pem")


class Stopped(SystemExit):
    """A signal stopped the training, and a checkpoint was saved. The exit code is a shell's for that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def run(
    config: PEMConfig,
    training: TrainingConfig,
    start: Start,
    data: Path,
    out: Path,
    device: torch.device,
    seed: int = 0,
    float32: bool = False,
    workers: int = 1,
    save_minutes: float = 5.0,
    anew: bool = False,
) -> None:
    """Trains a network on the classes of a data folder, from the checkpoint in ``out`` if there is one.

    ``anew`` replaces that run. ``float32`` forbids bfloat16, ``workers`` processes load photos, and a checkpoint is
    saved every ``save_minutes``. Every process of a distributed training calls it after it has joined the others.
    Raises OSError, ValueError and FloatingPointError, each with one sentence that says what to do, and Stopped.
    """
    rank, _ = rank_and_world_size()
    torch.manual_seed(seed)
    config = with_classes_of(config, data)
    checkpoint, model_file = out / CHECKPOINT, out / MODEL
    resumes = checkpoint.is_file() and not anew
    if not resumes:
        check_writable(out)
        if model_file.exists() and not anew:
            raise ValueError(
                f"{model_file} has no checkpoint beside it to go on from; give another --out, or replace it by --anew."
            )
    check_shared_memory(training, workers)
    dataset = open_split(data, "train", config, training)
    if rank == 0 and dataset.max_segments > config.num_queries:
        _log.warning(
            f"A photo has {dataset.max_segments} segments and the model {config.num_queries} queries, so it learns no "
            f"more of them; --num-queries {min(dataset.max_segments, MOST_QUERIES)} is "
            f"{'enough for all' if dataset.max_segments <= MOST_QUERIES else 'the most'}."
        )
    model = PEM(config)
    raise_prototypes(model, training.prototype_gain)
    origin = {"labels": dataset.fingerprint, "start": prepare(model, start, resumes)}
    trainer = Trainer(model, training, device, has_bfloat16(device) and not float32, seed, origin)
    if resumes:
        trainer.load(checkpoint)
        if trainer.step == training.iterations and is_model_of(trainer.step, model_file):
            if rank == 0:
                print(
                    f"{out} is complete with {trainer.step} iterations, so nothing was done; extend it with "
                    "more --iterations, or begin anew with --anew or another --out."
                )
            return
        check_writable(out)
    try:
        with claimed(out) if rank == 0 else nullcontext():
            if rank == 0 and checkpoint.is_file() and not (resumes or anew):
                raise ValueError(
                    f"Another training has ended in {out} meanwhile; run the command again to go on with it, "
                    "or give another --out."
                )
            train(trainer, dataset, out, workers, save_minutes=save_minutes)
    except Stopped:
        if rank == 0:
            command = "the same command without --anew" if anew else "the same command"
            print(f"Stopped after step {trainer.step} of {training.iterations}; {command} goes on.")
        raise


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

"""One run from its folder and data to the trained model: begun, gone on with, or complete already."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import torch

from pem.config import MOST_QUERIES, PEMConfig
from pem.layers import has_bfloat16
from pem.model import PEM
from pem.training.coco import with_classes_of
from pem.training.config import TrainingConfig
from pem.training.data import open_split
from pem.training.folder import CHECKPOINT, MODEL, check_writable, claimed, is_model_of
from pem.training.loop import Stopped, check_shared_memory, train
from pem.training.processes import rank_and_world_size
from pem.training.start import Start, prepare, raise_prototypes
from pem.training.trainer import Trainer

_log = logging.getLogger("pem")


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

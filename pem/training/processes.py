"""Several processes that train one model, and signals that end them: all after the same step, and none is left."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import distributed

# Linux sends this process the signal when its parent ends. On other systems the function does nothing.
from torch.multiprocessing import _prctl_pr_set_pdeathsig as end_with_parent  # type: ignore[attr-defined]

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
ENDING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
# Tells a process that torchrun has died. Linux may send it twice, so it must not be one of ENDING, whose second signal
# ends the process.
PARENT_DIED = signal.SIGUSR1 if sys.platform == "linux" else None


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did; yields the device of this process.

    Keep a model that is wrapped for several processes in a function that the block calls, so that it is freed when the
    block ends. If it is freed after the group, the process may hang for ever (gloo, torch 2.11): its destructor holds
    the interpreter's lock and waits for a thread that may need this lock.
    """
    if "RANK" not in os.environ:
        with _locals_freed():
            yield device
        return
    if PARENT_DIED is not None:
        end_with_parent(PARENT_DIED)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with _locals_freed():
            yield torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device
    finally:
        distributed.destroy_process_group()


@contextmanager
def _locals_freed() -> Iterator[None]:
    """Frees what an error holds: the wrapped model, and the data loader, whose processes end with it.

    These ignore the signal with which ``multiprocessing`` ends processes, so it would wait for them for ever.
    """
    try:
        yield
    except BaseException as error:
        forget_locals_of(error)
        raise
    finally:
        gc.collect()  # frees cycles, too


def forget_locals_of(error: BaseException | None) -> None:
    """Frees the local variables of all functions that an error, or one of its causes, has ended."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def rank_and_world_size() -> tuple[int, int]:
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def largest(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes give; each waits for all others."""
    if not distributed.is_initialized():
        return number
    numbers = torch.tensor(number, device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Notes the signals that end a process in the list, instead of being ended; the second ends the process at once.

    These are the signals of Ctrl-C, of ``kill`` and, except under ``nohup``, of a closed terminal. The death of
    torchrun is noted as SIGTERM.
    """
    noted: list[int] = []
    numbers = [number for number in ENDING if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN]

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    def note_death(number: int, frame: FrameType | None) -> None:
        noted.append(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield noted
        return
    before = {number: signal.signal(number, note) for number in numbers}
    if PARENT_DIED is not None:
        before[PARENT_DIED] = signal.signal(PARENT_DIED, note_death)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def start_loader(worker_id: int) -> None:
    """Prepares a process that loads photos: it ignores signals and works until the trainer ends."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)


def let_loaders_end_quietly() -> None:
    """Removes torch's handler, which raises in any line. Torch still notices a death when it waits for a batch."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

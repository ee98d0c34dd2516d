"""The folder of a run: its files, whether it can be written to, and a lock for one run at a time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
from filelock import FileLock, Timeout

from pem.errors import first_line

_log = logging.getLogger("pem")
CHECKPOINT, MODEL, LOG = "checkpoint.pt", "model.safetensors", "log.jsonl"


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
    """Whether the file is the model after that step. Older files do not tell and count as such."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("step", str(step)) == str(step)
    except (OSError, safetensors.SafetensorError):
        return False

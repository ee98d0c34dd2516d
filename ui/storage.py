"""Where this server keeps what visitors send and take away: one private folder that goes with the server.

Nothing in it grows older than an hour. Of a server that was killed the next one on the machine removes what it left.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

PREFIX = "pem-studio-"
SWEEP_SECONDS = 300
KEEP_SECONDS = 3600 - SWEEP_SECONDS - 60  # so that all is gone after an hour
QUOTA_BYTES = 2 * 2**30
LARGEST_DOWNLOAD_BYTES = 2**28  # more than the largest photo as PNGs
_log = logging.getLogger("pem")


class _File(NamedTuple):
    path: Path
    stat: os.stat_result


class Storage:
    """The folder, which is made at once. It is this server's as long as this process holds the lock beside it.

    ``kept`` names files in it that the page itself needs; ``sweep_with`` is called whenever the folder is swept.
    """

    def __init__(self, parent: Path | None = None, quota_bytes: int = QUOTA_BYTES) -> None:
        parent = parent or Path(tempfile.gettempdir())
        remove_abandoned(parent)
        self.quota_bytes = quota_bytes
        self.kept: Callable[[], Collection[str]] = tuple
        self.sweep_with: list[Callable[[], None]] = []
        self.root = parent.resolve() / (PREFIX + secrets.token_urlsafe(12))
        self._lock = FileLock(lock_of(self.root))
        with suppress(OSError, NotImplementedError):  # where files cannot be locked, nobody takes it for abandoned
            self._lock.acquire(blocking=False)
        self._stopped = threading.Event()
        for folder in (self.root, self.uploads, self.downloads, self.results):
            folder.mkdir(mode=0o700)
        atexit.register(self.remove)

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @property
    def results(self) -> Path:
        """What the network said of photos."""
        return self.root / "results"

    def new_download(self) -> Path:
        """A new folder for the files of one download, for which there is room."""
        self.make_room(LARGEST_DOWNLOAD_BYTES)
        return new_folder(self.downloads)

    def remove(self) -> None:
        """Everything; more than once does no harm."""
        self._stopped.set()
        shutil.rmtree(self.root, ignore_errors=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def make_room(self, num_bytes: int) -> None:
        """Removes the oldest files until so many bytes more stay within the quota, or none is left to remove."""
        files = sorted(self._files(), key=lambda file: file.stat.st_ctime)
        too_many = sum(file.stat.st_size for file in files) + num_bytes - self.quota_bytes
        kept = self.kept()
        for file in files:
            if too_many <= 0:
                return
            if str(file.path) not in kept:
                file.path.unlink(missing_ok=True)
                too_many -= file.stat.st_size

    def sweep(self, keep_seconds: float = KEEP_SECONDS) -> None:
        """Removes what is older."""
        kept, oldest = self.kept(), time.time() - keep_seconds
        for file in self._files():
            if file.stat.st_ctime < oldest and str(file.path) not in kept:
                file.path.unlink(missing_ok=True)
        for folder in (folder for parent in (self.uploads, self.downloads) for folder in parent.glob("*/")):
            with suppress(OSError):  # it is in use
                if folder.stat().st_ctime < oldest:
                    folder.rmdir()
        for also in self.sweep_with:
            also()

    def sweep_regularly(self) -> None:
        """From a thread of its own, until the folder is removed."""

        def run() -> None:
            while not self._stopped.wait(SWEEP_SECONDS):
                try:
                    self.sweep()
                except Exception:
                    _log.exception("Old files could not be removed.")

        threading.Thread(target=run, name="sweep", daemon=True).start()

    def _files(self) -> Iterator[_File]:
        for path in self.root.rglob("*"):
            with suppress(FileNotFoundError):  # somebody else was faster
                if not path.is_dir():
                    yield _File(path, path.lstat())


def lock_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.lock")


def remove_abandoned(parent: Path) -> None:
    """The folders of servers that were killed: nobody holds their locks."""
    for file in parent.glob(f"{PREFIX}*.lock"):
        lock = FileLock(file)
        with suppress(Timeout, OSError, NotImplementedError):  # it is in use, or somebody else's
            lock.acquire(blocking=False)
            try:
                shutil.rmtree(file.with_suffix(""), ignore_errors=True)
                file.unlink(missing_ok=True)
            finally:
                lock.release()


def new_folder(parent: Path) -> Path:
    """An empty one of a name that nobody can guess."""
    folder = parent / secrets.token_urlsafe(16)
    folder.mkdir(mode=0o700, parents=True)  # a cleaner of temporary files may have removed the parent
    return folder


def cannot_write(error: OSError) -> str:
    """What a visitor is told of a disk that is full or a folder that nobody may write to."""
    return f"The server cannot write the file now ({error.strerror}); please try again later."

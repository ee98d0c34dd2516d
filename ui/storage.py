"""Where this server keeps what visitors send and take away: one private folder that is removed with the server.

Nothing in it gets older than an hour. When a server was killed, the next one on the machine removes its folder.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "pem-studio-"
SWEEP_SECONDS = 300
KEEP_SECONDS = 3600 - SWEEP_SECONDS - 60  # so that everything is gone after an hour
QUOTA_BYTES = 2 * 2**30
MAX_FILES = 4000  # a look at all of them takes a twentieth of a second
BROKEN_OFF_SECONDS = 120  # an upload that got nothing more for so long
_log = logging.getLogger("pem")


class Storage:
    """The folder of this server, which is made at once. It is in use as long as this process holds the lock beside it.

    Gradio writes photos into ``uploads``. ``downloads`` are files for visitors, ``results`` what the network computed.
    ``kept`` names files that the page itself needs. The functions in ``sweep_with`` are called at every sweep.
    """

    def __init__(self, parent: Path | None = None, quota_bytes: int = QUOTA_BYTES) -> None:
        parent = parent or Path(tempfile.gettempdir())
        remove_abandoned(parent)
        self.quota_bytes = quota_bytes
        self.kept: Callable[[], Collection[str]] = tuple
        self.sweep_with: list[Callable[[], None]] = []
        self.root = parent.resolve() / (PREFIX + secrets.token_urlsafe(12))
        self.uploads, self.downloads, self.results = (self.root / name for name in ("uploads", "downloads", "results"))
        self._lock = FileLock(self.root.with_suffix(".lock"))
        with suppress(OSError, NotImplementedError):  # where files cannot be locked, no folder counts as abandoned
            self._lock.acquire(blocking=False)
        self._stopped = threading.Event()
        for folder in (self.root, self.uploads, self.downloads, self.results):
            folder.mkdir(mode=0o700)
        atexit.register(self.remove)

    def write_download(self, name: str, data: bytes) -> Path:
        """Writes a file into a new folder of its own and returns its path. The oldest files make room for it."""
        self.make_room(len(data))
        path = new_folder(self.downloads) / name
        path.write_bytes(data)
        return path

    def remove(self) -> None:
        """Removes the folder; to call this more than once does no harm."""
        self._stopped.set()
        shutil.rmtree(self.root, ignore_errors=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def make_room(self, num_bytes: int) -> None:
        """Removes the oldest files until one more, of so many bytes, stays within the quota and MAX_FILES, or no file
        is left to remove."""
        files = sorted(self._files())
        bytes_too_many = sum(size for _, size, _ in files) + num_bytes - self.quota_bytes
        files_too_many = len(files) + 1 - MAX_FILES
        kept = self.kept()
        for _, size, path in files:
            if bytes_too_many <= 0 and files_too_many <= 0:
                return
            if str(path) not in kept:
                path.unlink(missing_ok=True)
                if path.parent.parent in (self.uploads, self.downloads):
                    with suppress(OSError):  # there are more files in the folder
                        path.parent.rmdir()
                bytes_too_many -= size
                files_too_many -= 1

    def sweep(self, keep_seconds: float = KEEP_SECONDS) -> None:
        """Removes files and empty folders that are older than this, and uploads that were broken off."""
        kept, now = self.kept(), time.time()
        oldest, broken_off = now - keep_seconds, now - min(keep_seconds, BROKEN_OFF_SECONDS)
        for changed, _, path in self._files():
            # An upload lies in ``uploads`` itself until it is complete.
            if changed < (broken_off if path.parent == self.uploads else oldest) and str(path) not in kept:
                path.unlink(missing_ok=True)
        for folder in (folder for parent in (self.uploads, self.downloads) for folder in parent.glob("*/")):
            with suppress(OSError):  # it is in use
                if folder.stat().st_ctime < oldest:
                    folder.rmdir()
        for also in self.sweep_with:
            also()

    def sweep_regularly(self) -> None:
        """Sweeps in a thread of its own until the folder is removed."""

        def run() -> None:
            while not self._stopped.wait(SWEEP_SECONDS):
                try:
                    self.sweep()
                except Exception:
                    _log.exception("Old files could not be removed.")

        threading.Thread(target=run, name="sweep", daemon=True).start()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file changed, its size in bytes, and its path."""
        for path in self.root.rglob("*"):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                if not path.is_dir():
                    stat = path.lstat()
                    yield stat.st_ctime, stat.st_size, path


def remove_abandoned(parent: Path) -> None:
    """Removes the folders of servers that were killed: no process holds their locks."""
    for file in parent.glob(f"{PREFIX}*.lock"):
        # It may be in use, or belong to another user.
        with suppress(Timeout, OSError, NotImplementedError), FileLock(file, blocking=False):
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)
            file.unlink(missing_ok=True)


def new_folder(parent: Path) -> Path:
    """Makes an empty folder with a name that nobody can guess."""
    folder = parent / secrets.token_urlsafe(16)
    folder.mkdir(mode=0o700, parents=True)  # a cleaner of temporary files may have removed the parent
    return folder


def cannot_write(error: OSError) -> str:
    """The sentence for a visitor when the disk is full or the folder cannot be written to."""
    return f"The server cannot write the file now ({error.strerror}); please try again later."

"""Tar files of a split (shards), unpacked once into a cache."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from pem.errors import first_line


def unpack(shards: list[Path], cache: Path) -> Path:
    """The folder inside the cache with what the tar files hold."""
    state = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    unpacked = cache / hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    if unpacked.is_dir():
        return unpacked
    cache.mkdir(parents=True, exist_ok=True)
    # Appears under its final name only when complete, so an interrupted or a second process does no harm.
    partial = Path(tempfile.mkdtemp(dir=cache, prefix="partial-"))
    try:
        for shard in shards:
            try:
                with tarfile.open(shard) as tar:
                    tar.extractall(partial, filter="data")
            except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"{shard} cannot be unpacked ({first_line(error)}); replace the file.") from error
        os.rename(partial, unpacked)
    except OSError:
        if not unpacked.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return unpacked

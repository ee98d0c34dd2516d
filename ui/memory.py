"""Hands memory back to the system. The allocator of glibc keeps what was freed, in many arenas; others do not."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

M_ARENA_MAX = -8  # in glibc's malloc.h
ARENAS = 2
SECONDS_BETWEEN = 10

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def use_few_arenas() -> None:
    """Threads share their free memory from now on. Measured: analysis/LOG.md."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_ARENA_MAX, ARENAS)  # type: ignore[union-attr]


def hand_back() -> None:
    """What is free now; takes some milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)  # type: ignore[union-attr]


def hand_back_regularly() -> None:
    """From a thread of its own: answers on their way to browsers are also freed when nothing else works any more."""

    def run() -> None:
        while True:
            time.sleep(SECONDS_BETWEEN)
            hand_back()

    threading.Thread(target=run, name="hand back memory", daemon=True).start()

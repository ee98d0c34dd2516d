"""Hands memory back to the system. The allocator of glibc keeps freed memory in many arenas; others do not."""

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
    """From now on threads share their free memory. analysis/LOG.md has what this saves."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_ARENA_MAX, ARENAS)  # type: ignore[union-attr]


def hand_back() -> None:
    """Hands back what is free now, which takes some milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)  # type: ignore[union-attr]


def hand_back_regularly() -> None:
    """Does so in a thread of its own: an answer is freed when the browser has it, and maybe no other work follows."""

    def run() -> None:
        while True:
            time.sleep(SECONDS_BETWEEN)
            hand_back()

    threading.Thread(target=run, name="hand back memory", daemon=True).start()

"""Child processes that end with the test that started them, however that test ends.

Run as a program, it becomes the command that it is given, which is then killed when its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux, in sys/prctl.h


def free_ports(number: int) -> list[int]:
    """Different ones, of which none was in use a moment ago."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [free.getsockname()[1] for free in taken]


def free_port() -> int:
    return free_ports(1)[0]


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it dies. Only Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def started(command: Sequence[str | os.PathLike[str]], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The running command. It and all that it started are killed at the end of the block, or when this process dies.

    ``options`` are those of ``subprocess.Popen``; text is UTF-8.
    """
    command = [sys.executable, __file__, *map(os.fspath, command)]
    process = subprocess.Popen(command, text=True, encoding="utf-8", start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run(command, capture_output=True)`` returns, of a command that ends with the test."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


if __name__ == "__main__":
    end_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])

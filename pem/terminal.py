"""What commands write to: a terminal or a pipe. It may lack letters, and may be gone before the work is done."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

INTERRUPTED = 128 + signal.SIGINT  # what a shell gives for Ctrl-C


def escape_missing_letters() -> None:
    """Lets ``print`` write an escape for a letter that the terminal lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def leave_to_reader() -> int:
    """After a BrokenPipeError: nobody reads the output any more. Returns the exit code that a shell gives then."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - else Python complains once more at its end
    return 128 + 13


@contextmanager
def lasting_output() -> Iterator[None]:
    """Inside it, the loss of the terminal or the reader ends nothing: Ctrl-C ends ``tee`` before a run has saved."""
    with redirect_stdout(_lasting(sys.stdout)), redirect_stderr(_lasting(sys.stderr)):
        yield


def _lasting(stream: TextIO | None) -> Any:
    return stream and _Lasting(stream)  # without a console Python has none


class _Lasting:
    """A stream that swallows everything after its first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._lead_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lead_nowhere()

    def _lead_nowhere(self) -> None:
        """Exchanges the file behind the stream: at its end, Python writes once more what the stream still holds."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

"""What commands write to: a terminal or a pipe, which may lack letters, and may be gone before the work is done."""

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
    """A terminal may lack the letters of a name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def leave_to_reader() -> int:
    """After a BrokenPipeError: whoever read the output has enough. Returns what a shell gives for that."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - Python would complain once more at its end
    return 128 + 13


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, the loss of a terminal or reader ends nothing: ``tee`` dies of the Ctrl-C that a run heeds."""
    with redirect_stdout(_lasting(sys.stdout)), redirect_stderr(_lasting(sys.stderr)):
        yield


def _lasting(stream: TextIO | None) -> Any:
    return stream and _Lasting(stream)  # without a console Python has none


class _Lasting:
    """A stream that leads to nowhere from the first error on."""

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
        """The file behind the stream is exchanged, for Python writes once more at its end what the stream still has."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

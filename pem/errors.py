"""What an error of a library says, in few words."""

from __future__ import annotations


class WeightsError(ValueError):
    """A file of weights or an exported network that cannot be read, or does not fit."""


def first_line(error: Exception) -> str:
    """What an error says, in one line without a full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the CPU or a GPU is too small; of the CPU, torch tells it in words."""
    is_torchs = type(error).__name__ == "OutOfMemoryError"  # without an import of torch, which may not be there
    return isinstance(error, MemoryError) or is_torchs or "allocate memory" in str(error)

"""What an error of a library says, in few words."""

from __future__ import annotations

import torch


def first_line(error: Exception) -> str:
    """What an error says, in one line without a full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the CPU or a GPU is too small; of the CPU, torch tells it in words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)

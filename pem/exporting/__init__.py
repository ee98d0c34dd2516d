"""``pem.export``: a PEM in one file that runs without PyTorch, compared with the network that it was made from."""

from __future__ import annotations

import os
from pathlib import Path

from pem.errors import WeightsError
from pem.exporting.check import Comparison
from pem.model import PEM

PRECISIONS = ("float32", "float16")
__all__ = ["PRECISIONS", "Comparison", "export"]


def export(
    model: PEM, path: str | os.PathLike[str], precision: str = "float32", trace: bool = False
) -> list[Comparison]:
    """Writes an ``.onnx`` file with the network, its weights and its config, which ``pem.load_model`` reads.

    Images of any size in multiples of 32 and batches of any size may be fed to it. It is compared with ``model`` on the
    photos that come with the project, in each runtime that is installed, and written only if it passes.

    Args:
        model: the plain network, in eval mode (``pem.load_model(..., fast=False)``).
        path: the file, ending in .onnx.
        precision: of the weights in the file. "float32": the same numbers as in torch. "float16": half the size;
            computed in float32.
        trace: whether the file also gives what each layer did (``ExportedPEM.__call__`` with ``trace=True``).

    Returns:
        What the comparison found, for each runtime.

    Raises:
        ValueError for another ending or precision and for a model in training mode or a fast copy; WeightsError where
        a library is missing, or where the file does not compute what the model does: the message says which output.

    >>> model = pem.load_model("default", fast=False)
    >>> comparisons = pem.export(model, "pem.onnx")  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path} has another ending than .onnx; add it, or load_model cannot read the file.")
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of: {', '.join(PRECISIONS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")
    try:
        from pem.exporting import onnx_file
    except ModuleNotFoundError as error:
        raise WeightsError(f"{error.name} is not installed: pip install 'pem-studio[export]'.") from error
    return onnx_file.export(model, path, precision, trace)

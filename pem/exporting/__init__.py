"""``pem.export``: a PEM in one file that runs without PyTorch, compared with the network that it was made from."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from pem.errors import WeightsError
from pem.exporting.check import Comparison
from pem.model import PEM

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
# An .xml file would hold int8 weights widened, for OpenVINO computes with what is in it.
PRECISIONS_OF = {".pt2": PRECISIONS[:1], ".xml": PRECISIONS[:3]}
__all__ = ["FORMATS", "PRECISIONS", "Comparison", "export"]


def export(
    model: PEM, path: str | os.PathLike[str], precision: str = "float32", trace: bool = False
) -> list[Comparison]:
    """Writes a file with the network, its weights and its config. ``pem.load_model`` reads .onnx and .xml files.

    Images of any size in multiples of 32 and batches of any size may be fed to it. It is compared with ``model`` on the
    photos that come with the project, in each runtime that is installed, and written only if it passes.

    Args:
        model: the plain network, in eval mode (``pem.load_model(..., fast=False)``).
        path: the file. Its ending says the format: .onnx; .xml, OpenVINO's, with the weights beside it in a .bin;
            or .pt2, torch.export's.
        precision: of the weights in the file. "float32": the same numbers as in torch. "float16": half the size,
            "int8": a quarter; both are computed in float32. "bfloat16": half the size; OpenVINO computes in it where
            the processor can.
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
    ending = path.suffix.lower()
    if ending not in FORMATS.values():
        raise ValueError(f"{path} has another ending than {', '.join(FORMATS.values())}, which say the format.")
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of: {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS_OF.get(ending, PRECISIONS):
        raise ValueError(f"A file that ends in {ending} cannot hold {precision}; export it to an .onnx file.")
    weights = path.with_suffix(".bin")
    if ending == ".xml" and weights.exists() and not path.exists():
        raise ValueError(f"{weights} is in the way of the weights beside {path.name}; give the file another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")
    try:
        writer = import_module("pem.exporting.torch_file" if ending == ".pt2" else "pem.exporting.onnx_file")
    except ModuleNotFoundError as error:
        raise WeightsError(f"{error.name} is not installed: pip install 'pem-studio[export]'.") from error
    comparisons: list[Comparison] = writer.export(model, path, precision, trace)
    return comparisons

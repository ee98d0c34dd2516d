"""A network off PyTorch: a file that ``pem.export`` wrote, run by onnxruntime or by OpenVINO."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pem.arrays import Arrays
from pem.config import PEMConfig, config_from_json
from pem.errors import WeightsError, first_line
from pem.outputs import LayerTrace, PEMOutput, Prediction
from pem.preprocess import check_size
from pem.runtimes import PREDICTION, RUNTIMES, openvino_core, pick_runtime

FORMAT_VERSION = 1
ENDINGS = (".onnx", ".xml")  # the second is OpenVINO's, with the weights beside it in a .bin
# What a file that was exported with its trace says as well. The first four are stacked over the L earlier predictions.
STEPS = ("aux_pred_logits", "aux_mask_embed", "mask_embed", "mask_features")
OF_LAYER = ("prototype_index", "similarity", "target", "key", "banned", "allowed_fraction")


class ExportedPEM:
    """A network in a file. Called with pixels, it returns what a PEM returns, as arrays; ``pem.predict`` takes it, too.

    >>> model = pem.load_model("pem.onnx", runtime="openvino")
    >>> pem.predict(model, "photo.jpg").ids.shape  # (height, width) of the photo
    (480, 640)
    """

    def __init__(
        self, path: str | os.PathLike[str], runtime: str | None = None, size: tuple[int, int] | None = None
    ) -> None:
        """``runtime`` is "onnxruntime" or "openvino"; None is the first of them that is installed.

        With ``size``, (height, width) in pixels, it takes single images of that size only, as of a camera. OpenVINO is
        faster then (analysis/README.md).

        Raises FileNotFoundError, and WeightsError for a file that is damaged, foreign or of a newer version, and for a
        runtime that is missing or cannot run it.
        """
        self.path = Path(path)
        if self.path.suffix.lower() == ".xml":
            if runtime not in (None, "openvino"):
                raise WeightsError(f"Only openvino runs {self.path}; give it alone, or an .onnx file.")
            runtime = "openvino"
        self.runtime = pick_runtime(runtime)
        remarks = read_remarks(self.path)
        try:
            self.config: PEMConfig = config_from_json(remarks["config"])
        except ValueError as error:
            raise WeightsError(f"The config in {self.path} cannot be used: {first_line(error)}.") from error
        self.precision = remarks["precision"]
        self.has_trace = remarks["trace"] == "yes"
        self.size = size
        if size:
            check_size(size)
        try:
            self._run = RUNTIMES[self.runtime](self.path, size, self.precision == "bfloat16")
        except Exception as error:  # each runtime has its own
            name = f"{self.runtime} {version(self.runtime)}"
            raise WeightsError(f"{name} cannot run {self.path} ({first_line(error)}); install a newer one.") from error

    def __call__(self, pixels: np.ndarray, trace: bool = False) -> Arrays | PEMOutput:
        """Normalised pixels, float32 [B, 3, H, W] with H and W multiples of 32, to the last prediction; with ``trace``
        to a PEMOutput of arrays with all earlier predictions and what each layer did.

        Raises ValueError for other sizes, which some runtimes would take without a word, and for a trace of a file that
        was exported without.
        """
        check_size((pixels.shape[-2], pixels.shape[-1]))
        if self.size and (len(pixels), *pixels.shape[-2:]) != (1, *self.size):
            raise ValueError(f"This network was opened for one image of {self.size[0]}x{self.size[1]} px at a time.")
        if trace and not self.has_trace:
            raise ValueError(f"{self.path} was exported without its trace; export it with trace=True (--trace).")
        pixels = np.ascontiguousarray(pixels, np.float32)
        return as_output(self._run(pixels)) if trace else Arrays(**self._run(pixels, PREDICTION))


def as_output(outputs: dict[str, Any]) -> PEMOutput:
    """The outputs of a file with its trace, by name, as the record that a PEM returns."""
    aux_logits, aux_embeds, mask_embed, features = (outputs[name] for name in STEPS)
    earlier = [Prediction(logits, embed, features) for logits, embed in zip(aux_logits, aux_embeds, strict=True)]
    last = PEMOutput(outputs["pred_logits"], mask_embed, features, aux_outputs=tuple(earlier))
    height, width = features.shape[2:]
    layers = []
    for i, prediction in enumerate((*earlier[1:], last)):
        stride = (32, 16, 8)[i % 3]
        grid_size = (height * 4 // stride, width * 4 // stride)
        parts = {name: outputs[f"layer_{i + 1}_{name}"] for name in OF_LAYER}
        layers.append(LayerTrace(stride, grid_size, prediction=prediction, **parts))
    return PEMOutput(last.pred_logits, mask_embed, features, tuple(earlier), tuple(layers))


# ------------------------------------------------------------------------------------------------- what is in the file
# An ONNX file is a message of Protocol Buffers. It is read here as far as needed, so that a file which is damaged,
# foreign or too new is known before a runtime gets it.

GRAPH, REMARK = 7, 14  # the numbers of these fields in ONNX's ModelProto; a remark has a key (1) and a value (2)


def read_remarks(path: Path) -> dict[str, str]:
    """The remarks that ``pem.export`` left in a file. Raises FileNotFoundError, and WeightsError for a file that is not
    ours, was damaged since, or is of a newer version."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported network {path}.")
    weights, remarks = read_openvino(path) if path.suffix.lower() == ".xml" else read_onnx(path)
    if "pem_format" not in remarks:
        raise WeightsError(f"{path} was not made by python -m pem.export; export a network with it.")
    if remarks["pem_format"] != str(FORMAT_VERSION):
        raise WeightsError(
            f"{path} has format {remarks['pem_format']}, this version reads {FORMAT_VERSION}; update this project."
        )
    if remarks.get("sha256") != hashlib.sha256(weights).hexdigest():
        raise WeightsError(f"{path} is damaged or was changed; export the network again.")
    return remarks


def read_openvino(path: Path) -> tuple[bytes, dict[str, str]]:
    """The weights beside an .xml file, and its remarks."""
    try:
        remarks: dict[str, str] = openvino_core().read_model(path).get_rt_info("pem").value
        return path.with_suffix(".bin").read_bytes(), remarks
    except Exception as error:  # its own
        raise WeightsError(f"{path} is damaged or no file of OpenVINO; export the network again.") from error


def read_onnx(path: Path) -> tuple[memoryview, dict[str, str]]:
    """The graph in an .onnx file, weights included, and its remarks."""
    graph, remarks = memoryview(b""), {}
    try:
        for number, value in fields(memoryview(path.read_bytes())):
            if number == GRAPH:
                graph = value
            elif number == REMARK:
                pair = {key: bytes(text).decode() for key, text in fields(value)}
                remarks[pair[1]] = pair.get(2, "")
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or no ONNX file; export the network again.") from error
    return graph, remarks


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that have a length (texts, messages, arrays): number and content. Others are skipped."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = varint(message, at)
            if at + length > len(message):
                raise ValueError("it ends too early")
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind == 0:
            _, at = varint(message, at)
        else:
            at += {1: 8, 5: 4}[kind]


def varint(message: Sequence[int], at: int) -> tuple[int, int]:
    """The whole number at a place, of 7 bits a byte, and the place behind it."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at

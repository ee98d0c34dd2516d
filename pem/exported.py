"""A network off PyTorch: a file that ``pem.export`` wrote, run by onnxruntime or by OpenVINO."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pem.arrays import Arrays
from pem.config import PEMConfig, config_from_json
from pem.cores import usable_cores
from pem.errors import WeightsError, first_line
from pem.outputs import LayerTrace, PEMOutput, Prediction
from pem.preprocess import check_size

FORMAT_VERSION = 1
INPUT = "pixels"
PREDICTION = ("pred_logits", "pred_masks")
# What a file that was exported with its trace says as well. The first four are stacked over the L earlier predictions.
STEPS = ("aux_pred_logits", "aux_mask_embed", "mask_embed", "mask_features")
OF_LAYER = ("prototype_index", "similarity", "target", "key", "banned", "allowed_fraction")

# Takes pixels [B, 3, H, W] and the names of outputs, none for all of them; returns arrays by name.
Run = Callable[..., dict[str, Any]]


class ExportedPEM:
    """A network in a file. Called with pixels, it returns what a PEM returns, as arrays; ``pem.predict`` takes it, too.

    >>> model = pem.load_model("pem.onnx", runtime="openvino")
    >>> pem.predict(model, "photo.jpg").ids.shape  # (height, width) of the photo
    (480, 640)
    """

    def __init__(self, path: str | os.PathLike[str], runtime: str | None = None) -> None:
        """``runtime`` is "onnxruntime" or "openvino"; None is the first of them that is installed.

        Raises FileNotFoundError, and WeightsError for a file that is damaged, foreign or of a newer version, and for a
        runtime that is missing or cannot run it.
        """
        self.path = Path(path)
        remarks = read_remarks(self.path)
        try:
            self.config: PEMConfig = config_from_json(remarks["config"])
        except ValueError as error:
            raise WeightsError(f"The config in {self.path} cannot be used: {first_line(error)}.") from error
        self.precision = remarks["precision"]
        self.has_trace = remarks["trace"] == "yes"
        self.runtime = pick_runtime(runtime)
        try:
            self._run = RUNTIMES[self.runtime](self.path)
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
        if trace and not self.has_trace:
            raise ValueError(f"{self.path} was exported without its trace; export it with trace=True (--trace).")
        pixels = np.ascontiguousarray(pixels, np.float32)
        return self._traced(self._run(pixels)) if trace else Arrays(**self._run(pixels, PREDICTION))

    def _traced(self, outputs: dict[str, Any]) -> PEMOutput:
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


def usable_runtimes() -> list[str]:
    """Those of RUNTIMES that are installed and not too old."""
    return [name for name in RUNTIMES if find_spec(name) and not is_too_old(name)]


def is_too_old(runtime: str) -> bool:
    """onnxruntime has DeformConv on a CPU since 1.25."""
    return runtime == "onnxruntime" and tuple(map(int, version(runtime).split(".")[:2])) < (1, 25)


def pick_runtime(wanted: str | None) -> str:
    """That runtime, or the first that is usable. Raises WeightsError where there is none."""
    if wanted is None:
        if usable := usable_runtimes():
            return usable[0]
        raise WeightsError("Neither onnxruntime 1.25 nor OpenVINO is installed: pip install onnxruntime openvino.")
    if not find_spec(wanted):
        raise WeightsError(f"{wanted} is not installed: pip install {wanted}.")
    if is_too_old(wanted):
        raise WeightsError(f"{wanted} {version(wanted)} is too old: pip install 'onnxruntime>=1.25', or use openvino.")
    return wanted


def open_onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3  # errors; its warnings about optimisations help nobody here
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    every = [output.name for output in session.get_outputs()]

    def run(pixels: np.ndarray, names: Sequence[str] = every) -> dict[str, Any]:
        return dict(zip(names, session.run(names, {INPUT: pixels}), strict=True))

    return run


def open_openvino(path: Path) -> Run:
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", deformable_convolution))
    # By itself it computes in bfloat16 where the processor can.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": usable_cores()}
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    every = [output.get_any_name() for output in compiled.outputs]

    def run(pixels: np.ndarray, names: Sequence[str] = every) -> dict[str, Any]:
        results = compiled.create_infer_request().infer({INPUT: pixels})
        return {name: results[name].copy() for name in names}

    return run


def deformable_convolution(node: Any) -> Any:
    """ONNX's DeformConv as OpenVINO's operator, which its own reader of ONNX does not know."""
    from openvino import opset8

    x, weight, offset, bias, mask = (node.get_input(i) for i in range(5))
    convolved = opset8.deformable_convolution(
        *(x, offset, weight),
        **{"strides": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1], "mask": mask},
        bilinear_interpolation_pad=True,  # outside the image are zeros, as in torchvision
    )
    return opset8.add(convolved, opset8.reshape(bias, np.array([1, -1, 1, 1]), False)).outputs()


RUNTIMES: dict[str, Callable[[Path], Run]] = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


# ------------------------------------------------------------------------------------------------- what is in the file
# An ONNX file is a message of Protocol Buffers. It is read here as far as needed, so that a file which is damaged,
# foreign or too new is known before a runtime gets it.

GRAPH, REMARK = 7, 14  # the numbers of these fields in ONNX's ModelProto; a remark has a key (1) and a value (2)


def read_remarks(path: Path) -> dict[str, str]:
    """The remarks that ``pem.export`` left in a file. Raises FileNotFoundError, and WeightsError for a file that is not
    ours, was damaged since, or is of a newer version."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported network {path}.")
    try:
        content = memoryview(path.read_bytes())
        graph, remarks = memoryview(b""), {}
        for number, value in fields(content):
            if number == GRAPH:
                graph = value
            elif number == REMARK:
                pair = {key: bytes(text).decode() for key, text in fields(value)}
                remarks[pair[1]] = pair.get(2, "")
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or no ONNX file; export the network again.") from error
    if "pem_format" not in remarks:
        raise WeightsError(f"{path} was not made by python -m pem.export; export a network with it.")
    if remarks["pem_format"] != str(FORMAT_VERSION):
        raise WeightsError(
            f"{path} has format {remarks['pem_format']}, this version reads {FORMAT_VERSION}; update this project."
        )
    if remarks.get("sha256") != hashlib.sha256(graph).hexdigest():
        raise WeightsError(f"{path} is damaged or was changed; export the network again.")
    return remarks


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

"""The runtimes that run an exported network: each is a function that opens a file and returns a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pem.cores import usable_cores
from pem.errors import WeightsError

INPUT = "pixels"
PREDICTION = ("pred_logits", "pred_masks")

# Takes pixels [B, 3, H, W] and the names of outputs, none for all of them; returns arrays by name.
Run = Callable[..., dict[str, Any]]


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


def open_onnxruntime(path: Path, size: tuple[int, int] | None, bfloat16: bool) -> Run:
    """It computes in float32 whatever is asked for, and a fixed size hardly helps it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3  # errors; its warnings about optimisations help nobody here
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # widens int8 weights once, when it loads them
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    every = tuple(output.name for output in session.get_outputs())

    def run(pixels: np.ndarray, names: tuple[str, ...] = every) -> dict[str, Any]:
        return dict(zip(names, session.run(names, {INPUT: pixels}), strict=True))

    return run


def open_openvino(path: Path, size: tuple[int, int] | None, bfloat16: bool) -> Run:
    core = openvino_core()
    model = core.read_model(path)
    if size:
        model.reshape([1, 3, *size])
    # By itself it computes in bfloat16 wherever the processor can.
    narrow = bfloat16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = usable_cores()
    every = tuple(output.get_any_name() for output in model.outputs)

    @cache  # it would compute the outputs that nobody asked for, too
    def compiled(names: tuple[str, ...]) -> Any:
        import openvino

        results = [model.output(name).get_node() for name in names]
        return core.compile_model(openvino.Model(results, model.get_parameters(), "pem"), "CPU", hints)

    def run(pixels: np.ndarray, names: tuple[str, ...] = every) -> dict[str, Any]:
        results = compiled(names).create_infer_request().infer({INPUT: pixels})
        return {name: results[name].copy() for name in names}

    compiled(PREDICTION)  # what cannot be run is said at once

    return run


RUNTIMES: dict[str, Callable[[Path, tuple[int, int] | None, bool], Run]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}


# --------------------------------------------------------------------------- operators of ONNX as OpenVINO's, for speed
# or because its own reader of ONNX does not know them


def openvino_core() -> Any:
    """OpenVINO, with these operators. To be called before anything else imports it: by itself it reports its import to
    Google Analytics."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # so it does not find what reports
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    core = openvino.Core()
    for name, convert in (("DeformConv", deform_conv), ("ArgMax", arg_max), ("DequantizeLinear", dequantize)):
        core.add_extension(ConversionExtension(name, convert))
    return core


def deform_conv(node: Any) -> Any:
    """Its reader does not know it."""
    from openvino import opset13 as op

    x, weight, offset, bias, mask = (node.get_input(i) for i in range(5))
    convolved = op.deformable_convolution(
        *(x, offset, weight),
        **{"strides": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1], "mask": mask},
        bilinear_interpolation_pad=True,  # outside the image are zeros, as in torchvision
    )
    return op.add(convolved, op.reshape(bias, np.array([1, -1, 1, 1]), False)).outputs()


def arg_max(node: Any) -> Any:
    """The first place of the maximum. Its reader makes it a TopK, which takes a fifth of the network's time."""
    from openvino import opset13 as op

    x, axis = node.get_input(0), node.get_attribute("axis")
    length = op.gather(op.shape_of(x, "i32"), np.int32(axis), np.int32(0))
    places = op.range(np.int32(0), length, np.int32(1), "i32")
    is_best = op.equal(x, op.reduce_max(x, np.array([axis]), True))
    first = op.reduce_min(op.select(is_best, places, length), np.array([axis]), bool(node.get_attribute("keepdims", 1)))
    # Where all are -inf its maximum is the lowest number, which nothing equals: the first place then, too.
    return op.convert(op.mod(first, length), "i64").outputs()


def dequantize(node: Any) -> Any:
    """Its reader keeps int8 weights narrow, and widens them in every pass: here they are widened once."""
    from openvino import opset13 as op

    values, scale = (node.get_input(i).get_node().data for i in range(2))
    shape = [1] * values.ndim
    shape[node.get_attribute("axis")] = -1
    return op.constant(values.astype(np.float32) * scale.reshape(shape)).outputs()

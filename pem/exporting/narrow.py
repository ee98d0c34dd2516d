"""Narrower weights in an ONNX file. Runtimes widen them once, when they load the file, and compute as before."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

SMALL = 256  # values; smaller tensors are not worth a conversion
# Smaller ones, among them all depthwise convolutions, are kept in float16 instead of int8: together they have a
# megabyte, and without them half as many pixels change their class.
SMALL_FOR_INT8 = 32_768


def narrow(model: onnx.ModelProto, precision: str) -> None:
    """Stores the weights, in place, in this precision, with a node behind each that widens it.

    For "float32", those that float16 holds exactly are stored in it. Vectors keep their precision: they weigh nothing.
    """
    widen: list[onnx.NodeProto] = []
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < SMALL:
            continue
        model.graph.initializer.remove(tensor)
        if precision == "int8" and values.size >= SMALL_FOR_INT8:
            parts, node = to_int8(values, tensor.name)
        else:
            parts, node = to_half(values, tensor.name, precision)
        model.graph.initializer.extend(parts)
        widen.extend(node)
    nodes = [*widen, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


Parts = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]


def to_half(values: np.ndarray, name: str, precision: str) -> Parts:
    kind = onnx.TensorProto.BFLOAT16 if precision == "bfloat16" else onnx.TensorProto.FLOAT16
    half = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    if precision == "float32" and not np.array_equal(half.astype(np.float32), values):
        return [numpy_helper.from_array(values, name)], []
    part = numpy_helper.from_array(half, f"{name}_half")
    return [part], [onnx.helper.make_node("Cast", [part.name], [name], to=onnx.TensorProto.FLOAT)]


def to_int8(values: np.ndarray, name: str) -> Parts:
    """-127..127 with a scale for each output channel. A matrix has these in rows or in columns, as the exporter likes:
    it gets the scales that lose less."""
    axes = (0,) if values.ndim > 2 else (0, 1)
    axis, scale, whole, _ = min((rounded(values, axis) for axis in axes), key=lambda result: result[-1])
    parts = [
        numpy_helper.from_array(array, f"{name}_{what}")
        for what, array in (("int8", whole), ("scale", scale), ("zero", np.zeros(len(scale), np.int8)))
    ]
    return parts, [onnx.helper.make_node("DequantizeLinear", [part.name for part in parts], [name], axis=axis)]


def rounded(values: np.ndarray, axis: int) -> tuple[int, np.ndarray, np.ndarray, float]:
    """The axis, one scale for each index along it, the values in int8, and the sum of what they lose."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.maximum(np.abs(values).max(others, keepdims=True) / 127, np.float32(1e-12))
    whole = np.rint(values / scale).astype(np.int8)
    return axis, scale.ravel(), whole, float(np.abs(whole * scale - values).sum())

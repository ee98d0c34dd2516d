#!/usr/bin/env bash
# OpenVINO's CPU plugin turns a constant of minus infinity into the lowest finite float.
#
# Masked attention and masked choices write minus infinity into banned places. A row in which all is banned then has
# minus infinity as its maximum, and a model may ask for that. ONNX allows the constant, and onnxruntime keeps it. In
# OpenVINO the maximum is -3.4e38, and the comparison with minus infinity is false, although both sides come from the
# same constant. Nothing is logged, also with float32 asked for. A model that then uses the "maximum" computes with a huge
# number where it expected none. Ask whether all places are banned instead.
#
# Seen with openvino 2026.4.1 and onnxruntime 1.32.0, for rows [0, banned, 2] and [banned, banned, banned]:
#   onnxruntime [2.0, -inf] [False, True]
#   openvino [2.0, -3.4028234663852886e+38] [False, False]
# Fails when that changes. Needs Python 3.11 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6 2>/dev/null
cd "$folder"
cat > maximum.py <<'PY'
"""The maximum of each row but for the banned places, and whether there is none."""
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Where", ["is_banned", "minus_infinity", "scores"], ["masked"]),
    helper.make_node("ReduceMax", ["masked", "axis"], ["best"], keepdims=0),
    helper.make_node("Equal", ["best", "minus_infinity"], ["none_left"]),
]
graph = helper.make_graph(
    nodes,
    "masked_maximum",
    [
        helper.make_tensor_value_info("is_banned", TensorProto.BOOL, [2, 3]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2, 3]),
    ],
    [
        helper.make_tensor_value_info("best", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("none_left", TensorProto.BOOL, [2]),
    ],
    [
        numpy_helper.from_array(np.array(-np.inf, np.float32), "minus_infinity"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
onnx.checker.check_model(model)
onnx.save(model, "model.onnx")
inputs = {"is_banned": np.array([[0, 1, 0], [1, 1, 1]], bool), "scores": np.arange(6, dtype=np.float32).reshape(2, 3)}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
print("onnxruntime", *(x.tolist() for x in session.run(None, inputs)))
compiled = openvino.Core().compile_model("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print("openvino", *(compiled(inputs)[i].tolist() for i in range(2)))
PY
found=$("$folder/venv/bin/python" maximum.py)
echo "$found"
expected="onnxruntime [2.0, -inf] [False, True]
openvino [2.0, -3.4028234663852886e+38] [False, False]"
[ "$found" = "$expected" ] || { echo "This has changed."; exit 1; }

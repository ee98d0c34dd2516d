"""Exportable -> an ONNX file, or from there OpenVINO's: with all that a reader needs in its metadata."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx.utils import Extractor
from onnxscript import optimizer

from pem.config import PEMConfig
from pem.errors import WeightsError
from pem.exported import ExportedPEM, read_remarks
from pem.exporting.check import Comparison, compare, example_photos
from pem.exporting.narrow import narrow
from pem.exporting.network import EXAMPLE_SIZE, Exportable, dynamic_shapes, output_names
from pem.exporting.remarks import remarks
from pem.model import PEM
from pem.runtimes import INPUT, PREDICTION, openvino_core, pick_runtime, usable_runtimes

NOISY = ("onnxscript", "torch.onnx", "onnx_ir")
OPSET = 19  # the first with DeformConv in onnxruntime, the last whose GridSample a browser's GPU knows


def export(plain: PEM, path: Path, precision: str, trace: bool) -> list[Comparison]:
    """See ``pem.export``."""
    for_openvino = path.suffix.lower() == ".xml"
    runtimes = [pick_runtime("openvino")] if for_openvino else usable_runtimes()
    if not runtimes:
        raise WeightsError("The file cannot be tried without onnxruntime: pip install 'pem-studio[export]'.")
    model = to_onnx(Exportable(plain, trace=True))
    narrow(model, precision)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:

        def written(content: onnx.ModelProto, with_trace: bool) -> Path:
            file = Path(scratch) / f"trace-{with_trace}.onnx"
            write(content, file, plain.config, precision, with_trace)
            return to_openvino(file) if for_openvino else file

        made = written(model, True)
        comparisons = [
            compare(plain, ExportedPEM(made, name), name, example_photos(), precision == "float32") for name in runtimes
        ]
        if not trace:
            made = written(Extractor(model).extract_model([INPUT], list(PREDICTION)), False)
        if for_openvino:
            made.with_suffix(".bin").replace(path.with_suffix(".bin"))
        made.replace(path)
    return comparisons


def to_onnx(network: Exportable) -> onnx.ModelProto:
    """Height and width are dynamic in steps of 32, and the batch from 1 on."""
    names = output_names(network.model.config.num_layers, network.trace)
    # It would take minutes to look for what runtimes do when they load a file: optimize=False.
    program = run_exporter(
        network, torch.zeros(EXAMPLE_SIZE), names, dynamic_shapes=dynamic_shapes(), external_data=False, optimize=False
    )
    with quiet(*NOISY):
        optimizer.fold_constants(program.model)
        make_shapes_constant(program.model)
        optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    found = {opset.domain: opset.version for opset in model.opset_import}
    if found.get("") != OPSET:  # which torch tells in a log line only
        raise RuntimeError(
            f"The exporter wrote opset {found.get('')}, not {OPSET}; install the versions of pyproject.toml."
        )
    return model


def run_exporter(
    network: torch.nn.Module, pixels: torch.Tensor, outputs: Sequence[str], **options: Any
) -> torch.onnx.ONNXProgram:
    """torch's exporter, without its reports; ``pixels`` are an example of the input."""
    with torch.no_grad(), warnings.catch_warnings(), quiet(*NOISY):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (pixels,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
            verbose=False,
            **options,
        )
    assert program is not None
    return program


class quiet:
    """Silences loggers: the exporter reports every step, and what it could not simplify."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)


def make_shapes_constant(model: onnx_ir.Model) -> None:
    """Replaces, in place, shapes that the exporter has computed in every pass, by several nodes each.

    A constant says the same where each side of the result has a fixed length, or that of the same side of the input
    (0 in ONNX), but for at most one (-1).
    """
    for node in model.graph:
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Reshape" or source is None or source.shape is None or result.shape is None:
            continue
        sides = [
            side if isinstance(side, int) else 0 if list(source.shape)[i : i + 1] == [side] else -1
            for i, side in enumerate(result.shape)
        ]
        if sides.count(-1) <= 1:
            shape = onnx_ir.tensor(np.array(sides, np.int64), name=f"{result.name}_shape")
            model.graph.register_initializer(value := onnx_ir.val(shape.name, const_value=shape))
            node.replace_input_with(1, value)
            node.attributes.pop("allowzero", None)  # with it 0 would be a length


def write(model: onnx.ModelProto, path: Path, config: PEMConfig, precision: str, trace: bool) -> None:
    """With the metadata. The hash is of the graph, weights included."""
    model.graph.name = "pem"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]  # lines of Python
    graph = model.graph.SerializeToString()
    about = remarks(config, precision, trace) | {"sha256": hashlib.sha256(graph).hexdigest()}
    onnx.helper.set_model_props(model, about)
    path.write_bytes(model.SerializeToString())


def to_openvino(source: Path) -> Path:
    """An .onnx file of ours as OpenVINO's two files; the path of the .xml file. The hash is of the weights."""
    core, target = openvino_core(), source.with_suffix(".xml")
    import openvino

    model = core.read_model(source)
    openvino.save_model(model, target, compress_to_fp16=False)
    digest = hashlib.sha256(target.with_suffix(".bin").read_bytes()).hexdigest()
    model.set_rt_info(read_remarks(source) | {"sha256": digest}, "pem")
    openvino.save_model(model, target, compress_to_fp16=False)
    return target

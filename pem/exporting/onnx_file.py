"""Exportable -> an ONNX file: one file, with all that a reader needs in its metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.utils import Extractor
from onnxscript import optimizer

from pem.categories import categories_for
from pem.config import PEMConfig
from pem.errors import WeightsError
from pem.exported import FORMAT_VERSION, INPUT, PREDICTION, ExportedPEM, usable_runtimes
from pem.exporting.check import Comparison, compare, example_photos
from pem.exporting.network import Exportable, output_names
from pem.fastest import installed_version
from pem.model import PEM
from pem.preprocess import SIZE_DIVISOR

OPSET = 19  # the first with DeformConv in onnxruntime, the last whose GridSample a browser's GPU knows
MAX_SIDES = 64  # in steps of SIZE_DIVISOR; only the exporter wants a limit
SMALL = 256  # values; smaller tensors are not worth a conversion


def export(plain: PEM, path: Path, precision: str, trace: bool) -> list[Comparison]:
    """See ``pem.export``."""
    model = to_onnx(Exportable(plain, trace=True, fold=False))
    store_in_half(model, lossy=precision == "float16")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:
        made = Path(scratch) / "traced.onnx"
        write(model, made, plain.config, precision, True)
        runtimes = [ExportedPEM(made, name) for name in usable_runtimes()]
        if not runtimes:
            raise WeightsError("The file cannot be tried without onnxruntime: pip install 'pem-studio[export]'.")
        comparisons = [compare(plain, each, example_photos(), precision == "float32") for each in runtimes]
        if not trace:
            made = made.with_name("plain.onnx")
            write(Extractor(model).extract_model([INPUT], list(PREDICTION)), made, plain.config, precision, False)
        made.replace(path)
    return comparisons


def to_onnx(network: Exportable) -> onnx.ModelProto:
    """Height and width are dynamic in steps of 32, and the batch from 1 on."""
    config = network.model.config
    example = torch.zeros(2, 3, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR)
    height, width = (SIZE_DIVISOR * torch.export.Dim(name, min=2, max=MAX_SIDES) for name in ("height_32", "width_32"))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad(), warnings.catch_warnings(), quiet("onnxscript", "torch.onnx", "onnx_ir"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes={"pixels": {0: batch, 2: height, 3: width}},
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=output_names(config.num_layers, network.trace),
            external_data=False,
            verbose=False,
            optimize=False,  # it would take minutes to look for what runtimes do when they load
        )
        assert program is not None
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    found = {opset.domain: opset.version for opset in model.opset_import}
    if found.get("") != OPSET:  # which torch tells in a log line only
        raise RuntimeError(
            f"The exporter wrote opset {found.get('')}, not {OPSET}; install the versions of pyproject.toml."
        )
    return model


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


def store_in_half(model: onnx.ModelProto, lossy: bool) -> None:
    """Stores, in place, weights as float16, with a cast behind each, which runtimes carry out once when they load.

    Only those that float16 holds exactly, unless ``lossy``. Vectors keep their precision: they weigh nothing.
    """
    casts, renamed = [], {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < SMALL:
            continue
        half = values.astype(np.float16)
        if lossy or np.array_equal(half.astype(np.float32), values):
            name = tensor.name
            renamed[name] = f"{name}_float16"
            tensor.CopyFrom(numpy_helper.from_array(half, renamed[name]))
            casts.append(onnx.helper.make_node("Cast", [renamed[name]], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def write(model: onnx.ModelProto, path: Path, config: PEMConfig, precision: str, trace: bool) -> None:
    """With the metadata. The hash is of the graph, weights included."""
    model.graph.name = "pem"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.doc_string = ""
    graph = model.graph.SerializeToString()
    remarks = {
        "pem_format": str(FORMAT_VERSION),
        "pem_version": installed_version("pem-studio"),
        "config": json.dumps(dataclasses.asdict(config)),
        "categories": json.dumps([dataclasses.asdict(category) for category in categories_for(config)]),
        "precision": precision,
        "trace": "yes" if trace else "no",
        "sha256": hashlib.sha256(graph).hexdigest(),
    }
    onnx.helper.set_model_props(model, remarks)
    path.write_bytes(model.SerializeToString())

"""Exportable -> a file of torch.export: runs with torch and torchvision alone, or goes on to their compilers."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision  # noqa: F401 (its deformable convolution is an operator in the file)

from pem.exported import as_output
from pem.exporting.check import Comparison, compare, example_photos
from pem.exporting.network import EXAMPLE_SIZE, Exportable, dynamic_shapes, output_names
from pem.exporting.remarks import remarks
from pem.model import PEM
from pem.outputs import PEMOutput


def export(plain: PEM, path: Path, precision: str, trace: bool) -> list[Comparison]:
    """See ``pem.export``."""
    about = remarks(plain.config, precision, trace)
    names = {with_trace: output_names(plain.config.num_layers, with_trace) for with_trace in (True, False)}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch, torch.no_grad():
        for with_trace in (True,) if trace else (True, False):
            made = Path(scratch) / f"{with_trace}.pt2"
            network = Exportable(plain, with_trace)
            program = torch.export.export(network, (torch.zeros(EXAMPLE_SIZE),), dynamic_shapes=dynamic_shapes())
            torch.export.save(program, made, extra_files={"outputs": " ".join(names[with_trace]), **about})
            if with_trace:
                run = partial(run_traced, torch.export.load(made).module(), names[True])
                comparison = compare(plain, run, "torch.export", example_photos(), strict=True)
        made.replace(path)
    return [comparison]


def run_traced(network: torch.nn.Module, names: tuple[str, ...], pixels: np.ndarray, trace: bool) -> PEMOutput:
    with torch.no_grad():
        outputs = network(torch.from_numpy(pixels))
    return as_output({name: output.numpy() for name, output in zip(names, outputs, strict=True)})

"""The files that a visitor can download: the overlay, the segments as COCO panoptic, and the trace.

They are made from a kept result, in the photo's own size. The network does not run.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from pem.coco import id_map_png, panoptic_json
from pem.outputs import Segmentation
from pem.render import render
from ui.engine import Engine
from ui.export.trace import trace_arrays, trace_json
from ui.results import KeptResult, encode
from ui.storage import Storage

KINDS = ("overlay", "segments", "trace-json", "trace-npz", "all")


def export_file(
    engine: Engine,
    result: KeptResult,
    what: str,
    storage: Storage,
    task: str,
    object_threshold: float | None = None,
    overlap_threshold: float | None = None,
    opacity: float = 0.5,
    outlines: bool = True,
    names: bool = False,
    hidden: Collection[tuple[int, int]] = (),
) -> Path:
    """Writes one file of the kind ``what`` into the downloads of the ``storage`` and returns its path.

    "overlay" is a PNG; "segments" a zip of the id map as a PNG and its JSON in the COCO panoptic format; "trace-json"
    and "trace-npz" hold what ``trace_json`` and ``trace_arrays`` describe; "all" is a zip of everything. Names begin
    with that of the photo's file, or with "photo" where it has none. Task and thresholds are those of ``Engine.read``.
    The overlay leaves out the segments of the ``hidden`` pairs (class, query). Ids may differ between two sizes
    of a photo.

    Raises ValueError for an unknown kind or task, and for thresholds or an opacity outside 0..1.
    """
    if what not in KINDS:
        raise ValueError(f"There is no export {what!r}; choose one of: {', '.join(KINDS)}.")
    files: dict[str, bytes] = {}
    if what in ("overlay", "segments", "all"):
        segmentation = engine.read(result, task, object_threshold, overlap_threshold).segmentation
    if what in ("overlay", "all"):
        files |= overlay_files(result, segmentation, opacity, outlines, names, hidden)
    if what in ("segments", "all"):
        files |= segments_files(result, segmentation)
    if what in ("trace-json", "all"):
        files[f"{result.stem}_trace.json"] = json.dumps(trace_json(result), allow_nan=False).encode()
    if what in ("trace-npz", "all"):
        files |= arrays_files(result)
    return write(files, result, what, storage)


def segments_files(result: KeptResult, segmentation: Segmentation) -> dict[str, bytes]:
    """The id map as a PNG and its JSON in the COCO panoptic format, by their names."""
    name = result.stem
    content = panoptic_json(segmentation, result.config, result.file_name or f"{name}.jpg", f"{name}_segments.png")
    return {
        f"{name}_segments.png": encode(id_map_png(segmentation), "png"),
        f"{name}_segments.json": json.dumps(content, indent=1).encode(),
    }


def arrays_files(result: KeptResult) -> dict[str, bytes]:
    """What ``trace_arrays`` describes, by its name."""
    archive = io.BytesIO()
    np.savez_compressed(archive, **trace_arrays(result))
    return {f"{result.stem}_trace.npz": archive.getvalue()}


def write(files: dict[str, bytes], result: KeptResult, what: str, storage: Storage) -> Path:
    """Writes one file, or several as a zip that is named after ``what``, as a download and returns its path."""
    if len(files) > 1:
        files = {f"{result.stem}_{what}.zip": _zip(files)}
    [(file_name, data)] = files.items()
    return storage.write_download(file_name, data)


def overlay_files(
    result: KeptResult,
    segmentation: Segmentation,
    opacity: float = 0.5,
    outlines: bool = True,
    names: bool = False,
    hidden: Collection[tuple[int, int]] = (),
) -> dict[str, bytes]:
    """The photo with its segments but for the hidden ones as a PNG, by its name."""
    kept_id = np.zeros(len(segmentation.segments) + 1, np.int32)
    for segment in segmentation.segments:
        if not any((segment.category_id, query) in hidden for query in segment.queries):
            kept_id[segment.id] = segment.id
    shown = replace(segmentation, ids=kept_id[segmentation.ids]) if hidden else segmentation
    return {f"{result.stem}_overlay.png": encode(render(result.photo, shown, opacity, outlines, names), "png")}


def _zip(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, data in files.items():
            # The other files are compressed already.
            writer.writestr(name, data, zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED)
    return archive.getvalue()

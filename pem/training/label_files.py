"""Label PNGs and their photos: opened as pairs, and compared with the JSON.

A label PNG stores the segment id of every pixel as R + 256 G + 65536 B, and 0 where there is no segment.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pem.photos import ImageError, open_photo, orientation
from pem.training.coco import Record, Split
from pem.training.target import NONE_OF_THESE

CHECKED_FILES = 1_000  # when a split is opened; the others are checked when they are read
LOSSLESS = ("PNG", "TIFF", "BMP")
_log = logging.getLogger("pem")


def check_files(split: Split, json_name: str) -> tuple[str, set[int]]:
    """Compares photos and label PNGs with the JSON, CHECKED_FILES of them at even distances.

    Returns a hash of all labels (of what the JSON says and the ids in the files that were read) and the indices of the
    images that were checked. Raises ValueError for the first image that is wrong, and says how many more are.
    """
    count = len(split.records)
    chosen = {step * count // min(count, CHECKED_FILES) for step in range(min(count, CHECKED_FILES))}
    seal = hashlib.sha256(repr(split.categories).encode())

    def look_at(index: int) -> tuple[str, str, str]:
        """What is wrong with an image, what is odd, and the state of its labels."""
        record = split.records[index]
        if index not in chosen:
            return "", "", ""  # not opened at all: a damaged file may be replaced while a run waits
        try:
            _, panoptic, _ = open_pair(record)
            with naming(record.panoptic_path):
                ids = to_ids(panoptic.convert("RGB"))
            oddity = compare_ids(record, ids, split.partly_labelled)
        except ValueError as error:
            return str(error), "", ""
        return "", oddity, str(zlib.crc32(ids.tobytes()))

    with ThreadPoolExecutor(4) as pool:
        problems, oddities, states = zip(*pool.map(look_at, range(count)), strict=True)
    if wrong := [problem for problem in problems if problem]:
        more = f" ({len(wrong) - 1} more images of {json_name} have a fault.)" if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)
    if odd := [oddity for oddity in oddities if oddity]:
        _log.warning(f"{odd[0]} (So it is in {len(odd)} of {len(chosen)} images.)")
    for record, state in zip(split.records, states, strict=True):
        fields = (record.segment_ids, record.labels, record.pseudo, record.crowd_ids, record.crowd_labels)
        seal.update(repr((record.file_name, state, *(x.tolist() for x in (*fields, record.exhaustive)))).encode())
    return seal.hexdigest(), chosen


def open_pair(record: Record) -> tuple[Image.Image, Image.Image, bool]:
    """The photo and the label PNG, neither decoded yet, and whether the photo is to be turned upright.

    Labels belong to the upright photo. If only the photo as it is stored has their size, they belong to that. Raises
    ValueError for a file that cannot be used, and for a photo and labels of different sizes.
    """
    image, panoptic = (_open(path) for path in (record.image_path, record.panoptic_path))
    compression = str(panoptic.info.get("compression", ""))
    if panoptic.format not in LOSSLESS or "jpeg" in compression or compression == "webp":
        raise ValueError(
            f"{record.panoptic_path} is a {compression} {panoptic.format} file".replace("  ", " ")
            + ", which may alter ids; save the segment ids as PNG."
        )
    # Some tools store few colours as a palette, and plain black as grey. This loses nothing.
    lists_none = len(record.segment_ids) + len(record.crowd_ids) == 0
    if panoptic.mode not in ("RGB", "RGBA", "P") and not (lists_none and panoptic.mode in ("1", "L", "LA")):
        raise ValueError(
            f"{record.panoptic_path} has no three channels for R + 256 G + 65536 B; save the segment ids as RGB."
        )
    if any(";16" in str(tile) for tile in getattr(panoptic, "tile", ())):  # as Pillow writes the depth
        raise ValueError(f"{record.panoptic_path} has 16 bits in each channel; save the segment ids as RGB of 8 bits.")
    turn = orientation(image)
    upright_size = image.size[::-1] if turn >= 5 else image.size
    if panoptic.size not in (image.size, upright_size):
        stored = f", stored as {image.width} x {image.height} with EXIF orientation {turn}" if turn != 1 else ""
        raise ValueError(
            f"{record.image_path} has {upright_size[0]} x {upright_size[1]} pixels{stored}, and its labels"
            f" {record.panoptic_path.name} {panoptic.width} x {panoptic.height}; label the same image."
        )
    return image, panoptic, panoptic.size == upright_size


def _open(path: Path) -> Image.Image:
    try:
        return open_photo(path)
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from error


def compare_ids(record: Record, ids: np.ndarray, partly_labelled: bool) -> str:
    """Raises ValueError if a segment that the JSON lists has no pixel in ``ids``, int32 [H, W], the ids of the PNG.

    Returns what is merely odd, or "": ids that the JSON does not list, for example because it lists fewer classes.
    """
    flat = ids.ravel()
    # Neighbours mostly are of one segment, so one pixel of each run of equal ids is enough.
    present = set(np.unique(flat[np.flatnonzero(np.diff(flat, prepend=-1))]).tolist()) - {0}
    listed = {*record.segment_ids.tolist(), *record.crowd_ids.tolist()}
    if partly_labelled:
        present -= {NONE_OF_THESE} - listed
    lacking, extra = sorted(listed - present), sorted(present - listed)
    if lacking and {(x & 255) << 16 | x & 65280 | x >> 16 for x in present} >= listed:
        raise ValueError(
            f"{record.panoptic_path} has its channels in the order B, G, R: swapped, its ids are those of the JSON;"
            " save R + 256 G + 65536 B in the order R, G, B."
        )
    unlisted = ""
    if extra:
        unlisted = f"has {np.isin(ids, extra).sum()} pixels of id {_some(extra)}, which the JSON does not list"
    if lacking:
        also = f", and {unlisted}" if extra else ""
        raise ValueError(
            f"{record.panoptic_path} has no pixel of segment {_some(lacking)}, which the JSON lists{also};"
            " make both agree."
        )
    return f"{record.panoptic_path} {unlisted}: they are read as no segment." if extra else ""


def to_ids(panoptic: Image.Image) -> np.ndarray:
    """int32 [H, W] from the three channels of an RGB image."""
    rgb = np.asarray(panoptic).astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file in errors of PIL, which do not."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read ({error}); replace the file.") from error

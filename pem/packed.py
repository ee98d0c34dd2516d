"""Segmentations in little memory: arrays as run lengths, which take a hundredth of the size of an id map."""

from __future__ import annotations

from typing import Any

import numpy as np

from pem.outputs import Segmentation


def run_lengths(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of equal values of an array [n] begin, and how long they are."""
    is_start = np.ones(flat.size, bool)
    is_start[1:] = flat[1:] != flat[:-1]
    starts = is_start.nonzero()[0]
    return starts, np.diff(starts, append=flat.size)


def bounding_boxes(ids: np.ndarray) -> list[tuple[slice, slice]]:
    """The rows and columns that each of the ids 1, 2, ... of a map [H, W] spans; both end at 0 if it has none."""
    height, width = ids.shape
    is_start = np.ones(ids.shape, bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=is_start[:, 1:])
    rows, lefts = is_start.nonzero()
    rights = np.append(lefts[1:], 0)
    rights[rights == 0] = width  # the next run begins a row
    run_ids = ids[rows, lefts]
    count = int(ids.max(initial=0)) + 1
    first, last = np.full((2, count), max(height, width)), np.zeros((2, count), int)
    for axis, starts, stops in ((0, rows, rows + 1), (1, lefts, rights)):
        np.minimum.at(first[axis], run_ids, starts)
        np.maximum.at(last[axis], run_ids, stops)
    return [
        (slice(top, bottom), slice(left, right))
        for (top, left), (bottom, right) in zip(first.T[1:].tolist(), last.T[1:].tolist(), strict=True)
    ]


class _Packed:
    """An attribute that keeps an array, or None, as runs of equal values."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_packed_{name}"

    def __set__(self, instance: Segmentation, array: np.ndarray | None) -> None:
        packed = None
        if array is not None:
            starts, lengths = run_lengths(array.ravel())
            packed = array.shape, array.ravel()[starts], lengths
        vars(instance)[self.name] = packed

    def __get__(self, instance: Segmentation, owner: type) -> Any:
        if vars(instance)[self.name] is None:
            return None
        shape, values, lengths = vars(instance)[self.name]
        array = np.repeat(values, lengths).reshape(shape)
        array.flags.writeable = False  # it is not kept, so what is written into it would be lost
        return array


class PackedSegmentation(Segmentation):
    """A Segmentation that keeps its arrays as run lengths: each time they are read they are made anew, read-only."""

    ids: np.ndarray = _Packed()  # type: ignore[assignment]
    masks: np.ndarray | None = _Packed()  # type: ignore[assignment]

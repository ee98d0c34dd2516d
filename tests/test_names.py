"""Where names stand in segmentations drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pem.names import deepest_place, write_names
from pem.outputs import Segment, Segmentation
from pem.render import render


def segmentation(ids: np.ndarray, *labels: str) -> Segmentation:
    areas = [int((ids == i + 1).sum()) for i in range(len(labels))]
    return Segmentation(
        ids,
        tuple(
            Segment(i + 1, 0, label, True, 0.9, areas[i], (0, 0, 1, 1), (i,), (0, 0, 200))
            for i, label in enumerate(labels)
        ),
    )


def written(segments: Segmentation) -> np.ndarray:
    """Where a grey picture is no longer grey, bool [H, W]."""
    return (write_names(np.full((*segments.ids.shape, 3), 128, np.uint8), segments) != 128).any(axis=2)


@pytest.mark.parametrize("scale", [1, 9])
def test_the_deepest_place_is_in_the_thick_part_and_not_in_the_middle(scale: int) -> None:
    ids = np.zeros((90, 150), np.int32)
    ids[40:50, :110] = 1  # a stem with a square at its end
    ids[20:70, 90:140] = 1
    ids = ids.repeat(scale, 0).repeat(scale, 1)
    y, x, depth = deepest_place(ids, 1)
    assert (y, x) == pytest.approx((45 * scale, 115 * scale), abs=4 * scale)
    assert depth == pytest.approx(25 * scale, abs=2 * scale)


def test_the_edge_of_the_image_is_an_edge() -> None:
    y, x, depth = deepest_place(np.ones((40, 60), np.int32), 1)
    assert (y, x) == pytest.approx((20, 30), abs=1) and depth == 20


def test_an_id_that_is_nowhere_has_no_depth() -> None:
    assert deepest_place(np.zeros((8, 8), np.int32), 1) == (0, 0, 0)


def test_each_name_stands_in_its_segment() -> None:
    ids = np.ones((200, 300), np.int32)
    ids[:, 150:] = 2
    found = written(segmentation(ids, "cat", "dining-table"))
    rows, cols = np.nonzero(found)
    assert 85 < rows.min() and rows.max() < 115
    assert found[:, :150].any() and found[:, 150:].any() and not found[:, 140:160].any()


def test_what_is_thinner_than_its_name_has_none() -> None:
    ids = np.zeros((200, 300), np.int32)
    ids[100:108] = 1
    assert not written(segmentation(ids, "pole-sign")).any()


def test_of_two_names_that_would_cover_each_other_the_larger_segment_has_its_own() -> None:
    ids = np.zeros((200, 300), np.int32)
    ids[:, 130:155] = 2
    ids[:, 155:190] = 1
    _, cols = np.nonzero(written(segmentation(ids, "dining-table", "dining-table")))
    assert (cols.min() + cols.max()) / 2 == pytest.approx(172, abs=3)
    _, cols = np.nonzero(written(segmentation(np.where(ids == 2, 1, 0), "dining-table")))
    assert (cols.min() + cols.max()) / 2 == pytest.approx(142, abs=3)  # alone, it had room


def test_a_name_stays_inside_the_image() -> None:
    ids = np.zeros((200, 300), np.int32)
    ids[:, :30] = 1
    found = written(segmentation(ids, "picture-mirror"))
    _, cols = np.nonzero(found)
    assert cols.min() == 0 and found[:, 40:].any()  # its round corners touch the edge: nothing is cut off
    reference = written(segmentation(np.ones((200, 300), np.int32), "picture-mirror"))
    assert found.sum() == pytest.approx(reference.sum(), rel=0.1)


def test_a_name_that_the_image_cannot_hold_is_left_out() -> None:
    assert not written(segmentation(np.ones((300, 60), np.int32), "chest of drawers")).any()
    assert not written(segmentation(np.ones((100, 200), np.int32), " ")).any()


def test_names_of_any_european_language_and_on_two_lines_are_written() -> None:
    def picture(name: str) -> bytes:
        ids = np.ones((100, 200), np.int32)
        return write_names(np.zeros((100, 200, 3), np.uint8), segmentation(ids, name)).tobytes()

    names = ["çiş", "çiğ", "кот", "пёс", "γάτα", "γίδα", "Tür", "Tor"]
    assert len({picture(name) for name in names}) == len(names)  # letters that a font lacks look all alike
    assert picture("dining\ntable") == picture("dining table")


def test_an_overlay_has_names_when_asked() -> None:
    segments = segmentation(np.ones((100, 200), np.int32), "cat")
    photo = np.full((100, 200, 3), 128, np.uint8)
    bare, named = render(photo, segments), render(photo, segments, names=True)
    assert np.array_equal(named, write_names(bare, segments)) and not np.array_equal(named, bare)
    named[:] = 0  # it is the caller's

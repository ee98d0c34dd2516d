"""Overlays, legends and exports of segmentations drawn by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pem.config import get_config
from pem.outputs import Segment, Segmentation
from pem.render import id_map_png, legend, panoptic_json, render

RED, BLUE = (200, 0, 0), (0, 0, 100)


def segment(id: int, category_id: int, label: str, area_px: int, color: tuple[int, int, int]) -> Segment:
    return Segment(id, category_id, label, True, 0.9, area_px, (0, 0, 1, 1), (id,), color)


def halves(side: int = 8) -> Segmentation:
    """Void above; below it a red half and a smaller blue part."""
    ids = np.zeros((side, side), np.int32)
    ids[side // 2 :, : side // 4] = 2
    ids[side // 2 :, side // 4 :] = 1
    areas = [int((ids == n).sum()) for n in (1, 2)]
    return Segmentation(ids, (segment(1, 2, "car", areas[0], RED), segment(2, 0, "person", areas[1], BLUE)))


def test_segments_are_blended_void_is_not_and_lines_part_them() -> None:
    image = np.full((8, 8, 3), (100, 50, 0), np.uint8)
    painted = render(image, halves())
    assert painted.dtype == np.uint8 and painted.shape == image.shape
    assert (painted[:4] == image[:4]).all()  # void, lines included: they belong to what they surround
    assert painted[6, 5].tolist() == pytest.approx([150, 25, 0], abs=1)
    assert painted[6, 1].tolist() == pytest.approx([50, 25, 50], abs=1)
    line = (painted > 150).all(axis=2)
    expected = np.zeros((8, 8), bool)
    expected[4, :] = expected[4:, 2] = True
    assert np.array_equal(line, expected)


def test_opacity_goes_from_the_image_to_flat_colours() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(render(image, halves(), opacity=0), image)
    flat = render(image, halves(), opacity=1)
    assert (flat[5:, 3:] == RED).all() and (flat[5:, :2] == BLUE).all()
    assert np.array_equal(flat[:4], image[:4])


def test_what_has_no_segment_any_more_is_void() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    found = halves()
    person = Segmentation(found.ids, found.segments[1:])
    painted = render(image, person, opacity=1, outlines=False)
    assert (painted[5:, 3:] == 100).all() and (painted[5:, :2] == BLUE).all()
    assert np.array_equal(render(image, Segmentation(found.ids, ()), outlines=False), image)


def test_without_outlines_only_areas_are_painted() -> None:
    painted = render(np.zeros((8, 8, 3), np.uint8), halves(), opacity=1, outlines=False)
    assert {tuple(color) for color in painted.reshape(-1, 3).tolist()} == {(0, 0, 0), RED, BLUE}


def test_no_opacity_overflows_a_byte() -> None:
    image = np.full((8, 8, 3), 255, np.uint8)
    white = Segmentation(np.ones((8, 8), np.int32), (segment(1, 0, "car", 64, (255, 255, 255)),))
    for opacity in np.linspace(0, 1, 101):
        assert render(image, white, opacity=float(opacity)).min() >= 254


def test_lines_of_large_images_are_two_pixels_wide() -> None:
    painted = render(np.zeros((800, 800, 3), np.uint8), halves(800))
    assert [(painted[600, col] > 100).all() for col in (198, 199, 200, 201)] == [False, True, True, False]


def test_the_image_is_left_alone_and_may_be_pil() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    painted = render(image, halves())
    assert not image.any()
    assert np.array_equal(render(Image.fromarray(image), halves()), painted)


def test_a_photo_is_read_as_predict_reads_it(tmp_path: Path) -> None:
    """Upright, with transparency on white and deep pixels scaled, from a path or from PIL."""
    nothing = Segmentation(np.zeros((12, 8), np.int32), ())
    path = tmp_path / "photo.png"
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))
    exif = stored.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stored.save(path, exif=exif)
    upright = np.asarray(stored.rotate(-90, expand=True))
    for photo in (path, str(path), Image.open(path)):
        assert np.array_equal(render(photo, nothing), upright)
    assert (render(Image.new("RGBA", (8, 12)), nothing) == 255).all()
    assert (render(Image.new("I;16", (8, 12), 65535 // 5), nothing) == 51).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to an image"):
        render(np.zeros((8, 9, 3), np.uint8), halves())
    with pytest.raises(ValueError, match=r"must be uint8 RGB of shape \[height, width, 3\], not float32"):
        render(np.zeros((8, 8, 3), np.float32), halves())
    with pytest.raises(ValueError, match="opacity is 1.5"):
        render(np.zeros((8, 8, 3), np.uint8), halves(), opacity=1.5)


def test_legend_has_the_largest_first() -> None:
    rows = legend(halves())
    assert [(row.label, row.color, row.score, row.area_fraction) for row in rows] == [
        ("car", RED, 0.9, 24 / 64),
        ("person", BLUE, 0.9, 8 / 64),
    ]


def test_ids_are_stored_as_coco_does() -> None:
    ids = np.array([[0, 1], [256, 3 + 4 * 256 + 5 * 65536]], np.int32)
    colors = id_map_png(Segmentation(ids, ()))
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[0, 0, 0], [1, 0, 0]], [[0, 1, 0], [3, 4, 5]]]


def test_json_has_the_data_sets_own_category_ids() -> None:
    record = panoptic_json(halves(), get_config("default"), "photo.jpg", "photo.png")
    record = json.loads(json.dumps(record))
    assert record["file_name"] == "photo.png"
    assert record["image"] == {"file_name": "photo.jpg", "height": 8, "width": 8}
    assert record["segments_info"][0] == {
        "id": 1,
        "category_id": 3,  # class index 2
        "area": 24,
        "bbox": [0, 0, 1, 1],
        "iscrowd": 0,
        "score": 0.9,
        "queries": [1],
    }
    names = {category["id"]: category["name"] for category in record["categories"]}
    assert [names[one["category_id"]] for one in record["segments_info"]] == ["car", "person"]

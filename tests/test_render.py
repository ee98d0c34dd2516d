"""Overlays, legends and exports of segmentations drawn by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pem.coco import id_map_png, panoptic_json
from pem.config import get_config
from pem.outputs import Segment, Segmentation
from pem.render import legend, render

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


def test_json_is_a_coco_panoptic_file_with_the_data_sets_own_category_ids() -> None:
    record = json.loads(
        json.dumps(panoptic_json(halves(), get_config("default"), "photo.jpg", "photo.png", image_id=7))
    )
    assert list(record) == ["info", "images", "annotations", "categories"]
    assert record["info"]["model"] == "default"
    assert record["images"] == [{"id": 7, "file_name": "photo.jpg", "width": 8, "height": 8}]
    [annotation] = record["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (7, "photo.png") and "note" not in annotation
    assert annotation["segments_info"][0] == {
        "id": 1,
        "category_id": 3,  # class index 2
        "area": 24,
        "bbox": [2, 4, 6, 4],
        "iscrowd": 0,
        "score": 0.9,
        "queries": [1],
    }
    names = {category["id"]: category["name"] for category in record["categories"]}
    assert [names[one["category_id"]] for one in annotation["segments_info"]] == ["car", "person"]
    assert record["categories"][28] == {
        "id": 29,
        "name": "sky",
        "isthing": 0,
        "supercategory": "stuff",
        "color": [120, 190, 240],
    }


def test_json_of_instances_says_what_the_png_shows_and_leaves_out_what_it_hides() -> None:
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :, :4], masks[1, :, :2], masks[2, 2:4] = True, True, True  # the second is wholly behind the first
    ids = np.zeros((8, 8), np.int32)
    ids[2:4], ids[:, :4] = 3, 1
    segments = tuple(
        replace(
            segment(n + 1, 0, "person", int(mask.sum()), RED), bbox=(0, 2, 8, 2) if n == 2 else (0, 0, 4 - 2 * n, 8)
        )
        for n, mask in enumerate(masks)
    )
    [annotation] = panoptic_json(Segmentation(ids, segments, masks), get_config("default"), "a.jpg", "a.png")[
        "annotations"
    ]
    front, cut = annotation["segments_info"]
    assert (front["id"], front["area"], front["bbox"]) == (1, 32, [0, 0, 4, 8])
    assert (front["whole_area"], front["whole_bbox"]) == (32, [0, 0, 4, 8])
    assert (cut["id"], cut["area"], cut["bbox"]) == (3, 8, [4, 2, 4, 2])
    assert (cut["whole_area"], cut["whole_bbox"]) == (16, [0, 2, 8, 2])
    assert annotation["note"].endswith("Left out, because wholly covered: 1.")


def test_json_of_nothing_has_a_photo_without_segments() -> None:
    nothing = Segmentation(np.zeros((8, 6), np.int32), ())
    record = panoptic_json(nothing, get_config("default"), "a.jpg", "a.png")
    assert record["images"][0]["width"] == 6 and record["annotations"][0]["segments_info"] == []


def test_json_says_which_model_and_its_classes() -> None:
    classes = ((5, "<b>Äpfel</b>", True), (9, "苹果", False))
    config = replace(get_config("default"), name="fruit", trained="2026-11-27", num_classes=2, categories=classes)
    record = panoptic_json(halves_of("<b>Äpfel</b>"), config, "a.jpg", "a.png")
    assert (record["info"]["model"], record["info"]["trained"]) == ("fruit", "2026-11-27")
    assert [(c["id"], c["name"], bool(c["isthing"])) for c in record["categories"]] == [*classes]
    assert record["annotations"][0]["segments_info"][0]["category_id"] == 5


def test_json_can_be_written_whatever_the_file_is_called() -> None:
    record = panoptic_json(halves(), get_config("default"), "a\udce9.jpg", "a\udce9.png")  # no text in UTF-8
    assert record["images"][0]["file_name"] == "a\ufffd.jpg"
    # What a system that knows no UTF-8 makes of a name that is in it.
    record = panoptic_json(halves(), get_config("default"), "\udcc3\udca9.jpg", "a.png")
    assert record["images"][0]["file_name"] == "\u00e9.jpg"


def halves_of(label: str) -> Segmentation:
    return Segmentation(np.ones((8, 8), np.int32), (segment(1, 0, label, 64, RED),))

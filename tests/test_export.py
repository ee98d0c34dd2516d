"""What the page's downloads contain: pixels, ids, and positions in the photo's own size."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from halves_model import CAT, HalvesModel
from PIL import Image
from small_model import small_model

import pem
from pem.explain import Evolution
from pem.render import render
from ui.engine import Engine
from ui.export import KINDS, export_file, trace_arrays, trace_json
from ui.file_names import plain_name, safe_stem
from ui.results import KeptLayer, KeptOutput, KeptResult
from ui.storage import Storage

# The network reads photos with a short side of 64 px here: this one is enlarged to 64 x 128, of 50 x 100.
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small_model(short_side_px=64, max_long_side_px=256))


@pytest.fixture(scope="module")
def result(engine: Engine) -> KeptResult:
    return engine.result(engine.run(PHOTO, "cat", file_name="cat.jpg"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
def hand_made() -> KeptResult:
    """A photo of 50 x 100 that filled 60 x 120 of an input of 64 x 128; one layer, one head, three queries, two steps.

    Query 0 picked token (0, 0), query 1 token (1, 3), which reaches into the padding, query 2 had no foreground.
    """
    config = dataclasses.replace(pem.get_config("default"), name="hand-made", num_queries=3)
    layer = KeptLayer(
        stride=32,
        grid_size=(2, 4),
        prototype_index=np.array([[0, 7, 0]], np.int32),
        similarity=np.array([[0.5, -0.25, 0.125]], np.float16),
        allowed_fraction=np.array([0.5, 1.0, 0.0], np.float32),
        target=np.zeros((3, 4), np.float16),
        key=np.zeros((8, 4), np.float16),
        banned_bits=np.zeros((3, 1), np.uint8),
    )
    numbers = np.array([[0.25, 0.5, 0.75], [0.5, 0.25, 1.0]], np.float32)  # of two steps and three queries
    evolution = Evolution(
        category_id=np.array([[0, 1, 2], [3, 1, 2]]),
        score=numbers,
        no_object_score=1 - numbers,
        area_fraction=numbers / 2,
        final_iou=np.array([[0.5, 0.5, 0.5], [1, 1, 1]], np.float32),
        masks=np.arange(2 * 3 * 15 * 30, dtype=np.uint16).astype(np.uint8).reshape(2, 3, 15, 30),
    )
    logits = torch.zeros(1, 3, config.num_classes + 1, dtype=torch.float16)
    logits[0, :, 0] = torch.tensor([0.0, 20.0, 0.0])
    output = KeptOutput(logits, torch.zeros(1, 3, 16, 32, dtype=torch.float16))
    sizes = {
        "original_size": (50, 100),
        "shown_size": (50, 100),
        "resized": np.zeros((60, 120, 3), np.uint8),
    }
    return KeptResult("", "", config, b"", output=output, evolution=evolution, layers=(layer,), stage_ms={}, **sizes)


def test_prototypes_lie_at_the_centres_of_their_cells_in_pixels_of_the_photo(hand_made) -> None:
    trace = json.loads(json.dumps(trace_json(hand_made)))
    assert trace["model"] == "hand-made"
    assert trace["photo"] == {"name": "", "file_name": "", "height": 50, "width": 100}
    assert trace["layers"] == [{"stride": 32, "rows": 2, "cols": 4}]
    first, second, third = (query["layers"][0] for query in trace["queries"])
    # The centre of the first cell is pixel 16 of the input; 120 of its pixels are 100 of the photo.
    assert first["prototypes"] == [
        {"head": 0, "token": 0, "row": 0, "col": 0, "x": 13.33, "y": 13.33, "similarity": 0.5}
    ]
    # Token 7 of four columns: row 1, column 3, centred on input pixel (48, 112).
    assert second["prototypes"] == [
        {"head": 0, "token": 7, "row": 1, "col": 3, "x": 93.33, "y": 40.0, "similarity": -0.25}
    ]
    assert (first["no_foreground"], first["allowed_fraction"]) == (False, 0.5)
    assert third == {"allowed_fraction": 0.0, "no_foreground": True, "prototypes": []}


def test_a_trace_tells_each_step_and_can_be_of_one_query(hand_made) -> None:
    trace = trace_json(hand_made, query=1)
    assert trace["queries"] == [trace_json(hand_made)["queries"][1]]
    last = trace["queries"][0]["steps"][1]
    assert last["category"] == pem.categories.categories_for(hand_made.config)[1].name
    assert {**last, "category": ""} == {
        "category_id": 1,
        "category": "",
        "score": 0.25,
        "no_object_score": 0.75,
        "area_fraction": 0.125,
        "final_iou": 1.0,
    }
    for query in (-1, 3):
        with pytest.raises(ValueError, match="from 0 to 2"):
            trace_json(hand_made, query)


def test_the_arrays_say_the_same(hand_made) -> None:
    arrays = trace_arrays(hand_made)
    assert arrays["prototype_index"].tolist() == [[[0, 7, 0]]]
    assert arrays["prototype_x"][0, 0, :2] == pytest.approx([16 / 120 * 100, 112 / 120 * 100])
    assert arrays["prototype_y"][0, 0, :2] == pytest.approx([16 / 60 * 50, 48 / 60 * 50])
    assert arrays["allowed_fraction"].tolist() == [[0.5, 1, 0]]
    assert (arrays["strides"].tolist(), arrays["grid_sizes"].tolist()) == ([32], [[2, 4]])
    assert (arrays["masks"] == hand_made.evolution.masks).all()
    assert arrays["class_probs"].sum(1) == pytest.approx([1, 1, 1])
    assert arrays["class_probs"][:, 0] == pytest.approx([1 / 48, 1, 1 / 48], abs=1e-6)
    assert len(arrays["categories"]) == 47
    assert not any(array.dtype == object for array in arrays.values())  # such files would not load without pickle


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_segments_are_the_reading_in_the_photo_s_own_size(
    engine: Engine, result: KeptResult, storage: Storage, task: str
) -> None:
    path = export_file(engine, result, "segments", storage, task, 0.05, 0.0)
    expected = engine.read(result, task, 0.05, 0.0).segmentation
    assert path.parents[1] == storage.downloads and path.name == "cat_segments.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["cat_segments.png", "cat_segments.json"]
        pixels = np.asarray(Image.open(io.BytesIO(archive.read("cat_segments.png")))).astype(np.int32)
        content = json.loads(archive.read("cat_segments.json"))
    ids = pixels @ [1, 256, 65536]
    assert ids.shape == (50, 100) and (ids == expected.ids).all()
    [image], [annotation] = content["images"], content["annotations"]
    assert image == {"id": 1, "file_name": "cat.jpg", "height": 50, "width": 100}
    assert (annotation["image_id"], annotation["file_name"]) == (1, "cat_segments.png")
    assert expected.segments
    areas = {one["id"]: one["area"] for one in annotation["segments_info"]}
    assert ("note" in annotation) == (task == "instance")
    assert areas == {n: int((ids == n).sum()) for n in np.unique(ids[ids > 0]).tolist()}


def test_the_overlay_is_painted_over_the_photo(engine: Engine, result: KeptResult, storage: Storage) -> None:
    path = export_file(engine, result, "overlay", storage, "semantic", opacity=0.0)
    assert path.name == "cat_overlay.png"
    kept = np.asarray(Image.open(io.BytesIO(result.jpeg)))
    assert (np.asarray(Image.open(path)) == kept).all()  # at opacity 0
    flat = np.asarray(Image.open(export_file(engine, result, "overlay", storage, "semantic", opacity=1.0)))
    segmentation = engine.read(result, "semantic").segmentation
    colors = {segment.color for segment in segmentation.segments} | {(255, 255, 255)}  # and the lines between them
    assert set(map(tuple, flat.reshape(-1, 3).tolist())) <= colors


@pytest.mark.parametrize("outlines", [True, False])
def test_the_overlay_leaves_out_hidden_segments_and_lines(storage: Storage, outlines: bool) -> None:
    engine = Engine(HalvesModel())
    result = engine.result(engine.run(PHOTO))
    path = export_file(engine, result, "overlay", storage, "panoptic", opacity=1, outlines=outlines, hidden=[(CAT, 0)])
    painted = np.asarray(Image.open(path))
    couch = engine.read(result, "panoptic").segmentation.segments[1]
    assert (painted[:, :50] == np.asarray(result.photo)[:, :50]).all()
    assert (painted[:, 51:] == couch.color).all()
    assert (painted[:, 50] == ((255, 255, 255) if outlines else couch.color)).all()


def test_the_overlay_has_names_when_the_page_has_them(storage: Storage) -> None:
    engine = Engine(HalvesModel())
    result = engine.result(engine.run(PHOTO))
    bare = export_file(engine, result, "overlay", storage, "panoptic").read_bytes()
    named = export_file(engine, result, "overlay", storage, "panoptic", names=True).read_bytes()
    segmentation = engine.read(result, "panoptic").segmentation
    painted = np.asarray(Image.open(io.BytesIO(named)))
    assert named != bare and np.array_equal(painted, render(result.photo, segmentation, names=True))


def test_traces_are_files_that_open(engine: Engine, result: KeptResult, storage: Storage) -> None:
    path = export_file(engine, result, "trace-json", storage, "panoptic")
    assert path.name == "cat_trace.json"
    assert json.loads(path.read_text(encoding="utf-8")) == trace_json(result)
    path = export_file(engine, result, "trace-npz", storage, "panoptic")
    assert path.name == "cat_trace.npz"
    with np.load(path) as arrays:
        assert arrays["prototype_index"].shape == (6, 4, 12)
        assert arrays["masks"].shape == (7, 12, 16, 32)


@pytest.mark.parametrize(
    ("file_name", "stem"),
    [
        ("", "photo"),
        ("My cat (2).JPG", "My_cat_(2)"),
        ("苹果.v2.png", "苹果_v2"),
        ("शिक्षक", "शिक्षक"),
        (".jpg", "jpg"),
        ("con.tar.png", "con_tar"),
        ("a?b#c%41&<b>:*.png", "a_b_c_41_b"),
        ("..", "photo"),
        ("x" * 300 + ".png", "x" * 60),
    ],
)
def test_files_are_named_after_the_photo_s_as_every_system_takes_it(file_name: str, stem: str) -> None:
    assert safe_stem(file_name) == stem


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cat.jpg", "cat.jpg"),
        ("C:\\Users\\me\\cat.jpg", "cat.jpg"),
        ("../../etc/passwd", "passwd"),
        ("folder/", ""),
        ("a\x00b\n\u202e\udce9.jpg", "ab.jpg"),
        ("<b> 苹果.jpg", "<b> 苹果.jpg"),
    ],
)
def test_of_a_visitor_s_file_the_name_alone_is_kept(given: str, name: str) -> None:
    assert plain_name(given) == name


def test_the_visitor_s_file_name_is_kept_in_the_export(engine: Engine, storage: Storage) -> None:
    result = engine.result(engine.run(PHOTO, file_name="Mein Kätzchen <b>.PNG"))
    path = export_file(engine, result, "segments", storage, "panoptic")
    assert path.name == "Mein_Kätzchen_b_segments.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["Mein_Kätzchen_b_segments.png", "Mein_Kätzchen_b_segments.json"]
        content = json.loads(archive.read("Mein_Kätzchen_b_segments.json"))
    assert content["images"][0]["file_name"] == "Mein Kätzchen <b>.PNG"
    assert content["annotations"][0]["file_name"] == "Mein_Kätzchen_b_segments.png"


def test_everything_is_one_zip_named_after_the_photo(engine: Engine, result: KeptResult, storage: Storage) -> None:
    path = export_file(engine, dataclasses.replace(result, name="", file_name=""), "all", storage, "panoptic")
    assert path.name == "photo_all.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "photo_overlay.png",
            "photo_segments.png",
            "photo_segments.json",
            "photo_trace.json",
            "photo_trace.npz",
        ]


def test_unknown_kinds_are_told_which_there_are(engine: Engine, result: KeptResult, storage: Storage) -> None:
    with pytest.raises(ValueError, match="'film'.*trace-npz"):
        export_file(engine, result, "film", storage, "panoptic")
    with pytest.raises(ValueError, match="opacity is 2"):
        export_file(engine, result, "overlay", storage, "panoptic", opacity=2, outlines=False)
    assert KINDS == ("overlay", "segments", "trace-json", "trace-npz", "all")  # export.html has a button for each
    assert not list(storage.downloads.iterdir())

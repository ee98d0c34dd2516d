"""What the command line and the page export is read by other people's readers of the COCO panoptic format, and by ours.

Each compares ids, classes and areas with the Segmentation that was exported.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from halves_model import CAT, COUCH, HalvesModel
from PIL import Image
from torch import Tensor

import pem.__main__
from pem.categories import categories_for
from pem.outputs import PEMOutput, Segmentation
from pem.training.data import PanopticDataset
from ui.engine import Engine
from ui.export import export_file
from ui.storage import Storage

Regions = dict[int, tuple[int, int]]  # of one photo: the category id and the area of each segment id
SIZES = {"park.jpg": (64, 96), "苹果.png": (48, 80), "Strand.jpg": (80, 64)}
TASKS = ("panoptic", "semantic", "instance")


class HiddenCat(HalvesModel):
    """Query 2 draws a second cat, wholly behind the first: of instances it can be one, in a PNG it shows no pixel."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [(5 * index + 5, f"Obst {index} 苹果", index != COUCH) for index in range(self.config.num_classes)]
        self.config = replace(self.config, name="fruit", categories=tuple(kinds))

    def decoder(self, mask_features: Tensor, levels: list[Tensor], trace: bool = False) -> PEMOutput:
        output = super().decoder(mask_features, levels, trace)
        masks, logits = output.mask_features.clone(), output.pred_logits.clone()
        masks[:, 2, :, : masks.shape[3] // 4] = 10
        logits[0, 2] = 0
        logits[0, 2, CAT] = 4.2
        return replace(output, mask_features=masks, pred_logits=logits)


@pytest.fixture(scope="module")
def model() -> HalvesModel:
    return HiddenCat().eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=95)
    return folder


@pytest.fixture(scope="module", params=TASKS)
def exported(
    request: pytest.FixtureRequest, model: HalvesModel, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A file of all photos by the command line, and what must be in it, by the name of the photo."""
    folder = tmp_path_factory.mktemp(f"exported-{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pem.__main__, "load_model", lambda *args, **kwargs: model)
        arguments = [str(photos), "--task", request.param, "--json", str(folder / "panoptic_val.json")]
        assert pem.__main__.main([*arguments, "--out", str(folder / "overlays"), "--no-names"]) == 0
    segmentations = {name: pem.predict(model, photos / name, request.param) for name in SIZES}
    expected = {name: regions(segmentation, model) for name, segmentation in segmentations.items()}
    for name, segmentation in segmentations.items():
        # The couch is stuff, so of instances there are the two cats.
        assert (len(segmentation.segments), len(expected[name])) == ((2, 1) if request.param == "instance" else (2, 2))
    return SimpleNamespace(json=folder / "panoptic_val.json", id_maps=folder / "panoptic_val", expected=expected)


def regions(segmentation: Segmentation, model: HalvesModel) -> Regions:
    """Those that show a pixel."""
    categories = categories_for(model.config)
    found = {s.id: (categories[s.category_id].id, int((segmentation.ids == s.id).sum())) for s in segmentation.segments}
    return {id: region for id, region in found.items() if region[1]}


def by_photo(read: Callable[[dict], Regions], json_path: Path) -> dict[str, Regions]:
    content = json.loads(json_path.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return {names[annotation["image_id"]]: read(annotation) for annotation in content["annotations"]}


def test_our_own_trainer_reads_it(exported: SimpleNamespace, model: HalvesModel, photos: Path) -> None:
    data = PanopticDataset(exported.json, photos, exported.id_maps, model.config)
    assert [category["name"] for category in data.categories] == [c[1] for c in model.config.categories]
    found = {}
    for index, record in enumerate(data.records):
        pixels, target = data.original(index)
        labels = [data.categories[label]["id"] for label in target.labels.tolist()]
        first = int(target.ids[target.ids >= 0].unique()[-1]) - len(labels) + 1
        areas = [int((target.ids == first + place).sum()) for place in range(len(labels))]
        assert np.asarray(pixels).shape[:2] == target.ids.shape == SIZES[record.file_name]
        found[record.file_name] = dict(zip(record.segment_ids.tolist(), zip(labels, areas, strict=True), strict=True))
    assert found == exported.expected


def test_panopticapi_reads_it(exported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip(
        "panopticapi.evaluation",
        reason="panopticapi is not installed: pip install --no-deps -r requirements-readers.txt",
    )
    content = json.loads(exported.json.read_text(encoding="utf-8"))
    categories = {category["id"]: category for category in content["categories"]}

    def read(annotation: dict) -> Regions:
        before = json.loads(json.dumps(annotation))
        [(truth, prediction)] = [(before, annotation)]
        quality = reader.pq_compute_single_core(
            0, [(truth, prediction)], str(exported.id_maps), str(exported.id_maps), categories
        )
        assert sum(one.tp for one in quality.pq_per_cat.values()) == len(annotation["segments_info"])
        assert not any(one.fp or one.fn for one in quality.pq_per_cat.values())
        # It has counted the areas of the prediction anew, in the PNG.
        assert [s["area"] for s in before["segments_info"]] == [int(s["area"]) for s in annotation["segments_info"]]
        return {s["id"]: (s["category_id"], int(s["area"])) for s in annotation["segments_info"]}

    assert by_photo(read, exported.json) == exported.expected


def test_hotcoco_reads_it(exported: SimpleNamespace) -> None:
    panoptic = pytest.importorskip("hotcoco.panoptic", reason="hotcoco is not installed: pip install hotcoco==1.3.0")
    evaluation = panoptic.PanopticEval(str(exported.json), str(exported.json))  # the folder is found by its name
    evaluation.evaluate()
    result = evaluation.results()
    assert result["All"]["pq"] == 1 and result["All"]["n"] > 0
    counts: dict[int, int] = {}
    for found in exported.expected.values():
        for category_id, _ in found.values():
            counts[category_id] = counts.get(category_id, 0) + 1
    assert {int(id): one["tp"] for id, one in result["per_class"].items() if one["tp"]} == counts
    assert evaluation.provenance() == "parity_verified", evaluation.reference_deviations()


def test_datumaro_reads_it(exported: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    datumaro = pytest.importorskip(
        "datumaro", reason="datumaro is not installed: pip install --no-deps -r requirements-readers.txt"
    )
    # As it wants data sets to lie: annotations beside images, with the split in both names.
    shutil.copytree(photos, tmp_path / "images" / "val")
    shutil.copytree(exported.id_maps, tmp_path / "annotations" / "panoptic_val")
    shutil.copy(exported.json, tmp_path / "annotations")
    data = datumaro.Dataset.import_from(str(tmp_path), "coco_panoptic")
    labels = data.categories()[datumaro.AnnotationType.label]
    ids = {c["name"]: c["id"] for c in json.loads(exported.json.read_text(encoding="utf-8"))["categories"]}
    found: dict[str, Regions] = {}
    for item in data:
        found[Path(item.media.path).name] = {
            int(mask.id): (ids[labels[mask.label].name], int(mask.image.sum())) for mask in item.annotations
        }
    assert found == exported.expected


@pytest.mark.parametrize("task", TASKS)
def test_the_page_s_zip_is_such_a_file(model: HalvesModel, photos: Path, tmp_path: Path, task: str) -> None:
    engine = Engine(model)
    photo = np.asarray(Image.open(photos / "苹果.png"))
    result = engine.result(engine.run(photo, file_name="苹果.png"))
    with zipfile.ZipFile(export_file(engine, result, "segments", Storage(tmp_path), task)) as archive:
        archive.extractall(tmp_path / "zip")
    [json_path] = (tmp_path / "zip").glob("*.json")
    data = PanopticDataset(json_path, photos, tmp_path / "zip", model.config)
    [record] = data.records
    assert record.image_path == photos / "苹果.png"
    expected = regions(engine.read(result, task).segmentation, model)
    labels = [data.categories[label]["id"] for label in record.labels.tolist()]
    assert dict(zip(record.segment_ids.tolist(), labels, strict=True)) == {
        id: kind for id, (kind, _) in expected.items()
    }
    content = json.loads(json_path.read_text(encoding="utf-8"))
    areas = {one["id"]: one["area"] for one in content["annotations"][0]["segments_info"]}
    assert areas == {id: area for id, (_, area) in expected.items()}

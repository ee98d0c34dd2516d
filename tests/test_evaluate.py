"""The evaluation as a whole: from a data folder and a model to a table."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import small_config, small_model
from torch import Tensor, nn

import pem
from pem.conditions import conditions
from pem.outputs import PEMOutput
from pem.training import evaluate as module
from pem.training.data import open_split

SIDE_PX = 64
PERSON, DOG, SKY = 0, 1, 2
CONFIG = dataclasses.replace(small_config(num_classes=3), short_side_px=SIDE_PX, max_long_side_px=SIDE_PX)


def write_photos(folder: Path) -> Path:
    """Two photos: sky above and two persons below, fully labelled; and one with a dog, for which only persons are
    labelled, next to a person that a machine named."""
    categories = [
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 2, "name": "dog", "isthing": 1},
        {"id": 3, "name": "sky", "isthing": 0},
    ]
    street = np.full((SIDE_PX, SIDE_PX), 10)
    street[32:, :32], street[32:, 32:] = 11, 12
    garden = np.full((SIDE_PX, SIDE_PX), 1)
    garden[:32, :32], garden[32:, :32], garden[32:, 32:] = 20, 21, 22
    for name in ("val", "panoptic_val"):
        (folder / name).mkdir()
    for name, ids in (("street", street), ("garden", garden)):
        # The photo is its own label, for the model below that knows everything.
        picture = Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=-1).astype(np.uint8))
        picture.save(folder / "val" / f"{name}.png")
        picture.save(folder / "panoptic_val" / f"{name}.png")
    content = {
        "categories": categories,
        "exhaustive": {"persons": ["person"]},
        "images": [
            {"id": 1, "file_name": "street.png", "source": "towns"},
            {"id": 2, "file_name": "garden.png", "source": "homes", "exhaustive": "persons"},
        ],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "street.png",
                "segments_info": [
                    {"id": 10, "category_id": 3},
                    {"id": 11, "category_id": 1},
                    {"id": 12, "category_id": 1},
                ],
            },
            {
                "image_id": 2,
                "file_name": "garden.png",
                "segments_info": [
                    {"id": 20, "category_id": 1},
                    {"id": 21, "category_id": 2},
                    {"id": 22, "category_id": 1, "pseudo": 1},
                ],
            },
        ],
    }
    (folder / "panoptic_val.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


class Clairvoyant(nn.Module):
    """Reads the segments off the photo: one query per value of the red channel, with the class given for it."""

    def __init__(self, class_of: dict[int, int]) -> None:
        super().__init__()
        self.class_of = class_of
        self.anchor = nn.Parameter(torch.zeros(()))
        self.runs = 0

    def forward(self, pixels: Tensor, trace: bool = False) -> PEMOutput:
        self.runs += 1
        red = (pixels[:, 0] * CONFIG.pixel_std[0] + CONFIG.pixel_mean[0]).round()[:, ::4, ::4]
        masks = torch.stack([red == value for value in self.class_of], dim=1) * 20.0 - 10
        logits = torch.full((1, len(self.class_of), CONFIG.num_classes + 1), -10.0)
        logits[0, torch.arange(len(self.class_of)), list(self.class_of.values())] = 10
        return PEMOutput(logits, torch.eye(len(self.class_of))[None], masks)


# Value 1 is where the garden has none of the judged classes; the semantic reading has to say something there.
TRUTH = {10: SKY, 11: PERSON, 12: PERSON, 20: PERSON, 21: DOG, 22: PERSON, 1: DOG}
ONE = pytest.approx(1, abs=0.002)  # at a corner between masks, no mask reaches one half


def test_a_model_that_knows_everything_scores_one(tmp_path: Path) -> None:
    model = Clairvoyant(TRUTH).eval()
    result = module.evaluate(model, CONFIG, open_split(write_photos(tmp_path), "val", CONFIG))
    assert model.runs == 2, "one run of the network per photo"
    overall = result["overall"]
    assert [overall[key] for key in ("miou", "pq", "sq", "rq", "pq_things", "pq_stuff")] == [ONE] * 6
    person, dog, sky = overall["per_class"]
    assert (person["category"], person["segments"]) == ("person", 3), "the machine-named person is not evaluated"
    assert (dog["segments"], dog["pq"], dog["iou"]) == (0, None, None), "nobody labelled all dogs"
    assert (sky["segments"], sky["iou"]) == (1, ONE)
    assert {source: scores["images"] for source, scores in result["per_source"].items()} == {"homes": 1, "towns": 1}


def test_sources_are_scored_apart_and_pooled(tmp_path: Path) -> None:
    # The sky is called a dog: wrong in the street, which labels both; in the garden nothing changes.
    result = module.evaluate(
        Clairvoyant({**TRUTH, 10: DOG}).eval(), CONFIG, open_split(write_photos(tmp_path), "val", CONFIG)
    )
    assert result["per_source"]["homes"]["pq"] == ONE
    # Persons 1, sky 0, and the invented dog 0.
    towns = result["per_source"]["towns"]
    assert (towns["pq"], towns["miou"]) == (pytest.approx(1 / 3, abs=0.001), pytest.approx(0.5, abs=0.001))
    assert result["overall"]["pq_things"] == pytest.approx(0.5, abs=0.001) and result["overall"]["pq_stuff"] == 0


def test_limit_and_conditions(tmp_path: Path) -> None:
    dataset = open_split(write_photos(tmp_path), "val", CONFIG)
    result = module.evaluate(Clairvoyant(TRUTH).eval(), CONFIG, dataset, limit=1)
    assert result["overall"]["images"] == 1
    about = result["conditions"]
    assert (about["device"], about["precision"], about["batch"]) == (conditions("cpu")["device"], "float32", 1)
    assert about["torch"] == torch.__version__ and about["short_side_px"] == SIDE_PX


def write_spots(folder: Path, categories: list[dict], name: str = "val") -> Path:
    """Three photos with one nut each, on ground that nobody labelled, and one without any."""
    (folder / name).mkdir(parents=True)
    (folder / f"panoptic_{name}").mkdir()
    content: dict[str, list] = {"categories": categories, "images": [], "annotations": []}
    for i in range(4):
        ids = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
        if i < 3:
            ids[8 * i : 8 * i + 24, 8:32, 0] = 10
        for place in (name, f"panoptic_{name}"):
            Image.fromarray(ids).save(folder / place / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png"})
        listed = [{"id": 10, "category_id": 1}] if i < 3 else []
        content["annotations"].append({"image_id": i, "file_name": f"{i}.png", "segments_info": listed})
    (folder / f"panoptic_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


NUT, BOLT = {"id": 1, "name": "nut", "isthing": 1}, {"id": 2, "name": "bolt", "isthing": 1}
BENCH, ROAD = {"id": 2, "name": "bench", "isthing": 0}, {"id": 1, "name": "road", "isthing": 0}


@pytest.mark.parametrize(
    "categories", [[NUT], [NUT, BOLT], [NUT, BENCH], [ROAD]], ids=["one", "things", "no stuff drawn", "one of stuff"]
)
def test_on_things_alone_who_paints_everything_is_far_from_perfect(
    tmp_path: Path, categories: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tuple((c["id"], c["name"], bool(c["isthing"])) for c in categories)
    config = dataclasses.replace(CONFIG, num_classes=len(named), categories=named)
    monkeypatch.setattr("test_evaluate.CONFIG", config)
    dataset = open_split(write_spots(tmp_path, categories), "val", config)
    perfect = module.evaluate(Clairvoyant({10: 0}).eval(), config, dataset)["overall"]
    assert perfect["pq"] > 0.99 and perfect["void_fraction"] == 0
    assert (perfect["pq_stuff"] is None, perfect["pq_things"] is None) == (ROAD not in categories, ROAD in categories)
    # With a class of stuff, the semantic reading has to put something everywhere.
    assert (perfect["miou"] > 0.99) == (BENCH not in categories)
    assert len(perfect["per_class"]) == len(named)
    module.format_table({"overall": perfect, "per_source": {}})
    painter = module.evaluate(Clairvoyant({10: 0, 0: 0}).eval(), config, dataset)["overall"]
    # Of the four photos, each is painted whole: three nuts found, and as much again that is none.
    assert painter["pq"] < 0.65 and painter["miou"] < 0.2


def test_mostly_void_and_nothing_judged_are_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ((1, "nut", True), (2, "bench", False))
    config = dataclasses.replace(CONFIG, num_classes=2, categories=named)
    monkeypatch.setattr("test_evaluate.CONFIG", config)
    model = Clairvoyant({10: 0}).eval()
    folder = write_spots(tmp_path / "a", [NUT, BENCH])
    path = folder / "panoptic_val.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["segments_info"][0]["category_id"] = 2
    path.write_text(json.dumps(content), encoding="utf-8")
    result = module.evaluate(model, config, open_split(folder, "val", config))
    assert result["overall"]["void_fraction"] == pytest.approx(1 - 3 * 24 * 24 / (4 * SIDE_PX**2), abs=1e-4)
    assert "89 % of the pixels are void" in caplog.messages[-1]

    folder = write_spots(tmp_path / "b", [NUT, BENCH])
    path = folder / "panoptic_val.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"exhaustive": {"none": []}}
    for image in content["images"]:
        image["exhaustive"] = "none"
    path.write_text(json.dumps(content), encoding="utf-8")
    result = module.evaluate(model, config, open_split(folder, "val", config))
    assert result["overall"]["pq"] is None and result["overall"]["miou"] is None
    assert caplog.messages[-1].startswith("Nothing was judged")


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        module.evaluate(Clairvoyant(TRUTH).train(), CONFIG, open_split(write_photos(tmp_path), "val", CONFIG))


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_photos(tmp_path)
    weights = tmp_path / "small.safetensors"
    changes = {"num_classes": 3, "short_side_px": SIDE_PX, "max_long_side_px": SIDE_PX}
    pem.save_weights(small_model(**changes), weights)
    out = tmp_path / "results" / "scores.JSON"
    module.main(["--weights", str(weights), "--data", str(data), "--device", "cpu", "--out", str(out)])
    table = capsys.readouterr().out
    assert "miou" in table and "towns" in table and "person" in table
    result = json.loads(out.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["conditions"]["split"] == "val"
    assert {"commit", "command", "threads"} <= set(result["conditions"])
    assert 0 <= result["overall"]["miou"] <= 1


def test_scores_for_which_the_disk_has_no_room_are_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data, out = write_photos(tmp_path), tmp_path / "scores.json"
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit, match=r"scores.json cannot be written \(No space left on device\); the scores are"):
        module.main(["--data", str(data), "--device", "cpu", "--out", str(out)])
    assert "person" in capsys.readouterr().out and not out.exists()


def test_the_bundled_model_is_known_by_its_preset_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It knows the three classes among others."""
    module.main(["--config", "default", "--data", str(write_photos(tmp_path)), "--device", "cpu"])
    assert "person" in capsys.readouterr().out


def test_trouble_is_one_sentence_on_the_terminal(tmp_path: Path) -> None:
    weights = tmp_path / "small.safetensors"
    pem.save_weights(small_model(), weights)  # five classes; the photos have three
    with pytest.raises(SystemExit, match="has 3 categories but the model .* has 5"):
        module.main(["--weights", str(weights), "--data", str(write_photos(tmp_path)), "--device", "cpu"])
    with pytest.raises(SystemExit, match="neither a folder 'test'"):
        module.main(["--weights", str(weights), "--data", str(tmp_path), "--split", "test", "--device", "cpu"])
    with pytest.raises(SystemExit, match="No weights come with cityscapes-panoptic-r50"):
        module.main(["--config", "cityscapes-panoptic-r50", "--data", str(tmp_path), "--device", "cpu"])


def test_a_result_is_written_though_the_terminal_lacks_letters_and_its_place_is_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights = write_photos(tmp_path), tmp_path / "small.safetensors"
    path = data / "panoptic_val.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"dog"', '"\u5e8a"'), encoding="utf-8")
    changes = {"num_classes": 3, "short_side_px": SIDE_PX, "max_long_side_px": SIDE_PX}
    pem.save_weights(small_model(**changes), weights)
    options = ["--weights", str(weights), "--data", str(data), "--device", "cpu"]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    module.main([*options, "--out", str(tmp_path / "scores.json")])
    assert "\u5e8a" in str(json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")))
    monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("The place was not tried first."))
    with pytest.raises(SystemExit, match="small.safetensors"):
        module.main([*options, "--out", str(weights / "scores.json")])


@pytest.mark.parametrize(
    ("trouble", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141), (ValueError("so"), "so")]
)
def test_work_that_fails_leaves_no_empty_result(tmp_path: Path, monkeypatch, trouble, code) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(module, "load_model", fail)
    monkeypatch.setattr("sys.stdout", io.StringIO())  # of which nothing is left after a broken pipe
    old = tmp_path / "old.json"
    old.touch()
    for out in (tmp_path / "new.json", old):
        with pytest.raises(SystemExit) as ended:
            module.main(["--data", str(tmp_path), "--out", str(out)])
        assert ended.value.code == code
    assert list(tmp_path.iterdir()) == [old]


def test_the_labels_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "panoptic_val.json"
    labels.write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit):
        module.main(["--data", str(tmp_path), "--out", str(labels)])
    assert "the labels themselves; give another file." in capsys.readouterr().err
    assert labels.read_text(encoding="utf-8") == "{}"

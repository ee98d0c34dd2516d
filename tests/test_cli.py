"""``python -m pem PHOTO...`` with a model whose answer is known."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from halves_model import CAT_SCORE, HalvesModel
from PIL import Image

import pem.__main__
from pem.__main__ import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo and a model to hand."""

    def load_halves(name: str, device: str, weights: str | None, runtime: str | None) -> torch.nn.Module:
        assert (name, device, weights, runtime) == ("default", "auto", None, None)
        return HalvesModel().eval()

    monkeypatch.setattr(pem.__main__, "load_model", load_halves)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), "gray").save(tmp_path / "photos" / "sofa.jpg")
    return tmp_path


def test_an_overlay_in_the_current_folder_and_a_legend(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["photos/sofa.jpg"]) == 0
    assert Image.open(folder / "sofa-panoptic.png").size == (60, 40)
    printed = capsys.readouterr()
    assert printed.err == ""
    rows = [line.split() for line in printed.out.splitlines()]
    assert rows[0] == ["class", "score", "area"]
    assert ["cat", f"{CAT_SCORE:.2f}", "50.0%"] in rows
    assert rows[-1] == ["Wrote", "sofa-panoptic.png"]


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_json_and_id_map_agree(folder: Path, task: str) -> None:
    assert main(["photos/sofa.jpg", "--task", task, "--out", "overlay.jpg", "--json", "sofa.json"]) == 0
    record = read(folder / "sofa.json")
    assert record["images"] == [{"id": 1, "file_name": "sofa.jpg", "width": 60, "height": 40}]
    [annotation] = record["annotations"]
    assert annotation["file_name"] == "sofa-ids.png" and annotation["image_id"] == 1
    names = {category["id"]: category["name"] for category in record["categories"]}
    assert {names[segment["category_id"]] for segment in annotation["segments_info"]} >= {"cat", "couch"}
    check_segments(annotation, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["overlay.jpg", "photos", "sofa-ids.png", "sofa.json"]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def check_segments(annotation: dict[str, Any], id_maps: Path) -> None:
    """Ids, areas and boxes are those of the PNG."""
    ids = np.asarray(Image.open(id_maps / annotation["file_name"])) @ np.array([1, 256, 65536])
    assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    for segment in annotation["segments_info"]:
        rows, cols = np.nonzero(ids == segment["id"])
        left, top, width, height = segment["bbox"]
        assert segment["area"] == len(rows)
        assert (left, top, left + width - 1, top + height - 1) == (cols.min(), rows.min(), cols.max(), rows.max())


def test_overlay_and_json_of_one_name_leave_room_for_the_id_map(folder: Path) -> None:
    assert main(["photos/sofa.jpg", "--out", "a.png", "--json", "a.json"]) == 0
    assert read(folder / "a.json")["annotations"][0]["file_name"] == "a-ids.png"
    assert sorted(path.name for path in folder.iterdir()) == ["a-ids.png", "a.json", "a.png", "photos"]


def test_an_overlay_goes_into_a_folder_that_is_there(folder: Path) -> None:
    (folder / "overlays").mkdir()
    assert main(["photos/sofa.jpg", "--out", "overlays"]) == 0
    assert [path.name for path in (folder / "overlays").iterdir()] == ["sofa-panoptic.png"]


# ------------------------------------------------------------------------------------------------------ several photos


def test_a_folder_s_photos_are_done_with_one_model_by_name_and_nothing_else_in_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = []
    load = pem.__main__.load_model
    monkeypatch.setattr(pem.__main__, "load_model", lambda *args, **kwargs: loads.append(1) or load(*args, **kwargs))
    for name in ("bed.PNG", "chair.webp", "deep/table.png", "old.jpg/x.png"):
        (folder / "photos" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 40)).save(folder / "photos" / name)
    for name in ("notes.txt", "._sofa.jpg", "list.json"):
        (folder / "photos" / name).write_text("no photo", encoding="utf-8")
    assert main(["photos", "--out", "overlays", "--json", "all.json"]) == 0
    assert capsys.readouterr().err == "" and len(loads) == 1
    record = read(folder / "all.json")
    assert [image["file_name"] for image in record["images"]] == ["bed.PNG", "chair.webp", "sofa.jpg"]
    assert [image["id"] for image in record["images"]] == [1, 2, 3]
    assert [one["file_name"] for one in record["annotations"]] == ["bed.png", "chair.png", "sofa.png"]
    assert [one["image_id"] for one in record["annotations"]] == [1, 2, 3] and len(record["categories"]) == 47
    for annotation in record["annotations"]:
        check_segments(annotation, folder / "all")
    assert sorted(path.name for path in (folder / "overlays").iterdir()) == [
        "bed-panoptic.png",
        "chair-panoptic.png",
        "sofa-panoptic.png",
    ]


def test_photos_of_one_stem_are_numbered_and_a_photo_that_is_named_twice_is_done_once(folder: Path) -> None:
    for name in ("Sofa.png", "sofa-2.png"):
        Image.new("RGB", (60, 40)).save(folder / "photos" / name)
    photos = [f"photos/{name}" for name in ("sofa.jpg", "Sofa.png", "sofa-2.png", "../photos/sofa.jpg")]
    assert main([*photos, "--json", "all.json"]) == 0
    record = read(folder / "all.json")
    assert [image["file_name"] for image in record["images"]] == ["sofa.jpg", "Sofa.png", "sofa-2.png"]
    names = [one["file_name"] for one in record["annotations"]]
    assert names == ["sofa.png", "Sofa-2.png", "sofa-2-2.png"]
    assert sorted(path.name for path in (folder / "all").iterdir()) == sorted(names)
    assert len(list(folder.glob("*-panoptic.png"))) == 3


def test_an_unusable_photo_is_named_and_the_others_are_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    (folder / "empty").mkdir()
    assert main(["photos", "gone.jpg", "empty", "--json", "all.json"]) == 2
    printed = capsys.readouterr()
    empty, broken, gone = printed.err.splitlines()
    assert broken.startswith("pem: photos/broken.jpg: The file is not an image that can be read")
    assert gone == "pem: There is no file 'gone.jpg'."
    assert empty.startswith("pem: The folder empty holds no photo (")
    assert "photos/sofa.jpg:" in printed.out.splitlines() and (folder / "sofa-panoptic.png").is_file()
    record = read(folder / "all.json")
    assert [image["file_name"] for image in record["images"]] == ["sofa.jpg"]
    assert record["annotations"][0]["image_id"] == record["images"][0]["id"]


def test_what_is_done_is_kept_when_the_rest_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (60, 40)).save(folder / "photos" / "table.png")
    predict = pem.__main__.predict

    def interrupted(model: Any, image: Image.Image, *args: Any) -> Any:
        if (folder / "sofa-panoptic.png").exists():
            raise KeyboardInterrupt
        return predict(model, image, *args)

    monkeypatch.setattr(pem.__main__, "predict", interrupted)
    assert main(["photos", "--json", "all.json"]) == 130
    assert [image["file_name"] for image in read(folder / "all.json")["images"]] == ["sofa.jpg"]


def test_an_error_of_the_device_or_of_memory_names_the_photo(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(pem.__main__, "predict", fail)
    assert main(["photos/sofa.jpg"]) == 2
    assert capsys.readouterr().err == "pem: photos/sofa.jpg: MemoryError\n"


# ------------------------------------------------------------------------------------------------- thresholds and names


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--object-threshold", "0.7"], {"cat"}),
        (["--object-threshold", "0.95"], set()),
        (["--overlap-threshold", "1"], {"cat", "couch"}),
        (["--task", "instance", "--score-threshold", "0.7"], {"cat"}),
        (["--task", "instance", "--score-threshold", "0"], {"cat", "couch"}),
        (["--task", "semantic"], {"cat", "couch"}),
    ],
)
def test_thresholds_are_those_of_the_python_api(folder: Path, arguments: list[str], found: set[str]) -> None:
    assert main(["photos/sofa.jpg", "--json", "a.json", *arguments]) == 0
    record = read(folder / "a.json")
    names = {category["id"]: category["name"] for category in record["categories"]}
    labels = {names[segment["category_id"]] for segment in record["annotations"][0]["segments_info"]}
    assert labels & {"cat", "couch"} == found


def test_names_are_written_unless_they_are_not_wanted(folder: Path) -> None:
    Image.new("RGB", (600, 400), "gray").save(folder / "photos" / "sofa.jpg")
    for out, options in (("a.png", []), ("b.png", ["--names"]), ("c.png", ["--no-names"])):
        assert main(["photos/sofa.jpg", "--out", out, *options]) == 0
    default, named, bare = (np.asarray(Image.open(folder / out)) for out in ("a.png", "b.png", "c.png"))
    assert np.array_equal(default, named) and not np.array_equal(named, bare)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.jpg"], "There is no file 'nothing.jpg'"),
        (["photos/sofa.jpg", "--out", "photos/sofa.jpg"], "over another file"),
        (["photos/sofa.jpg", "--out", "a.png", "--json", "a.png"], "over another file"),
        (["photos/sofa.jpg", "--out", "a"], "no ending of an image file"),
        (["photos/sofa.jpg", "--out", "a.xbm"], "no ending of an image file"),
        (["photos/sofa.jpg", "--out", "missing/a.png"], "no folder missing"),
        (["photos/sofa.jpg", "--json", "photos"], "photos is a folder; give the name of a file"),
        (["photos", "--json", "photos"], "photos is a folder; give the name of a file"),
        (["photos", "--json", "."], ". is a folder; give the name of a file"),
        (["photos", "--json", "ids"], "ids has no ending; name it ids.json"),
        (["photos", "--json", "photos.json"], "would go among the photos in photos; choose another name"),
        (["photos", "--json", "missing/a.json"], "There is no folder missing to make a in"),
        (["photos", "--out", "a.png"], "with several photos --out is a folder"),
        (["photos", "--out", "missing/deeper"], "There is no folder missing to make deeper in"),
        (["photos", "--out", "photos/sofa.jpg"], "with several photos --out is a folder"),
        (
            ["photos/sofa.jpg", "--score-threshold", "0.5"],
            "does not have --score-threshold; it takes --object-threshold",
        ),
        (["photos/sofa.jpg", "--task", "semantic", "--object-threshold", "0.5"], "it takes no threshold"),
        (["photos/sofa.jpg", "--task", "instance", "--overlap-threshold", "0"], "it takes --score-threshold"),
        (["photos/sofa.jpg", "--object-threshold", "1.5"], "--object-threshold is 1.5; it must lie between 0 and 1"),
        (["photos/sofa.jpg", "--object-threshold", "nan"], "--object-threshold is nan; it must lie between 0 and 1"),
    ],
)
def test_errors_are_one_sentence(
    folder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "photos" / "sofa.jpg").read_bytes()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("pem: ") and printed.err.count("\n") == 1
    assert sentence in printed.err
    assert (folder / "photos" / "sofa.jpg").read_bytes() == before and len(list(folder.iterdir())) == 1


def test_no_overlay_is_written_over_a_photo_of_the_same_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (60, 40), "green").save(folder / "photos" / "sofa-panoptic.png")  # not made by the command
    before = (folder / "photos" / "sofa-panoptic.png").read_bytes()
    assert main(["photos", "--out", "photos"]) == 2
    assert "sofa-panoptic.png would be written over another file" in capsys.readouterr().err
    assert (folder / "photos" / "sofa-panoptic.png").read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Image.Image, path: Path, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["photos/sofa.jpg"]) == 2
    assert capsys.readouterr().err.endswith(
        "sofa-panoptic.png cannot be written (No space left on device); choose another place.\n"
    )
    monkeypatch.setattr(pem.__main__.os, "access", lambda path, mode: False)
    assert main(["photos/sofa.jpg"]) == 2
    assert "sofa-panoptic.png cannot be written (permission denied)" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- the module


def test_the_module_runs_and_exits_with_2(tmp_path: Path) -> None:
    """In a folder that can be written to, which the checkout need not be."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = processes.run([sys.executable, "-m", "pem", "nothing.jpg"], cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr == "pem: There is no file 'nothing.jpg'.\n"


def test_the_module_helps_without_docstrings() -> None:
    done = processes.run([sys.executable, "-OO", "-m", "pem", "--help"], cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and "--object-threshold" in done.stdout


def test_a_terminal_that_lacks_letters_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="cp1252"))
    (folder / "photos" / "sofa.jpg").rename(folder / "photos" / "\u82f9\u679c.jpg")
    assert main(["photos", "--json", "a.json"]) == 0
    sys.stdout.flush()
    assert b"photos/\\u82f9\\u679c.jpg:" in printed.getvalue()
    assert read(folder / "a.json")["images"][0]["file_name"] == "\u82f9\u679c.jpg"
    assert (folder / "a" / "\u82f9\u679c.png").is_file()


def test_the_same_command_works_again_and_overlays_are_no_photos(folder: Path) -> None:
    photos = folder / "photos"
    for task in ("panoptic", "panoptic", "semantic"):
        assert main([str(photos), "--task", task, "--out", str(photos)]) == 0
    assert sorted(path.name for path in photos.iterdir()) == ["sofa-panoptic.png", "sofa-semantic.png", "sofa.jpg"]


def test_the_same_command_works_again_for_photos_of_one_stem(folder: Path) -> None:
    Image.new("RGB", (60, 40), "gray").save(folder / "photos" / "sofa.png")
    for _ in range(3):
        assert main(["photos", "--out", "photos"]) == 0
    names = sorted(path.name for path in (folder / "photos").iterdir())
    assert names == ["sofa-2-panoptic.png", "sofa-panoptic.png", "sofa.jpg", "sofa.png"]


def test_the_id_map_of_a_photo_is_no_photo(folder: Path) -> None:
    assert main(["photos/sofa.jpg", "--out", "photos", "--json", "photos/sofa.json"]) == 0
    assert main(["photos", "--out", "photos"]) == 0
    names = sorted(path.name for path in (folder / "photos").iterdir())
    assert names == ["sofa-ids.png", "sofa-panoptic.png", "sofa.jpg", "sofa.json"]


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "locked").mkdir()
    list_all = Path.iterdir

    def list_unlocked(path: Path) -> Any:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return list_all(path)

    monkeypatch.setattr(Path, "iterdir", list_unlocked)
    assert main(["locked", "photos"]) == 2
    assert capsys.readouterr().err == "pem: locked cannot be read: Permission denied.\n"
    assert (folder / "sofa-panoptic.png").is_file()


def test_photos_of_one_name_are_told_apart_in_the_json(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "sofa.jpg").write_bytes((folder / "photos" / "sofa.jpg").read_bytes())
    assert main(["a", "b", "--json", "all.json", "--out", "photos"]) == 0
    assert [image["file_name"] for image in read(folder / "all.json")["images"]] == ["a/sofa.jpg", "b/sofa.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="Other systems refuse such names.")
def test_names_that_json_or_the_file_system_cannot_tell_are_made_tellable(folder: Path) -> None:
    photos = folder / "photos"
    names = [b"bad\xffname.jpg", b"l" * 250 + b".jpg"]
    for name in names:
        (photos / os.fsdecode(name)).write_bytes((photos / "sofa.jpg").read_bytes())
    assert main([str(photos), "--json", "all.json", "--out", "photos"]) == 0
    record = read(folder / "all.json")
    id_maps = [annotation["file_name"] for annotation in record["annotations"]]
    assert id_maps == ["badname.png", "l" * 200 + ".png", "sofa.png"]
    assert all((folder / "all" / name).is_file() for name in id_maps)
    assert record["images"][0]["file_name"] == "bad\ufffdname.jpg"


def test_a_phone_s_photo_with_a_depth_map_is_one_of_a_folder(folder: Path) -> None:
    (folder / "photos" / "sofa.jpg").rename(folder / "photos" / "sofa.MPO")
    assert main(["photos"]) == 0 and (folder / "sofa-panoptic.png").is_file()


def test_ctrl_c_ends_with_one_line_and_keeps_what_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pem.__main__, "predict", interrupted)
    assert main(["photos/sofa.jpg"]) == 130
    assert capsys.readouterr().err == "pem: stopped; what was written before stays.\n"


def test_a_reader_that_has_enough_ends_the_command_quietly_and_loses_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(pem.__main__, "_print_legend", broken)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the command replaces
    assert main(["photos/sofa.jpg", "--json", "sofa.json"]) == 141
    assert capsys.readouterr().err == "" and (folder / "sofa-panoptic.png").is_file()
    assert (folder / "sofa-ids.png").is_file() and len(read(folder / "sofa.json")["annotations"]) == 1


def test_output_that_cannot_be_written_is_not_the_photos_fault(folder: Path, monkeypatch, capsys) -> None:
    def full(segmentation: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pem.__main__, "_print_legend", full)
    assert main(["photos/sofa.jpg"]) == 2
    assert capsys.readouterr().err == "pem: [Errno 28] No space left on device\n"

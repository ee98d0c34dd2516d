"""``python -m pem PHOTO`` with a model whose answer is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from halves_model import CAT_SCORE, HalvesModel
from PIL import Image

import pem.__main__
from pem.__main__ import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo and a model to hand."""

    def load_halves(name: str, device: str, weights: str | None) -> torch.nn.Module:
        assert (name, device, weights) == ("default", "auto", None)
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
    record: dict[str, Any] = json.loads((folder / "sofa.json").read_text())
    assert record["file_name"] == "sofa-ids.png" and record["image"]["file_name"] == "sofa.jpg"
    colors = np.asarray(Image.open(folder / "sofa-ids.png")).astype(int)
    ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    names = {category["id"]: category["name"] for category in record["categories"]}
    assert {names[segment["category_id"]] for segment in record["segments_info"]} >= {"cat", "couch"}
    for segment in record["segments_info"]:
        rows, cols = np.nonzero(ids == segment["id"])
        assert segment["area"] == len(rows) > 0
        assert segment["bbox"][:2] == [cols.min(), rows.min()]
    assert sorted(path.name for path in folder.iterdir()) == ["overlay.jpg", "photos", "sofa-ids.png", "sofa.json"]


def test_overlay_and_json_of_one_name_leave_room_for_the_id_map(folder: Path) -> None:
    assert main(["photos/sofa.jpg", "--out", "a.png", "--json", "a.json"]) == 0
    assert json.loads((folder / "a.json").read_text())["file_name"] == "a-ids.png"
    assert sorted(path.name for path in folder.iterdir()) == ["a-ids.png", "a.json", "a.png", "photos"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.jpg"], "There is no file 'nothing.jpg'"),
        (["photos"], "cannot be opened"),
        (["photos/sofa.jpg", "--out", "photos/sofa.jpg"], "over another file"),
        (["photos/sofa.jpg", "--out", "a.png", "--json", "a.png"], "over another file"),
        (["photos/sofa.jpg", "--out", "a"], "no ending of an image file"),
        (["photos/sofa.jpg", "--out", "a.xbm"], "no ending of an image file"),
        (["photos/sofa.jpg", "--out", "missing/a.png"], "no folder missing"),
        (["photos/sofa.jpg", "--json", "photos"], "photos is a folder; give the name of a file"),
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


def test_the_module_runs_and_exits_with_2() -> None:
    command = [sys.executable, "-m", "pem", "nothing.jpg"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "pem: There is no file 'nothing.jpg'.\n"

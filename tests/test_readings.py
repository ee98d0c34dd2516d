"""Readings of a large photo: what is measured, and the command with its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from analysis import __main__ as cli
from analysis import readings, tables
from pem.predict import READINGS


def test_a_photo_keeps_its_shape_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (9, 8, 7)).save(tmp_path / "photo.png")
    photo = readings.resized(tmp_path / "photo.png", 0.006)
    assert photo.shape == (63, 95, 3) and photo[0, 0].tolist() == [9, 8, 7]


def test_the_command_times_every_reading_beside_the_usual_one_that_finds_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, photo = tmp_path / "readings.json", readings.EXAMPLES / "motorcycle.jpg"
    options = ["--photos", str(photo), "--megapixels", "1", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    cli.main(["readings", *options])
    assert capsys.readouterr().out.count("motorcycle.jpg") == 3
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["reading"] for row in result["rows"]] == list(READINGS)
    for row in result["rows"]:
        assert row["height_px"] * row["width_px"] == pytest.approx(1e6, rel=1e-3)
        assert row["segments"] > 0 and row["total_ms"] == pytest.approx(row["reading_ms"] + row["drawing_ms"])
    panoptic, *others = result["rows"]
    # Where two queries score the same but for rounding, a pixel may go to either on another processor.
    assert panoptic["differing_px"] < 10 and panoptic["usual_ms"] > 0
    assert all(row["usual_ms"] is None for row in others)
    assert f"{panoptic['total_ms']:.0f} ms" in tables.readings(result)


def test_a_file_that_is_no_photo_ends_the_command_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no photo", encoding="utf-8")
    with pytest.raises(SystemExit, match="notes.jpg"):
        cli.main(["readings", "--photos", str(tmp_path / "notes.jpg"), "--device", "cpu"])

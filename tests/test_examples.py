"""The examples in the docstrings of the public API do what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from PIL import Image
from small_model import small_model

import pem

WITH_EXAMPLES = [name for name in pem.__all__ if ">>>" in (getattr(pem, name).__doc__ or "")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_an_example_gives_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a photo.jpg of 640 x 480, and with a small model in the place of the bundled one."""
    Image.new("RGB", (640, 480), "gray").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    text = getattr(pem, name).__doc__
    model = small_model(short_side_px=64, max_long_side_px=128)
    monkeypatch.setattr(pem, "load_model", lambda *_, **__: model)
    names = {"pem": pem, "model": model}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    report: list[str] = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)


def test_whoever_reads_photos_or_outputs_finds_an_example() -> None:
    assert {"instances", "load_image", "panoptic", "predict", "preprocess", "render", "semantic"} <= {*WITH_EXAMPLES}

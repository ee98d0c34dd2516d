"""The checkpoint that comes with the project: small enough, offline, and right about the photos beside it."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest

import pem
from pem.exporting.check import compare, example_photos
from pem.load import DEFAULT_EXPORT, DEFAULT_WEIGHTS
from pem.runtimes import RUNTIMES, usable_runtimes

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"


@pytest.fixture(scope="module")
def model() -> pem.PEM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("Loading the bundled model used the network."))
        return pem.load_model("default", device="cpu")


def test_bundled_checkpoint_is_small_and_is_the_default_preset(model: pem.PEM) -> None:
    assert DEFAULT_WEIGHTS.stat().st_size <= 45_000_000
    assert model.config == pem.get_config("default")
    assert not model.training


def test_the_bundled_twin_differs_in_its_attention_and_schedule_alone(model: pem.PEM) -> None:
    path = DEFAULT_WEIGHTS.with_stem("default-masked")
    assert path.stat().st_size <= 45_000_000
    twin = pem.load_model(path, device="cpu")
    theirs = dataclasses.replace(twin.config, attention="prototype")
    assert twin.config.attention == "masked" and theirs == model.config
    labels = {segment.label for segment in pem.predict(twin, EXAMPLES / "cat.jpg").segments}
    assert "cat" in labels


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_bundled_exported_network_is_the_bundled_model(runtime: str) -> None:
    """In all that it does inside, on every example photo. python -m pem.export --trace makes it anew."""
    if runtime not in usable_runtimes():
        pytest.skip(f"{runtime} is missing or too old.")
    plain = pem.load_model("default", device="cpu", fast=False)
    found = compare(plain, pem.load_model(DEFAULT_EXPORT, runtime=runtime), runtime, example_photos(), strict=True)
    assert found.photos == 6


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("cat", {"cat"}),
        ("astronaut", {"person"}),
        ("motorcycle", {"motorcycle"}),
        ("palace", {"building", "tree", "sky"}),
    ],
)
def test_what_is_on_the_example_photos(model: pem.PEM, photo: str, expected: set[str]) -> None:
    reading = pem.predict(model, EXAMPLES / f"{photo}.jpg")
    large = {segment.label for segment in reading.segments if segment.area_px > 0.1 * reading.ids.size}
    assert expected <= large


def test_cat_lies_where_the_cat_is(model: pem.PEM) -> None:
    reading = pem.predict(model, EXAMPLES / "cat.jpg")
    (cat,) = [segment for segment in reading.segments if segment.label == "cat"]
    rows, cols = np.nonzero(reading.ids == cat.id)
    assert reading.ids[110, 270] == cat.id  # between the eyes
    assert reading.ids[60, 440] != cat.id  # the blurred background
    assert len(rows) == cat.area_px and cat.bbox[0] == cols.min()

"""The fastest runtime is measured once; what disagrees or cannot run is left out; the choice is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pem
from pem import fastest as module
from pem.__main__ import main
from pem.arrays import Arrays
from pem.exported import ExportedPEM
from pem.fastest import fastest
from pem.load import DEFAULT_EXPORT, runtimes_of_default


class Model(ExportedPEM):
    """Takes as long as it is told, and answers as it is told."""

    def __init__(self, seconds: float, answer: float = 1.0) -> None:
        self.seconds, self.answer, self.config = seconds, answer, pem.get_config("default")

    def __call__(self, pixels: np.ndarray, trace: bool = False) -> Arrays:  # type: ignore[override]
        assert pixels.shape == (1, 3, 288, 384)
        time.sleep(self.seconds)
        return Arrays(np.full((1, 2, 48), self.answer), np.zeros((1, 2, 72, 96)))


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "version", lambda name: "1.0")
    (tmp_path / "model.onnx").write_bytes(b"network")
    return tmp_path / "model.onnx"


def loader(models: dict[str, Model]) -> tuple[list[str], Callable[[str], Model]]:
    loads: list[str] = []
    return loads, lambda name: (loads.append(name), models[name])[1]


def test_the_fastest_is_measured_once_for_each_file(model_file: Path) -> None:
    # Half a second of sleep against none: no load of the machine turns that round.
    loads, load = loader({"torch": Model(0.5), "onnxruntime": Model(0)})
    assert fastest(model_file, ["torch", "onnxruntime"], load) == "onnxruntime"
    assert fastest(model_file, ["torch", "onnxruntime"], load) == "onnxruntime"
    assert loads == ["torch", "onnxruntime"]
    (kept,) = (model_file.parent / "cache" / "pem").iterdir()
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert record["median_ms"]["torch"] > record["median_ms"]["onnxruntime"] >= 0
    assert {"versions", "processor", "cores", "date"} <= record.keys()
    kept.write_text("{", encoding="utf-8")
    assert fastest(model_file, ["torch", "onnxruntime"], load) == "onnxruntime"
    model_file.write_bytes(b"another network")
    assert fastest(model_file, ["torch", "onnxruntime"], load) == "onnxruntime"
    assert len(loads) == 6


def test_what_disagrees_or_cannot_be_loaded_is_left_out(model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, load = loader({"torch": Model(0.1), "onnxruntime": Model(0, answer=1.5)})
    assert fastest(model_file, ["torch", "onnxruntime", "openvino"], load) == "torch"
    assert "onnxruntime is left out: its class logits are not those of the others" in caplog.text
    assert "openvino is left out: 'openvino'" in caplog.text


def test_a_single_runtime_is_taken_as_it_is_and_the_first_must_work(model_file: Path) -> None:
    assert fastest(model_file, ["openvino"], loader({})[1]) == "openvino"
    with pytest.raises(KeyError):
        fastest(model_file, ["torch", "openvino"], loader({})[1])


def test_a_choice_that_cannot_be_kept_is_made_again(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model_file / "no-folder"))
    loads, load = loader({"torch": Model(0.2), "onnxruntime": Model(0)})
    for _ in range(2):
        assert fastest(model_file, ["torch", "onnxruntime"], load) == "onnxruntime"
    assert len(loads) == 4


def test_load_model_takes_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(file: Path, runtimes: list[str], load: object) -> str:
        asked.append((file, runtimes))
        return runtimes[-1]

    monkeypatch.setattr("pem.load.fastest", choose)
    monkeypatch.setattr("pem.load.usable_runtimes", lambda: ["torch"])
    assert isinstance(pem.load_model("default", "cpu", runtime="auto"), pem.PEM)
    assert asked == [(DEFAULT_EXPORT, ["torch", "torch"])]
    with pytest.raises(pem.WeightsError, match="No weights come with"):  # only torch has this model
        pem.load_model("cityscapes-panoptic-r50", runtime="auto")


def test_the_command_names_versions_and_the_choice(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "torch 1.0" in (printed := " ".join(capsys.readouterr().out.split())) and "not measured" in printed
    _, load = loader({name: Model(0.2 * (name == "torch")) for name in runtimes_of_default()})
    choice = fastest(DEFAULT_EXPORT, runtimes_of_default(), load)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert f"the fastest for the bundled model: {choice} (torch " in " ".join(capsys.readouterr().out.split())

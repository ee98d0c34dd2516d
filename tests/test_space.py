"""The folder of a Hugging Face Space is complete, and serves the page without the internet.

PEM_CLEAN_ENVIRONMENT=1 installs what the Space names into an environment of its own, which takes some minutes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from gradio_client import Client, handle_file

from hosting.space import HARDWARE, lay_out, main

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPACES = "spaces==0.51.0"
# Refuses whatever would leave this machine, and notes it down.
OFFLINE = """
import os
import socket

connect, look_up = socket.socket.connect, socket.getaddrinfo

def refuse(host):
    with open(os.environ["ASKED_FOR"], "a", encoding="utf-8") as file:
        print(host, file=file)
    raise OSError(f"{host} is outside")

def is_here(host):
    return str(host) in ("127.0.0.1", "localhost", "0.0.0.0", "::1", "None") or str(host).startswith("/")

def connect_here(self, address):
    host = address[0] if isinstance(address, tuple) else "/"
    return connect(self, address) if is_here(host) else refuse(host)

def look_up_here(host, *rest, **more):
    return look_up(host, *rest, **more) if is_here(host) else refuse(host)

socket.socket.connect, socket.getaddrinfo = connect_here, look_up_here
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    lay_out(folder, "zero")
    return folder


@pytest.fixture(scope="module")
def interpreter(space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python that runs the Space."""
    if not os.environ.get("PEM_CLEAN_ENVIRONMENT"):
        return Path(sys.executable)
    environment = tmp_path_factory.mktemp("environment")
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", space / "requirements.txt"], check=True)
    return python


def spaces_package(folder: Path) -> str:
    """The folder with the package that lends GPUs, alone."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, SPACES]
    if processes.run(command).returncode != 0:
        pytest.skip("The package spaces cannot be downloaded.")
    return str(folder)


@pytest.mark.parametrize("with_spaces", [False, True], ids=["without spaces", "with spaces"])
def test_the_space_serves_the_page_without_the_internet(
    with_spaces: bool, space: Path, interpreter: Path, tmp_path: Path
) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    paths = [str(tmp_path / "guard")] + ([spaces_package(tmp_path / "spaces")] if with_spaces else [])
    if not with_spaces and importlib.util.find_spec("spaces"):
        pytest.skip("The package spaces is installed.")
    asked_for = tmp_path / "asked for"
    port = processes.free_port()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "ASKED_FOR": str(asked_for),
        "GRADIO_SERVER_NAME": "0.0.0.0",  # as a Space has it
        "TMPDIR": str(tmp_path),
    }
    command = [interpreter, "app.py", "--port", str(port), "--threads", "1"]
    with processes.started(command, cwd=space, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        while "Running on" not in (line := server.stdout.readline()):
            assert line, "the server has ended"
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False)
        photo = handle_file(space / "assets" / "examples" / "cat.jpg")
        *_, answer = client.predict(photo, "panoptic", api_name="/segment")
        assert "cat" in {segment["category"] for segment in answer["segments"]}
        client.close()
    assert not asked_for.exists(), asked_for.read_text(encoding="utf-8")


def test_a_space_says_what_it_runs_on_and_installs(tmp_path: Path) -> None:
    for hardware, flavour in HARDWARE.items():
        lay_out(tmp_path / hardware, hardware)
        front = (tmp_path / hardware / "README.md").read_text(encoding="utf-8").split("---")[1]
        assert f"suggested_hardware: {flavour}" in front and "app_file: app.py" in front
        requirements = (tmp_path / hardware / "requirements.txt").read_text(encoding="utf-8")
        version = re.search(r"sdk_version: (\d+\.\d+)", front)
        assert version and f"gradio=={version[1]}.*" in requirements
        assert ("whl/cpu" in requirements) == (hardware == "cpu")
        attributes = (tmp_path / hardware / ".gitattributes").read_text(encoding="utf-8")
        assert {line.split()[0] for line in attributes.splitlines()} >= {"*.safetensors", "*.onnx"}
        assert not [*(tmp_path / hardware).rglob("__pycache__")] and not (tmp_path / hardware / "tests").exists()


def test_a_space_may_take_its_weights_from_a_pinned_model_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path / "new", "cpu", f"someone/pem@{COMMIT}")
    front = (tmp_path / "new" / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "app_file: space.py" in front and f"preload_from_hub:\n  - someone/pem model.safetensors {COMMIT}\n" in front
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.onnx")]
    monkeypatch.delenv("PEM_MODEL", raising=False)
    monkeypatch.setattr("app.main", lambda arguments: models.append(os.environ["PEM_MODEL"]))
    models: list[str] = []
    exec(compile((tmp_path / "new" / "space.py").read_text(encoding="utf-8"), "space.py", "exec"), {})
    assert models == [f"someone/pem@{COMMIT}"]


def test_what_cannot_be_laid_out_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(SystemExit, match="is not an empty folder; choose another one"):
            main(["--out", str(out)])
    for model in ("someone/pem", "someone/pem@main", f"pem@{COMMIT}"):
        with pytest.raises(SystemExit, match="does not pin a model; give OWNER/REPO@COMMIT"):
            main(["--out", str(tmp_path / "new"), "--model", model])
    main(["--out", str(tmp_path / "new")])
    assert "hf upload OWNER/SPACE" in capsys.readouterr().out

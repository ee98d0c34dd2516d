"""An exported network needs no PyTorch: tried where there is only what the package asks for."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import processes
import pytest
from packaging.requirements import Requirement
from PIL import Image
from test_package import ROOT, declared

import pem
from pem.load import DEFAULT_EXPORT, EXAMPLES

MOST_MB = 250  # without the weights that come with the package
PHOTO = EXAMPLES / "cat.jpg"


def needed(requirements: list[Requirement], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """The distributions that these requirements bring, with all that they require themselves."""
    for requirement in requirements:
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[requirement.name] = distribution(requirement.name)
        needed([Requirement(line) for line in found[requirement.name].requires or ()], found)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to the package and to what it asks for; Python's -I and -S keep all else away."""
    folder = tmp_path_factory.mktemp("environment")
    num_bytes = 0
    for package in needed(declared()[""], {}).values():
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            num_bytes += path.stat().st_size if path.is_file() else 0
            link = folder / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(package.locate_file(file.parts[0]))
    assert num_bytes < MOST_MB * 1e6
    (folder / "pem").symlink_to(ROOT / "pem")
    return folder


def run(environment: Path, code: str) -> str:
    start = f"import sys; sys.path[:0] = [{str(environment)!r}]\n"
    done = processes.run([sys.executable, "-I", "-S", "-c", start + code])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_is_not_there_and_what_needs_it_says_so(environment: Path) -> None:
    printed = run(
        environment,
        "import importlib.util, pem\n"
        "print([name for name in ('torch', 'torchvision', 'timm', 'scipy') if importlib.util.find_spec(name)])\n"
        "for use in (lambda: pem.build_model, lambda: pem.load_model('default', runtime='torch'),"
        " lambda: pem.load_model('model.safetensors')):\n"
        "    try: use()\n"
        "    except (ImportError, ValueError) as error: print(error)\n",
    ).splitlines()
    assert printed[0] == "[]"
    assert printed[1] == "pem.build_model needs torch: pip install 'pem-studio[torch]'."
    assert len(printed) == 4 and all("pip install 'pem-studio[torch]'" in line for line in printed[2:])


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_the_command_gives_what_torch_gives(environment: Path, tmp_path: Path, task: str) -> None:
    files = {name: str(tmp_path / name) for name in ("overlay.png", "result.json")}
    arguments = [str(PHOTO), "--task", task, "--out", files["overlay.png"], "--json", files["result.json"]]
    arguments.append("--no-names")  # without matplotlib they have another font
    run(environment, f"from pem.__main__ import main; sys.exit(main({arguments!r}))")
    found = json.loads(Path(files["result.json"]).read_text(encoding="utf-8"))
    id_map = np.asarray(Image.open(tmp_path / "result-ids.png")).astype(int) @ (1, 256, 65536)

    expected = pem.predict(pem.load_model("default", device="cpu"), PHOTO, task)
    shown = {segment.id: segment for segment in expected.segments}
    assert found["annotations"][0]["segments_info"]
    for info in found["annotations"][0]["segments_info"]:
        assert info["queries"] == list(shown[info["id"]].queries)
        assert info["score"] == pytest.approx(shown[info["id"]].score, abs=1e-3)
    # All of them on the machines that were tried; rounding may move a pixel on the border of two segments.
    assert (id_map == expected.ids).mean() > 0.9999
    overlay = np.asarray(Image.open(files["overlay.png"])).astype(int)
    assert (abs(overlay - pem.render(PHOTO, expected)).max(2) > 0).mean() < 1e-4


def test_the_bundled_file_says_what_the_bundled_weights_say() -> None:
    exported, model = pem.load_model(DEFAULT_EXPORT), pem.load_model("default", device="cpu")
    assert exported.config == model.config and exported.has_trace

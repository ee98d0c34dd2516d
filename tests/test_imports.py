"""Imports are a one-way street: app -> ui -> analysis -> pem, inside pem from each level to those above, no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room may import from itself and from the levels before its own.
LEVELS = (
    {"pem.cores", "pem.errors", "pem.validated"},
    {"pem.devices"},
    {"pem.config", "pem.fonts", "pem.outputs", "pem.terminal"},
    {"pem.arrays", "pem.packed", "pem.photos"},
    {"pem.categories", "pem.files"},
    {"pem.layers"},
    {"pem.deform_conv", "pem.names", "pem.preprocess", "pem.tiles"},
    {"pem.runtimes"},
    {"pem.exported"},
    {"pem.coco", "pem.pixels", "pem.render"},
    {"pem.postprocess"},
    {"pem.explain"},
    {"pem.backbones", "pem.pixel_decoder", "pem.attention"},
    {"pem.decoder"},
    {"pem.model"},
    {"pem.fast"},
    {"pem.conditions"},
    {"pem.run"},
    {"pem.fastest", "pem.weights"},
    {"pem.load"},
    {"pem.predict"},
    {"pem.exporting"},
    {"pem"},  # the public names; those that need torch come late
    {"pem.__main__", "pem.export", "pem.training"},
    {"analysis"},
    {"ui"},
    {"app"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# Where a library may be imported at all; tests may import anything.
AT_HOME = {
    "gradio": ("app", "ui"),
    "spaces": ("app",),
    "plotly": ("app", "ui", "analysis.figures"),
    "matplotlib": ("app", "ui", "analysis.figures", "pem.fonts"),
    "playwright": (),
}
# Heavy and optional: pem may need them inside a function, never for being imported.
LATE_IN_PEM = ("transformers", "huggingface_hub", "fvcore")

PACKAGES = ("pem", "analysis", "ui")
SOURCES = [ROOT / "app.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that the statements below ``tree`` import; ``package`` is where its relative imports start."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # "from pem import layers" imports a module, "from pem import PEM" a name
                whole = f"{module}.{alias.name}"
                yield whole if module.split(".")[0] in PACKAGES and is_module(whole) else module


def room_of(module: str) -> str | None:
    """The part of LEVELS that a module belongs to; None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "pem":
        return ".".join(parts[:2])
    return parts[0] if parts[0] in LEVEL_OF else None


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other one after the other, from the first to itself; empty where there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def upward_edges(source: str, module: str, is_package: bool = False) -> list[str]:
    package = module if is_package else module.rpartition(".")[0]
    own = room_of(module)
    assert own in LEVEL_OF, f"{module} has no level yet: give it one in LEVELS."
    wrong = []
    for imported in imported_modules(ast.parse(source), package):
        room = room_of(imported)
        if room is not None and room != own and LEVEL_OF[room] >= LEVEL_OF[own]:
            wrong.append(f"{module} -> {imported}")
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_module_imports_upwards(path: Path) -> None:
    assert not upward_edges(path.read_text(encoding="utf-8"), module_of(path), path.name == "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    module = module_of(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for imported in imported_modules(tree, module):
        library = imported.split(".")[0]
        homes = AT_HOME.get(library)
        assert homes is None or module.startswith(homes), f"{module} imports {library}, which belongs to {homes}."
    if module.startswith("pem"):
        at_import = {name for node in tree.body for name in imported_modules(shallow(node), module)}
        late = {name for name in at_import if name.split(".")[0] in LATE_IN_PEM}
        assert not late, f"{module} imports {late} at module level; import it in the function that needs it."


def shallow(node: ast.stmt) -> ast.AST:
    """The statement, unless its body runs only when it is called."""
    return ast.Pass() if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else node


def test_no_files_import_each_other_in_a_circle() -> None:
    imports = {}
    for path in SOURCES:
        module = module_of(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        imports[module] = set(imported_modules(ast.parse(path.read_text(encoding="utf-8")), package))
    assert not circle(imports)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}})


def test_the_check_sees_each_way_of_importing() -> None:
    assert upward_edges("import pem.model", "pem.layers") == ["pem.layers -> pem.model"]
    assert upward_edges("from pem.model import PEM", "pem.layers") == ["pem.layers -> pem.model"]
    assert upward_edges("from pem import model", "pem.layers") == ["pem.layers -> pem.model"]
    assert upward_edges("from . import model", "pem.layers") == ["pem.layers -> pem.model"]
    assert upward_edges("from .model import PEM", "pem.layers") == ["pem.layers -> pem.model"]
    assert upward_edges("def f():\n    import app", "analysis.flops") == ["analysis.flops -> app"]
    assert upward_edges("from pem.config import PEMConfig\nimport torch", "pem.layers") == []
    assert upward_edges("from .prototype import x", "pem.attention", is_package=True) == []

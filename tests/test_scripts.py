"""The page's scripts: modules that import one way, and are served where an old copy is never met."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import PurePosixPath

import httpx
import pytest

from ui.viewer import SCRIPTS, START, VERSION

IMPORT = re.compile(r'^(?:import|export)\s(?:[^;"()=]*\sfrom\s)?"([^"]+)";', re.MULTILINE)
# The folders in the order in which they build on each other.
FOLDERS = ["core", "prototypes", "gallery", "export", "viewer"]


def imports_of(path: str, text: str) -> list[str]:
    """The scripts that a script names in its imports, each by its path in ui/."""
    found = []
    for address in IMPORT.findall(text):
        assert address.startswith(("./", "../")) and address.endswith(".js"), f"{path} imports {address}"
        parts: list[str] = []
        for part in (PurePosixPath(path).parent / address).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        found.append("/".join(parts))
    return found


GRAPH = {path: imports_of(path, text.decode()) for path, text in SCRIPTS.items()}


def test_every_import_of_a_script_is_a_script_and_every_script_is_used() -> None:
    used, waiting = set(), ["viewer/main.js"]
    while waiting:
        path = waiting.pop()
        assert path in GRAPH, path
        if path not in used:
            used.add(path)
            waiting += GRAPH[path]
    assert used == set(GRAPH)


def test_no_scripts_import_each_other_in_a_circle() -> None:
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(GRAPH) > 20  # it raises CycleError


@pytest.mark.parametrize("path", GRAPH)
def test_no_script_imports_from_a_later_folder(path: str) -> None:
    own = FOLDERS.index(path.split("/")[0])
    assert [other for other in GRAPH[path] if FOLDERS.index(other.split("/")[0]) > own] == []


def test_the_check_sees_each_way_of_importing() -> None:
    text = 'import { a } from "./a.js";\nimport {\n  b,\n} from "../core/b.js";\n'
    text += 'import "./c.js";\nexport * from "./d.js";\nexport const e = () => "e";\n'
    assert imports_of("viewer/x.js", text) == ["viewer/a.js", "core/b.js", "viewer/c.js", "viewer/d.js"]
    with pytest.raises(AssertionError):
        imports_of("viewer/x.js", 'import "https://example.org/x.js";\n')


def test_scripts_are_served_as_modules_that_browsers_keep(page_url: str) -> None:
    assert f'"scripts/{VERSION}/viewer/main.js"' in START
    for path, text in SCRIPTS.items():
        answer = httpx.get(f"{page_url}scripts/{VERSION}/{path}")
        assert answer.content == text
        assert answer.headers["content-type"].startswith("text/javascript")
        assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("path", ["viewer/none.js", "viewer/__init__.py", "../viewer/main.js", "%2e%2e/app.py", ""])
def test_nothing_but_scripts_of_this_version_is_served_there(page_url: str, path: str) -> None:
    assert httpx.get(f"{page_url}scripts/{VERSION}/{path}").status_code == 404
    assert httpx.get(f"{page_url}scripts/0123456789abcdef/viewer/main.js").status_code == 404

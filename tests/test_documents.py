"""The documents: their links lead somewhere, their example runs, and the README is short."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "analysis" / "README.md",
    ROOT / "assets" / "weights" / "README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(document: Path) -> None:
    text = without_code(document)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), target
        assert not heading or heading in headings(path), target


def test_the_promises_of_security_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+(?:\.py)?)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert named and all((ROOT / name).exists() for name in named), named


def test_the_readme_is_short() -> None:
    _, front, body = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "app_file: app.py" in front
    assert len(body.strip().splitlines()) <= 120


def test_the_example_of_the_readme_runs() -> None:
    """On one of the example photos, in place of photo.jpg."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code.count('"photo.jpg"') == 1
    cat = os.fspath(ROOT / "assets" / "examples" / "cat.jpg")
    names: dict[str, object] = {}
    exec(compile(code.replace('"photo.jpg"', repr(cat)), "README.md", "exec"), names)
    for reading in ("seg", "panoptic", "semantic"):
        assert "cat" in {segment.label for segment in names[reading].segments}  # type: ignore[attr-defined]


def without_code(document: Path) -> str:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def headings(document: Path) -> set[str]:
    """The addresses that GitHub gives them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

"""Every text file is read and written as UTF-8: what Python takes without being told differs from system to system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    ROOT / "app.py",
    *(path for part in ("pem", "analysis", "ui", "tests") for path in (ROOT / part).rglob("*.py")),
]
TEXT = ("read_text", "write_text")
OPENERS = ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile")
OF_NO_TEXT = ("Image", "tarfile", "zipfile")  # their open() takes no encoding


def lines_without_encoding(source: str) -> list[int]:
    """The lines of calls that read or write text in an encoding that nobody named."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        function = node.func
        if isinstance(function, ast.Attribute):
            name, owner = function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
        else:
            name, owner = function.id if isinstance(function, ast.Name) else "", ""
        modes = [value for value in (*node.args, *(k.value for k in node.keywords)) if is_mode(value)]
        opens_text = name in OPENERS and owner not in OF_NO_TEXT and not any("b" in mode.value for mode in modes)
        opens_text &= not name.endswith("TemporaryFile") or bool(modes)  # which is binary unless told otherwise
        reads_text = any(k.arg == "text" and isinstance(k.value, ast.Constant) for k in node.keywords)  # of a process
        if opens_text or reads_text or name in TEXT:
            lines.append(node.lineno)
    return lines


def is_mode(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 4


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_utf_8(path: Path) -> None:
    assert lines_without_encoding(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_each_way() -> None:
    for call in (
        "path.read_text({})",
        "Path(name).write_text(text{})",
        "open(name{})",
        "path.open('w', newline=''{})",
        "open(name, mode='a'{})",
        "os.fdopen(number, 'w'{})",
        "tempfile.NamedTemporaryFile('w'{})",
        "subprocess.run(command, text=True{})",
    ):
        assert lines_without_encoding(call.format("")) == [1], call
        comma = "" if "({" in call else ", "
        assert lines_without_encoding(call.format(f"{comma}encoding='utf-8'")) == [], call
    for call in ("open(name, 'rb')", "path.open(mode='wb')", "Image.open(path)", "tempfile.NamedTemporaryFile()"):
        assert lines_without_encoding(call) == [], call

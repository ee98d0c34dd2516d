"""What the Dockerfile says fits this project. Docker itself is not needed."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from hosting.space import PARTS
from ui.settings import OPTIONS

ROOT = Path(__file__).parent.parent
STEPS = [
    (line.split(" ", 1)[0], line.split(" ", 1)[1])
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def steps(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def test_all_that_the_page_needs_is_copied_and_not_ignored() -> None:
    copied = {source for rest in steps("COPY") for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert copied - {"requirements-metrics.txt"} == {*PARTS} - {"docs"}
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for source in [*copied, ".git", ".venv", "runs"]:
        verdicts = [not rule.startswith("!") for rule in rules if fnmatch.fnmatch(source, rule.removeprefix("!"))]
        assert verdicts[-1] == (source not in copied), source


def test_it_serves_with_settings_that_exist_on_a_python_that_is_supported() -> None:
    names = {name for rest in steps("ENV") for name in re.findall(r"(PEM_\w+)=", rest)}
    assert names and names <= {option.variable for option in OPTIONS}
    (image,) = steps("FROM")
    assert image in {f"python:3.{minor}-slim" for minor in range(10, 14)}
    assert json.loads(steps("ENTRYPOINT")[0]) == ["python", "app.py"] and steps("USER") == ["pem"]


def test_a_container_is_healthy_when_the_page_is_and_only_then(page_url: str) -> None:
    (check,) = steps("HEALTHCHECK")
    _, program, code = json.loads(check.partition("CMD ")[2])
    assert shlex.split(check.partition("CMD ")[0])[0].startswith("--start-period")
    served = code.replace("http://127.0.0.1:7860/", page_url)
    assert subprocess.run([sys.executable, program, served], timeout=100).returncode == 0
    nobody = code.replace("7860", "9")  # the port of a service that throws all away, and that nobody has
    assert subprocess.run([sys.executable, program, nobody], timeout=100, stderr=subprocess.DEVNULL).returncode != 0

"""The options of app.py, from the command line and from the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ui.settings import OPTIONS, read_settings


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (
            [],
            {},
            {"port": None, "model": "default", "device": "auto", "queue": 200, "host_names": [], "max_side": None},
        ),
        ([], {"PEM_QUEUE": "7", "PEM_PORT": "", "PEM_HOST_NAMES": "a.org, b.org"}, {"queue": 7, "port": None}),
        (["--queue", "9"], {"PEM_QUEUE": "7", "PEM_HOST_NAMES": "a.org, b.org"}, {"host_names": ["a.org", "b.org"]}),
        (["--queue", "9", "--max-side", "512", "--threads", "3"], {"PEM_QUEUE": "7"}, {"queue": 9, "max_side": 512}),
    ],
)
def test_settings_come_from_the_command_or_the_environment(arguments, environment, expected) -> None:
    found = vars(read_settings(arguments, environment))
    assert {name: found[name] for name in expected} == expected


def test_the_documentation_lists_every_setting() -> None:
    page = (Path(__file__).parent.parent / "docs" / "hosting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `--")]
    expected = [(f"| `--{o.name} {o.metavar}`", f"`{o.variable}`", o.meaning) for o in OPTIONS]
    assert [(option, variable) for option, variable, _ in rows] == [
        (option, variable) for option, variable, _ in expected
    ]
    for (_, _, told), (_, _, meaning) in zip(rows, expected):
        assert told.startswith(meaning)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--port", "x"], {}), (["--port", "65536"], {}), ([], {"PEM_THREADS": "0"}), (["--max-side", "-1"], {})],
)
def test_an_impossible_setting_is_named(arguments, environment, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(arguments, environment)
    (name,) = environment or arguments[:1]
    assert re.search(f"{name}: .* is no whole number from", capsys.readouterr().err)

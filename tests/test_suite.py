"""A test that hangs is ended and shown and leaves no process behind; tests that cannot run say what they need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import ctypes
import threading

import pytest

is_running = threading.Event()

def of_another_thread():
    is_running.set()
    threading.Event().wait()

threading.Thread(target=of_another_thread, daemon=True).start()
is_running.wait()

@pytest.mark.timeout({limit})
def test_hangs():
    {hang}

def test_next():
    pass
"""
IN_PYTHON = "threading.Event().wait()"
WITH_THE_LOCK = "ctypes.PyDLL(None).pause()"  # called without giving the interpreter's lock away


@pytest.mark.skipif(sys.platform != "linux", reason="as tried on Linux")
@pytest.mark.parametrize(
    ("hang", "limit", "option", "said"),
    [
        (IN_PYTHON, 1, (), "Timeout (>1.0s)"),
        (WITH_THE_LOCK, 300, ("-o", "faulthandler_timeout=1"), "Timeout (0:00:01)!"),
    ],
    ids=["in Python", "with the interpreter's lock"],
)
def test_a_hanging_test_is_ended_and_shown(
    hang: str, limit: int, option: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "test_hangs.py"
    path.write_text(TESTS.format(hang=hang, limit=limit), encoding="utf-8")
    config = ("-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "no:cacheprovider")
    run = processes.run([sys.executable, "-m", "pytest", "-q", *config, *option, path])
    assert run.returncode == 1
    assert said in run.stdout + run.stderr
    assert "in of_another_thread" in run.stdout + run.stderr
    assert ("1 failed, 1 passed" in run.stdout) == (hang == IN_PYTHON)


SLEEP = "import time; print('asleep', flush=True); time.sleep(3600)"
# Each of these sees the end of its output only when nobody is left who could write to it.
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
KILLED = """
import os, processes, signal, subprocess, sys
with processes.started([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE) as process:
    print(process.stdout.readline(), end="", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs groups of processes")
def test_a_stopped_test_leaves_no_process_behind() -> None:
    with processes.started([sys.executable, "-c", CHILD, SLEEP], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == "asleep\n"
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_nor_does_a_test_whose_process_is_killed(tmp_path: Path) -> None:
    program = [sys.executable, "-c", KILLED, SLEEP]
    run = processes.run(program, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)})
    assert run.stdout == "asleep\n" and run.returncode == -signal.SIGKILL


def test_the_summary_says_how_to_run_what_was_skipped(tmp_path: Path) -> None:
    pytest.importorskip("playwright")  # without which they say so instead
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e/test_links.py"]
    run = processes.run(command, cwd=ROOT, env=os.environ | {"PATH": str(tmp_path)})
    *_, advice, counts = run.stdout.splitlines()
    assert advice == f"{counts.split()[0]} tests were skipped. There is no Chromium: apt-get install chromium."

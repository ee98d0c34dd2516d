"""Programs take the cores that they are given, and their threads do not hold on to them while they wait."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import processes
import pytest

from pem import cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_a_container_s_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="ascii")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cores.usable_cores() == expected
    for wanted, given in (("1", 1), ("16", expected), ("many", expected), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert cores.usable_cores() == given


@pytest.mark.parametrize(
    "program", ["pem.__main__", "pem.training.train", "pem.training.evaluate", "analysis.__main__"]
)
@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_programs_set_how_threads_wait_before_torch_is_there(program: str, given: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"GOMP_SPINCOUNT": given} if given else {}
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT')); sys.exit()\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {program}\n"
        "import torch"
    )
    run = processes.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parent.parent)
    assert (run.returncode, run.stdout.strip()) == (0, expected), run.stderr

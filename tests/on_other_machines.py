"""Runs the tests as other machines would: other processors' arithmetic, other threads, no compiler, other Pythons.

    .venv/bin/python tests/on_other_machines.py              # all guises, about two hours on two cores
    .venv/bin/python tests/on_other_machines.py busy march-x86-64-v2 --tests tests/test_native.py
    .venv/bin/python tests/on_other_machines.py --help       # names them

Prints a row for each guise and exits with 1 if a test failed in one. The tests in a browser are left out, and but for
the Pythons those that only count or time. A guise that this machine cannot take, because its processor lacks the
instructions or the Python is not installed, is reported as such and does not count as failed. A Python is tried in a
virtual environment of its own, of 6 GB, which is deleted afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import processes

ROOT = Path(__file__).parent.parent
# They count multiplications or compare times: what they find does not hang on the last bit of anything.
COUNT_OR_TIME = ("flops", "imports", "peers", "scaling", "speedup")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of Linux, in sys/prctl.h and linux/capability.h
PASSES_TIME = "while True: pass"


@dataclass(frozen=True)
class Guise:
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""  # what the processor must have, as /proc/cpuinfo says it
    python: str = ""  # another one than this
    busy: bool = False  # something else runs on every core
    no_compiler: bool = False
    read_only: bool = False  # the checkout and the home


GUISES = {
    "as-it-is": Guise(),
    "openblas-haswell": Guise({"OPENBLAS_CORETYPE": "Haswell"}, "avx2"),
    "openblas-skylakex": Guise({"OPENBLAS_CORETYPE": "SkylakeX"}, "avx512f"),
    "openblas-zen": Guise({"OPENBLAS_CORETYPE": "Zen"}, "avx2"),
    "openblas-prescott": Guise({"OPENBLAS_CORETYPE": "Prescott"}, "sse2"),
    "mkl-compatible": Guise({"MKL_CBWR": "COMPATIBLE"}, "sse2"),
    "aten-default": Guise({"ATEN_CPU_CAPABILITY": "default"}),
    "aten-avx2": Guise({"ATEN_CPU_CAPABILITY": "avx2"}, "avx2"),
    "onednn-avx2": Guise({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
    "onednn-sse41": Guise({"ONEDNN_MAX_CPU_ISA": "SSE41"}, "sse4_1"),
    "march-x86-64-v2": Guise({"PEM_MARCH": "x86-64-v2"}, "sse4_2"),
    "march-x86-64-v3": Guise({"PEM_MARCH": "x86-64-v3"}, "avx2"),
    "threads-1": Guise({"OMP_NUM_THREADS": "1"}),
    "threads-4": Guise({"OMP_NUM_THREADS": "4"}),
    "no-compiler": Guise(no_compiler=True),
    "busy": Guise(busy=True),
    "read-only": Guise(read_only=True),
    "python3.10": Guise(python="3.10"),
    "python3.12": Guise(python="3.12"),
    "python3.13": Guise(python="3.13"),
}


class NotOnThisMachine(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("guises", nargs="*", metavar="GUISE", help=f"all unless named: {', '.join(GUISES)}")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the output and the virtual environments here")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="these only")
    options = parser.parse_args()
    if unknown := set(options.guises) - GUISES.keys():
        parser.error(f"there is no guise {min(unknown)!r}; choose from {', '.join(GUISES)}.")
    print("| guise | passed | failed | skipped | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    all_passed = True
    for name in options.guises or GUISES:
        with contextlib.nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as parent:
            folder = Path(parent).resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                passed, row = run_tests(GUISES[name], folder, options.tests)
            except NotOnThisMachine as error:
                passed, row = True, f"not on this machine: {error} | | |"
            except subprocess.SubprocessError as error:
                passed, row = False, f"could not be made: {error} | | |"
            print(f"| {name} | {row} |", flush=True)
            if not passed and (folder / "output.txt").exists():
                print((folder / "output.txt").read_text(encoding="utf-8"), flush=True)
            all_passed &= passed
    return 0 if all_passed else 1


def run_tests(guise: Guise, folder: Path, tests: list[str] | None = None) -> tuple[bool, str]:
    """Whether all passed, and their counts as cells of a table. ``folder`` takes the output and what else is made."""
    if guise.needs and guise.needs not in processor_flags():
        raise NotOnThisMachine(f"its processor has no {guise.needs}")
    python = make_environment(guise.python, folder / "venv") if guise.python else Path(sys.executable)
    environment = {**os.environ, **guise.environment}
    left_out = ["tests/e2e", *(() if guise.python else (f"tests/test_{name}.py" for name in COUNT_OR_TIME))]
    arguments = tests or [f"--ignore={path}" for path in left_out]
    options: dict[str, Any] = {"cwd": ROOT}
    report, output = folder / "report.xml", folder / "output.txt"
    report.unlink(missing_ok=True)
    processes_of_tests = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    command = [python, "-m", "pytest", "-q", *processes_of_tests, f"--junitxml={report}", *arguments]
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if guise.no_compiler:
            environment |= {"PATH": str(scratch), "XDG_CACHE_HOME": str(scratch)}
        if guise.read_only:
            copy = make_read_only_copy(scratch / "copy")
            environment |= {"HOME": str(copy), "XDG_CACHE_HOME": ""}
            options |= {"cwd": copy, "preexec_fn": obey_permissions}
        for _ in range(os.cpu_count() or 1) if guise.busy else ():
            stack.enter_context(processes.started([sys.executable, "-c", PASSES_TIME]))
        file = stack.enter_context(output.open("w", encoding="utf-8"))
        running = processes.started(command, stdout=file, stderr=subprocess.STDOUT, env=environment, **options)
        returned = stack.enter_context(running).wait()
    seconds = time.monotonic() - start
    if not report.exists():
        return False, f"ended with {returned} | | | {seconds:.0f}"
    found = ElementTree.parse(report).getroot()[0].attrib
    failed, skipped = int(found["failures"]) + int(found["errors"]), int(found["skipped"])
    return returned == 0, f"{int(found['tests']) - failed - skipped} | {failed} | {skipped} | {seconds:.0f}"


def processor_flags() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split() for line in lines if line.startswith("flags")), [])


def make_environment(version: str, folder: Path) -> Path:
    """The Python of a virtual environment with everything that the tests need; made unless it is there."""
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        subprocess.run([find_python(version), "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", ROOT / "requirements-dev.txt"], check=True)
        subprocess.run([*pip, "--no-deps", "-r", ROOT / "requirements-readers.txt"], check=True)
        (folder / ".installed").touch()
    return python


def find_python(version: str) -> Path:
    """In PATH, or among those that pyenv has installed."""
    by_pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for candidate in filter(None, (shutil.which(f"python{version}"), *by_pyenv)):
        asked = subprocess.run(
            [candidate, "--version"], capture_output=True, text=True, encoding="utf-8"
        )  # pyenv's shims may be empty
        if asked.stdout.startswith(f"Python {version}."):
            return Path(candidate)
    raise NotOnThisMachine(f"there is no python{version}")


def make_read_only_copy(folder: Path) -> Path:
    def is_ignored(_: str, names: list[str]) -> Iterator[str]:
        return (name for name in names if name.startswith(".") or name in ("__pycache__", "data", "runs"))

    shutil.copytree(ROOT, folder, ignore=is_ignored)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    return folder


def obey_permissions() -> None:
    """Root may write where nobody may, but for this process and its children."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) != 0:
        raise PermissionError("Root's right to write anywhere cannot be given up.")


if __name__ == "__main__":
    sys.exit(main())

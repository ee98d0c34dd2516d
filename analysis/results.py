"""No number without its conditions: what a result was measured on, and how it is kept."""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def conditions(device: str | torch.device, precision: str = "float32") -> dict[str, Any]:
    """What a number depends on besides the model: device, threads, precision, versions, commit, command, date (UTC)."""
    device = torch.device(device)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": arithmetic(device, precision),
        "commit": commit(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def machine(measured_on: dict[str, Any]) -> str:
    """Where ``conditions`` say that something was measured, to be read by people."""
    threads = measured_on["threads"]
    return f"{measured_on['device']}, {threads} thread{'s' if threads > 1 else ''}, {measured_on['precision']}"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "meta":
        return "meta (counted, nothing computed)"
    # platform.processor() knows only the architecture on Linux.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def arithmetic(device: torch.device, precision: str) -> str:
    if precision != "float32":
        return f"{precision} autocast"
    if device.type != "cuda":
        return precision
    # On recent GPUs float32 may mean TF32, with a tenth of the mantissa lost to speed.
    tf32 = {"convolutions": torch.backends.cudnn.allow_tf32, "matrix products": torch.backends.cuda.matmul.allow_tf32}
    return f"float32, TF32 in: {', '.join(name for name, allowed in tf32.items() if allowed) or 'nothing'}"


def commit() -> str:
    """The commit that is checked out, with "-dirty" when files were changed since; "unknown" outside a repository.

    Results do not count: or the first that is measured anew would make all others of the run look changed.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=RESULTS.parents[1], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)analysis/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save_json(result: dict[str, Any], path: str | Path) -> None:
    """Writes a result, in which records may stand. Raises ValueError when it has no "conditions"."""
    if "conditions" not in result:
        raise ValueError('The result has no "conditions"; add analysis.results.conditions(device) before saving it.')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a run that is stopped here leaves the old file whole.
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(result, indent=1, default=dataclasses.asdict) + "\n")
    part.replace(path)


def result_path(name: str, measured_on: dict[str, Any]) -> Path:
    """Where a run is kept unless told otherwise: its name, the machine and the precision in the file name."""
    machine = f"{measured_on['device']} {measured_on['threads']} threads {measured_on['precision'].split(',')[0]}"
    return RESULTS / f"{name}_{re.sub('[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"


def save_tables(result: dict[str, Any], path: str | Path) -> None:
    """Writes a result as JSON, and beside it what ``flat_rows`` finds in it as CSV and as Markdown.

    The Markdown also has the "growth" of a result that has one.
    """
    save_json(result, path)
    rows = flat_rows(result)
    with Path(path).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    about = result["conditions"]
    tables = [markdown_table(table) for table in (result.get("growth"), rows) if table]
    text = "\n".join(
        [f"{machine(about)}, torch {about['torch']}, commit {about['commit']}: `{about['command']}`\n", *tables]
    )
    Path(path).with_suffix(".md").write_text(text)


def flat_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The "rows" of a result; those of its "cases", each with what the case says of itself, when it has cases."""
    if "cases" not in result:
        return result["rows"]
    rows = []
    for case in result["cases"]:
        about = {name: value for name, value in case.items() if not isinstance(value, (list, tuple, dict))}
        rows += [about | {"size": "x".join(map(str, case["size"]))} | row for row in case["rows"]]
    return rows


def markdown_table(table: Iterable[dict[str, Any]]) -> str:
    """Rows have the same keys, and there is one at least. Four significant digits; nothing where there is no value."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = list(table)
    body = (line(map(cell, row.values())) for row in rows)
    return line(rows[0]) + line("---" for _ in rows[0]) + "".join(body)

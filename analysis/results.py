"""No number without its conditions: how a result is kept."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine(measured_on: dict[str, Any]) -> str:
    """Where ``conditions`` say that something was measured, to be read by people."""
    threads = measured_on["threads"]
    return f"{measured_on['device']}, {threads} thread{'s' if threads > 1 else ''}, {measured_on['precision']}"


def save_json(result: dict[str, Any], path: str | Path) -> None:
    """Writes a result, in which records may stand. Raises ValueError when it has no "conditions", or a nan in it."""
    if "conditions" not in result:
        raise ValueError('The result has no "conditions"; add pem.conditions.conditions(device) before saving it.')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a run that is stopped here leaves the old file whole.
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(result, indent=1, default=dataclasses.asdict, allow_nan=False) + "\n", encoding="utf-8")
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
    with Path(path).with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        writer.writerows(rows)
    about = result["conditions"]
    tables = [markdown_table(table) for table in (result.get("growth"), rows) if table]
    text = "\n".join(
        [f"{machine(about)}, torch {about['torch']}, commit {about['commit']}: `{about['command']}`\n", *tables]
    )
    Path(path).with_suffix(".md").write_text(text, encoding="utf-8")


def flat_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The "rows" of a result; those of its "cases", each with what the case says of itself, when it has cases."""
    if "cases" not in result:
        return result["rows"]
    rows = []
    for case in result["cases"]:
        about = {name: value for name, value in case.items() if not isinstance(value, (list, tuple, dict))}
        rows += [about | {"size": "x".join(map(str, case["size"]))} | row for row in case["rows"]]
    return rows


def columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all rows, each once."""
    return list(dict.fromkeys(key for row in rows for key in row))


def markdown_table(table: Iterable[dict[str, Any]]) -> str:
    """Of one row at least. Four significant digits; nothing where a row has no value."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = list(table)
    header = columns(rows)
    body = (line(cell(row.get(column)) for column in header) for row in rows)
    return line(header) + line("---" for _ in header) + "".join(body)

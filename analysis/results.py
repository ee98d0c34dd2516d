"""No number without its conditions: how a run shows what it measures, and how it is kept."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pem.conditions import conditions

ASSETS = Path(__file__).parents[1] / "assets"
EXAMPLES, FIGURES = ASSETS / "examples", ASSETS / "figures"
RESULTS = Path(__file__).parent / "results"
MIB = 2**20  # bytes

Row = dict[str, Any]
Result = dict[str, Any]


class Report:
    """The rows of one run: each is printed when it is known, and all are saved with the conditions of the run.

    >>> report = Report("network", "median_ms", device="cpu")
    >>> report.add({"network": "PEM", "median_ms": 12.0, "p90_ms": 13.0})
    >>> report.save("latency")  # as JSON, CSV and Markdown; all columns, not only those that were printed
    """

    def __init__(
        self, *shown: str, device: str | torch.device = "cpu", precision: str = "float32", out: Path | None = None
    ) -> None:
        self.conditions = conditions(device, precision)
        self.rows: list[Row] = []
        self._out, self._shown, self._widths = out, shown, [8] * len(shown)
        self._lines = [list(shown)]  # that are not printed yet
        print(machine(self.conditions), flush=True)

    def show(self, row: Row) -> None:
        """Prints the columns that are shown; above the first row, also their names."""
        self._lines.append([cell(row.get(name)) for name in self._shown])
        self._widths = [max(width, *map(len, texts)) for width, *texts in zip(self._widths, *self._lines)]
        for line in self._lines:
            print("  ".join(text.ljust(width) for text, width in zip(line, self._widths)).rstrip(), flush=True)
        self._lines = []

    def add(self, row: Row) -> None:
        """Shows the row and keeps it."""
        self.show(row)
        self.rows.append(row)

    def path(self, name: str) -> Path:
        """Where the run is kept: in ``out``, or else in analysis/results under its name and that of the machine."""
        about = self.conditions
        text = f"{about['device']} {about['threads']} threads {about['precision'].split(',')[0]}"
        return self._out or RESULTS / f"{name}_{re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')}.json"

    def save(self, name: str, **others: Any) -> None:
        """Keeps the rows, if there are any, and all that is given beside them. Raises what ``save`` raises."""
        rows = {"rows": self.rows} if self.rows else {}
        save({"conditions": self.conditions, **others, **rows}, self.path(name))


def machine(measured_on: Row) -> str:
    """The device, threads and precision of some conditions, in words."""
    threads = measured_on["threads"]
    return f"{measured_on['device']}, {threads} thread{'s' if threads > 1 else ''}, {measured_on['precision']}"


def load(path: Path) -> Result:
    """A stored result. Raises OSError where there is none."""
    return json.loads(path.read_text(encoding="utf-8"))


def save(result: Result, path: str | Path) -> None:
    """Writes a result as JSON; of one with rows also a table as CSV and one as Markdown, which includes its "growth".

    Raises ValueError for a result without "conditions", and for one that contains a nan.
    """
    if "conditions" not in result:
        raise ValueError('The result has no "conditions"; add pem.conditions.conditions(device) before saving it.')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a run that is stopped here leaves the old file whole.
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(result, indent=1, default=dataclasses.asdict, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)
    rows = flat_rows(load(path))
    if not rows:
        return
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        writer.writerows(rows)
    about = result["conditions"]
    tables = [markdown_table(table) for table in (result.get("growth"), rows) if table]
    text = "\n".join(
        [f"{machine(about)}, torch {about['torch']}, commit {about['commit']}: `{about['command']}`\n", *tables]
    )
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def flat_rows(result: Result) -> list[Row]:
    """The "rows" of a result. Where it has "cases", the rows of each, which begin with what the case says of itself."""
    rows = list(result.get("rows", []))
    for case in result.get("cases", []):
        about = {name: value for name, value in case.items() if not isinstance(value, (list, tuple, dict))}
        rows += [about | {"size": "x".join(map(str, case["size"]))} | row for row in case["rows"]]
    return rows


def columns(rows: Iterable[Row]) -> list[str]:
    """The keys of all rows, each once."""
    return list(dict.fromkeys(key for row in rows for key in row))


def cell(value: Any) -> str:
    """Numbers have four significant digits; nothing stands where there is no value."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)


def markdown_table(table: Iterable[Row]) -> str:
    """A table of at least one row."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    rows = list(table)
    header = columns(rows)
    body = (line(cell(row.get(column)) for column in header) for row in rows)
    return line(header) + line("---" for _ in header) + "".join(body)

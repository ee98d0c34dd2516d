"""The tables of the README, of this package's README and of the model card, from stored results.

Where a document has ``<!-- KIND from FILE -->`` and ``<!-- end -->``, what lies between is made anew from
``results/FILE.json``. So no number is typed by hand.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from analysis.charts import select
from analysis.results import FIGURES, RESULTS, Result, Row, load, machine, markdown_table

ROOT = RESULTS.parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "analysis" / "README.md", ROOT / "assets" / "weights" / "README.md")
MARKED = re.compile(r"<!-- (\w+) from ([\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)


def renew(document: Path) -> None:
    """Rewrites the marked parts. Raises ValueError for a table that nobody knows, and OSError without its result."""

    def table(match: re.Match[str]) -> str:
        kind, file = match.groups()
        if kind not in TABLES:
            raise ValueError(f"{document.name} wants a table {kind!r}; choose one of: {', '.join(TABLES)}.")
        result = load(RESULTS / f"{file}.json") if file != "all" else {}
        return f"<!-- {kind} from {file} -->\n{TABLES[kind](result)}<!-- end -->"

    document.write_text(MARKED.sub(table, document.read_text(encoding="utf-8")), encoding="utf-8")


def results(_: Result) -> str:
    """Which file and figure came from which command, machine and commit."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        about = load(path)["conditions"]
        figure = FIGURES / f"{path.stem}.png"
        rows.append(
            {
                "result": f"[{path.name}](results/{path.name})",
                "figure": f"[{figure.name}](../assets/figures/{figure.name})" if figure.exists() else None,
                "command": f"`{about['command']}`",
                "machine": machine(about),
                "commit": about["commit"],
            }
        )
    return markdown_table(rows)


def networks(result: Result) -> str:
    rows = [row for row in result["rows"] if row["median_ms"] is not None]
    baseline = next(row for row in rows if row["network"].startswith("Mask2Former"))
    return markdown_table(
        {
            f"network, {'x'.join(map(str, result['size']))} px": row["network"],
            "parameters": f"{row['params_m']:.1f} M",
            "GMACs": f"{row['gmacs']:.1f}",
            "time": f"{row['median_ms'] / 1000:.2f} s",
            "Mask2Former / it": times_as_fast(row, baseline),
            "note": row["note"],
        }
        for row in rows
    )


def attention(result: Result) -> str:
    """One forward pass with 100 queries."""
    by_method: dict[str, dict[str, Row]] = {}
    for row in select(result["rows"], direction="forward", num_queries=100):
        by_method.setdefault(row["tokens"], {})[row["method"]] = row
    return markdown_table(
        {
            "tokens, 100 queries": tokens,
            "prototype": f"{rows['prototype']['median_ms']:.1f} ms",
            "masked, fused": f"{rows['sdpa']['median_ms']:.1f} ms",
            "masked / prototype": times_as_fast(rows["prototype"], rows["sdpa"]),
            "MACs, masked / prototype": f"{rows['sdpa']['gmacs'] / rows['prototype']['gmacs']:.2f}x",
        }
        for tokens, rows in by_method.items()
    )


def times_as_fast(row: Row, baseline: Row) -> str:
    """The median of the ratios of the rounds; of a result that was stored without it, the ratio of the medians."""
    return f"{row.get('speedup') or baseline['median_ms'] / row['median_ms']:.2f}x"


def training(result: Result) -> str:
    return markdown_table(
        {
            "training step": row["variant"],
            "photos per second": f"{row['photos_per_s']:.2f}",
            "speed-up": f"{row['speedup']:.2f}x",
        }
        for row in result["rows"]
    )


def speedup(result: Result) -> str:
    return markdown_table(
        {
            "image": f"{row['height_px']}x{row['width_px']}, {row['num_queries']} queries",
            "part": {"decoders": "without backbone", "total": "whole"}[row["stage"]],
            "plain": f"{row['plain_ms']:.0f} ms, {row['plain_mib']:.0f} MiB",
            "fast": f"{row['fast_ms']:.0f} ms, {row['fast_mib']:.0f} MiB",
            "faster": f"{row['speedup']:.2f}x",
            "memory left": f"{row['memory']:.2f}",
        }
        for row in result["rows"]
        if row["stage"] != "backbone"
    )


def readings(result: Result) -> str:
    """Reading and drawing together, photo by photo."""
    by_photo: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        about = f"{row['photo']}, {row['width_px']}x{row['height_px']} px"
        by_photo.setdefault(about, {})[row["reading"]] = row
    return markdown_table(
        {
            "photo": photo,
            "panoptic": f"{rows['panoptic']['total_ms']:.0f} ms",
            "of it drawing": f"{rows['panoptic']['drawing_ms']:.0f} ms",
            "usual reading / ours": f"{rows['panoptic']['speedup']:.1f}x",
            "semantic": f"{rows['semantic']['total_ms']:.0f} ms",
            "instances": f"{rows['instance']['total_ms']:.0f} ms",
        }
        for photo, rows in by_photo.items()
    )


def runtimes(result: Result) -> str:
    """A row for each work, with a cell for each runtime; masked attention has rows of its own."""
    table: dict[str, Row] = {}
    for row in result["rows"]:
        runtime, *attention = row["runtime"].split()
        what = row["what"] + ", masked attention" * bool(attention)
        cell = f"{row['median_ms']:.0f} ms, {row['speedup']:.2f}x"
        if row.get("peak_mib"):
            cell += f", {row['peak_mib']:.0f} MiB"
        table.setdefault(what, {"what": what})[runtime] = cell
    return markdown_table(table.values())


def exported_peers(result: Result) -> str:
    """What was refused has its reason as a note."""
    return markdown_table(
        {
            "network": row["network"],
            "runtime": row["runtime"],
            "precision": row["precision"],
            "time": f"{row['median_ms']:.0f} ms" if row.get("median_ms") else "",
            "as fast": f"{row['speedup']:.1f}x" if row.get("speedup") else "",
            "note": row["note"],
        }
        for row in result["rows"]
    )


def precisions(result: Result) -> str:
    """One row for each runtime and precision; what was not measured is left empty."""

    def cell(row: Row, key: str, form: str, factor: float = 1) -> str:
        return form.format(factor * row[key]) if row.get(key) is not None else ""

    return markdown_table(
        {
            "runtime": row["runtime"],
            "precision": row["precision"],
            "file": cell(row, "file_mb", "{:.0f} MB"),
            "PQ": cell(row, "pq", "{:.1f}", 100),
            "mIoU": cell(row, "miou", "{:.1f}", 100),
            "same prototypes": cell(row, "prototypes", "{:.0f} %", 100),
            "time": f"{row['median_ms']:.0f} ms, {row['speedup']:.2f}x",
            "at one size": cell(row, "fixed_ms", "{:.0f} ms, ") + cell(row, "fixed_speedup", "{:.2f}x"),
            "peak memory": cell(row, "peak_mib", "{:.0f} MiB"),
        }
        for row in result["rows"]
    )


def scores(result: Result) -> str:
    """Of an evaluation: everything, then each source, in percent."""
    keys = {"miou": "mIoU", "pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"}
    return markdown_table(
        {"source": source, "photos": row["images"]} | {name: percent(row[key]) for key, name in keys.items()}
        for source, row in {"all": result["overall"], **result["per_source"]}.items()
    )


def classes(result: Result) -> str:
    """Of an evaluation, in percent."""
    return markdown_table(
        {"class": row["category"], "kind": "thing" if row["is_thing"] else "stuff", "segments": row["segments"]}
        | {key.upper().replace("IOU", "IoU"): percent(row[key]) for key in ("iou", "pq", "sq", "rq")}
        for row in result["overall"]["per_class"]
    )


def intervals(result: Result) -> str:
    """Of a validation, in percent: the value and its 95 % interval over resampled photos."""

    def cell(score: dict[str, float | None]) -> str:
        if score["value"] is None:  # VOC has no true stuff
            return "–"
        return f"{percent(score['value'])} ({percent(score['low'])} to {percent(score['high'])})"

    keys = {"miou": "mIoU", "pq": "PQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"}
    return markdown_table(
        {"source": source, "photos": row["photos"]} | {name: cell(row[key]) for key, name in keys.items()}
        for source, row in result["per_source"].items()
    )


def variants(result: Result) -> str:
    def cell(row: Row, key: str, sign: str = "") -> str:
        if key not in row:
            return ""
        low, high = (format(row[f"{key}_{end}"], f"{sign}.1f") for end in ("low", "high"))
        return f"{row[key]:{sign}.1f} ({low}\N{NO-BREAK SPACE}to {high})"

    def gains(row: Row) -> Row:
        """Over masked attention, where the rows were compared with it."""
        return {f"{name} gain": cell(row, f"{key}_gain", "+") for key, name in (("miou", "mIoU"), ("pq", "PQ"))}

    has_gains = any("pq_gain" in row for row in result["rows"])
    return markdown_table(
        {
            "variant": row["variant"],
            "mIoU": cell(row, "miou"),
            "PQ": cell(row, "pq"),
            **(gains(row) if has_gains else {}),
            "time": f"{row['median_ms']:.0f} ms",
            "peak memory": f"{row['peak_mib']:.0f} MiB",
            "GMACs": f"{row['gmacs']:.2f}",
            "weights": f"{row['parameters_m']:.1f} M",
        }
        for row in result["rows"]
    )


def percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.1f}"


TABLES: dict[str, Callable[[Result], str]] = {
    table.__name__: table
    for table in (
        *(results, networks, attention, training, speedup, readings, runtimes, precisions, exported_peers),
        *(scores, classes, intervals, variants),
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> None:
    """Makes the tables of all documents anew."""
    for document in DOCUMENTS:
        renew(document)

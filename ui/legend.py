"""A reading in words: the JSON that the API returns, and the legend that the page draws from it."""

from __future__ import annotations

from html import escape
from typing import Any

from ui.engine import Reading


def describe(reading: Reading) -> dict[str, Any]:
    """The reading as plain JSON: areas and boxes (left, top, width, height) in pixels of the photo, times in ms."""
    height, width = reading.segmentation.ids.shape
    return {
        "task": reading.task,
        "height": height,
        "width": width,
        "network_ms": round(reading.network_ms, 1),
        "reading_ms": round(reading.reading_ms, 1),
        "segments": [
            {
                "id": segment.id,
                "category": segment.label,
                "category_id": segment.category_id,
                "is_thing": segment.is_thing,
                "score": round(segment.score, 4),
                "area": segment.area_px,
                "bbox": list(segment.bbox),
                "queries": list(segment.queries),
                "color": "#{:02x}{:02x}{:02x}".format(*segment.color),
            }
            for segment in reading.segmentation.segments
        ],
    }


EMPTY_LEGEND = """
<div class="empty">
  <p>Nothing segmented yet.</p>
  <p>Drop a photo on the left, paste one with <kbd>Ctrl</kbd> <kbd>V</kbd>, or pick an example:
  its classes, their share of the photo and the model's scores appear here.</p>
</div>
"""


def legend_html(description: dict[str, Any]) -> str:
    """What ``describe`` returned as a table, largest segment first, with a last row for what was not recognised."""
    total_px = description["height"] * description["width"]
    segments = sorted(description["segments"], key=lambda segment: -segment["area"])
    rows = [_row(escape(s["category"]), s["color"], s["area"] / total_px, f"{s['score']:.2f}") for s in segments]
    unrecognised_px = total_px - sum(segment["area"] for segment in segments)
    if unrecognised_px:
        rows.append(_row("not recognised", "", unrecognised_px / total_px, "–"))
    times = f"network {description['network_ms']:.0f} ms · reading {description['reading_ms']:.0f} ms"
    count = f"{len(segments)} segment" + ("" if len(segments) == 1 else "s")
    return f"""
<table>
  <caption><span>{count}</span><span class="times">{times}</span></caption>
  <thead><tr><th scope="col">Class</th><th scope="col">Area</th><th scope="col">Score</th></tr></thead>
  <tbody>{"".join(rows)}</tbody>
</table>
"""


def _row(name: str, color: str, share: float, score: str) -> str:
    swatch = f'<i style="background:{color}"></i>' if color else '<i class="none"></i>'
    return f"<tr><th scope='row'>{swatch}{name}</th><td>{share:.1%}</td><td>{score}</td></tr>"

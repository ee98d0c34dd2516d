"""Says in words what became of every query in a reading, and why."""

from __future__ import annotations

from pem.outputs import QueryOutcome
from pem.pixels import QUERY_SHARE
from ui.engine import Reading


def explain_outcome(outcome: QueryOutcome, reading: Reading) -> str:
    """One short sentence about one query, with the numbers that decided. It has no capital and no full stop.

    The outcome must belong to this ``reading``.
    """
    if outcome.fate == "kept":
        return _explain_kept(outcome, reading)
    if outcome.fate == "merged":
        segment = reading.segmentation.segments[outcome.segment_ids[0] - 1]
        return f"merged into segment {segment.id} ({segment.label}), which query {segment.queries[0]} began"
    if outcome.fate == "no object":
        no_object, best = _percent(outcome.no_object_score), _percent(outcome.score)
        return f"no object ({no_object}) is likelier than {outcome.label} ({best})"
    if outcome.fate == "low score":
        if outcome.score > reading.object_threshold:  # a reading of instances takes a limited number of queries
            return f"score {outcome.score:.2f} is above the threshold, but not among the best that are read"
        score, threshold, digits = outcome.score, reading.object_threshold, 2
        while score != threshold and f"{score:.{digits}f}" == f"{threshold:.{digits}f}":
            digits += 1  # because rounding makes them look equal
        return f"score {score:.{digits}f} is not above the threshold {threshold:.{digits}f}"
    if outcome.fate == "lost pixels":
        return "other queries won all pixels of its mask"
    if outcome.fate == "small overlap":
        share = _percent(outcome.mask_share or 0.0, digits=1)
        return f"won {share} of its mask; the overlap threshold asks for {_percent(reading.overlap_threshold)}"
    if outcome.fate == "little evidence":
        return f"gave less than {_percent(QUERY_SHARE)} of the evidence for every segment"
    if outcome.fate == "not a thing":
        return f"its best class, {outcome.label}, is stuff, and instances are of things only"
    return f"its mask is empty: no pixel reaches a probability of {_percent(0.5)}"


def _explain_kept(outcome: QueryOutcome, reading: Reading) -> str:
    *others, last = map(str, outcome.segment_ids)
    segments = f"segments {', '.join(others)} and {last}" if others else f"segment {last}"
    if outcome.mask_share is not None:
        return f"drew {segments}: it won {_percent(outcome.mask_share)} of its mask"
    alone = all(len(reading.segmentation.segments[int(n) - 1].queries) == 1 for n in (*others, last))
    return f"drew {segments}" if alone else f"helped to draw {segments}"


def _percent(fraction: float, digits: int = 0) -> str:
    return f"{fraction * 100:.{digits}f}\u00a0%"  # a space that does not break

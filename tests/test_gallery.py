"""What the gallery says about a query: each fate in one sentence, with the numbers that decided."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from pem.outputs import Fate, QueryOutcome, Segment, Segmentation
from ui.engine import Reading
from ui.gallery import explain_outcome


def segment(id: int, label: str, queries: tuple[int, ...]) -> Segment:
    return Segment(id, 0, label, False, 0.9, 1, (0, 0, 1, 1), queries)


SEGMENTS = (segment(1, "cat", (4,)), segment(2, "sky", (7, 9)), segment(3, "tree", (5,)))
READING = Reading(Segmentation(np.zeros((1, 1), np.int32), SEGMENTS), "panoptic", 0.5, 0.6, 1.0)
OUTCOME = QueryOutcome(9, 0, "sky", 0.31, 0.974, "kept", (2,), None)

SENTENCES = {
    "kept": "helped to draw segment 2",
    "merged": "merged into segment 2 (sky), which query 7 began",
    "no object": "no object (97\u00a0%) is likelier than sky (31\u00a0%)",
    "low score": "score 0.31 is not above the threshold 0.50",
    "lost pixels": "other queries won all pixels of its mask",
    "small overlap": "won 43.2\u00a0% of its mask; the overlap threshold asks for 60\u00a0%",
    "little evidence": "gave less than 10\u00a0% of the evidence for every segment",
    "not a thing": "its best class, sky, is stuff, and instances are of things only",
    "empty mask": "its mask is empty: no pixel reaches a probability of 50\u00a0%",
}


@pytest.mark.parametrize("fate", get_args(Fate))
def test_every_fate_has_its_sentence(fate: Fate) -> None:
    mask_share = 0.432 if fate == "small overlap" else None
    outcome = replace(OUTCOME, fate=fate, segment_ids=(2,) if fate in ("kept", "merged") else (), mask_share=mask_share)
    assert explain_outcome(outcome, READING) == SENTENCES[fate]


def test_a_kept_query_names_all_that_it_drew() -> None:
    assert explain_outcome(replace(OUTCOME, query=4, segment_ids=(1,)), READING) == "drew segment 1"
    assert explain_outcome(replace(OUTCOME, segment_ids=(1, 3)), READING) == "drew segments 1 and 3"
    assert explain_outcome(replace(OUTCOME, segment_ids=(1, 2, 3)), READING) == "helped to draw segments 1, 2 and 3"
    won = replace(OUTCOME, query=4, segment_ids=(1,), mask_share=0.934)
    assert explain_outcome(won, READING) == "drew segment 1: it won 93\u00a0% of its mask"


def test_a_low_score_above_the_threshold_is_not_said_to_be_below_it() -> None:
    sentence = explain_outcome(replace(OUTCOME, score=0.52, fate="low score", segment_ids=()), READING)
    assert sentence == "score 0.52 is above the threshold, but not among the best that are read"


def test_a_score_just_below_the_threshold_does_not_look_equal() -> None:
    reading = Reading(Segmentation(np.zeros((1, 1), np.int32), ()), "panoptic", 0.5, 0.6, 0.0)
    outcome = QueryOutcome(0, 0, "cat", 0.4996, 0.1, "low score", (), None)
    assert explain_outcome(outcome, reading) == "score 0.4996 is not above the threshold 0.5000"

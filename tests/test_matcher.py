"""The matcher, on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pem.outputs import Prediction
from pem.training.config import TrainingConfig
from pem.training.matcher import draw_points, is_known, match, matching_cost, sample_nearest, sample_segments
from pem.training.target import Target

ALL_POINTS = TrainingConfig(match_points=1_000_000)  # more than there are pixels: every pixel centre once


def target(ids: list[list[int]], labels: list[int], num_classes: int = 3, exhaustive: tuple[bool, ...] | None = None):
    return Target(
        ids=torch.tensor(ids, dtype=torch.int16),
        labels=torch.tensor(labels, dtype=torch.int64),
        weights=torch.ones(len(labels)),
        exhaustive=torch.tensor(exhaustive or (True,) * num_classes),
    )


def test_every_pixel_centre_once_when_there_are_enough_points() -> None:
    points = draw_points(2, 6, (2, 3), torch.device("cpu"))
    assert points.shape == (2, 6, 2)
    assert torch.allclose(points[0, 0], torch.tensor([0.25, 1 / 6]))
    assert len({tuple(p) for p in points[1].tolist()}) == 6
    assert draw_points(2, 5, (2, 3), torch.device("cpu")).shape == (2, 5, 2)


def test_segments_are_sampled_as_grid_sample_samples_their_masks() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 5, (7, 9), dtype=torch.int16)
    segment = torch.tensor([0, 1, 2, 1])
    points = torch.rand(4, 50, 2)
    masks = (ids[None] == segment[:, None, None] + 2).float()[:, None]
    grid = (2 * points.flip(-1) - 1)[:, :, None]
    expected = F.grid_sample(masks, grid, padding_mode="border", align_corners=False)[:, 0, :, 0]
    assert torch.allclose(sample_segments(ids, points, segment), expected, atol=1e-6)
    centre = torch.tensor([[[(3 + 0.5) / 7, (4 + 0.5) / 9]]])
    assert sample_nearest(ids, centre)[0, 0] == ids[3, 4]


def test_void_says_nothing_and_unlisted_pixels_speak_for_exhaustive_classes_only() -> None:
    ids = torch.tensor([[0, 1, 2, 3]])
    known = is_known(ids, torch.tensor([0, 1]), torch.tensor([True, False]))
    assert known.tolist() == [[False, True, True, True], [False, False, True, True]]


def test_cost_of_one_query_by_hand() -> None:
    # Two points, the segment covers the first. The query says 0 logits: p = 1/2 everywhere.
    cost = matching_cost(
        class_logits=torch.tensor([[0.0, 0.0]]),
        mask_logits=torch.tensor([[0.0, 0.0]]),
        labels=torch.tensor([0]),
        inside=torch.tensor([[1.0, 0.0]]),
        known=torch.tensor([[True, True]]),
        config=TrainingConfig(),
    )
    # class: -1/2; BCE: log 2; dice: 1 - (2 * 1/2 + 1) / (1 + 1 + 1) = 1/3.
    assert cost.item() == pytest.approx(2 * -0.5 + 5 * math.log(2) + 5 / 3, rel=1e-6)


def test_unknown_points_do_not_change_the_cost() -> None:
    arguments = {"class_logits": torch.zeros(1, 2), "labels": torch.tensor([0]), "config": TrainingConfig()}
    two = matching_cost(
        mask_logits=torch.tensor([[2.0, -1.0]]),
        inside=torch.tensor([[1.0, 0.0]]),
        known=torch.tensor([[True, True]]),
        **arguments,
    )
    three = matching_cost(
        mask_logits=torch.tensor([[2.0, -1.0, 30.0]]),
        inside=torch.tensor([[1.0, 0.0, 0.0]]),
        known=torch.tensor([[True, True, False]]),
        **arguments,
    )
    assert torch.allclose(two, three)


def test_each_segment_gets_the_query_that_drew_it() -> None:
    # A 4x4 image: segment 0 is the left half, segment 1 the right. Query 0 draws right, query 2 left, query 1 nothing.
    ids = [[2, 2, 3, 3]] * 4
    left = torch.tensor([[9.0, 9.0, -9.0, -9.0]]).expand(4, 4)
    features = torch.stack((left, torch.full((4, 4), -9.0)))[None]  # two channels: left minus right, and "nothing"
    embed = torch.tensor([[[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    prediction = Prediction(torch.zeros(1, 3, 4), embed, features)
    matches, unlabelled = match([prediction], [target(ids, [0, 1])], ALL_POINTS)
    assert dict(zip(matches[0].segment.tolist(), matches[0].query.tolist(), strict=True)) == {0: 2, 1: 0}
    assert unlabelled.tolist() == [[[0.0, 0.0, 0.0]]]


def test_the_matcher_has_points_and_a_class_weight_of_its_own() -> None:
    """One pixel is the segment: query 0 names it and draws nothing, query 1 draws it and names it less well."""
    ids = [[1] * 8 for _ in range(8)]
    ids[3][5] = 2
    pixel = torch.full((8, 8), -9.0)
    pixel[3, 5] = 9.0
    features = torch.stack((pixel, torch.full((8, 8), -9.0)))[None]
    prediction = Prediction(torch.tensor([[[3.0, 0, 0, 0], [2.0, 0, 0, 0]]]), torch.eye(2).flip(0)[None], features)

    def matched(**settings: float) -> int:
        (matches,), _ = match([prediction], [target(ids, [0])], TrainingConfig(**settings))
        return int(matches.query)

    assert matched(num_points=1, class_weight=1e3) == 1  # of the losses
    assert matched(match_class_weight=1e3) == 0
    torch.manual_seed(0)
    assert 0 in [matched(match_points=1) for _ in range(8)]  # which mostly lies beside it


def test_foreground_on_unlabelled_ground_is_measured() -> None:
    features = torch.ones(1, 1, 4, 4)
    prediction = Prediction(torch.zeros(1, 1, 4), torch.ones(1, 1, 1), features)  # one query that covers all
    ids = [[2, 2, 2, 2], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    _, unlabelled = match([prediction], [target(ids, [0])], ALL_POINTS)
    assert unlabelled.item() == 0.75


def test_an_image_without_segments_matches_nothing() -> None:
    prediction = Prediction(torch.zeros(1, 2, 4), torch.ones(1, 2, 1), torch.ones(1, 1, 4, 4))
    matches, _ = match([prediction, prediction], [target([[1] * 4] * 4, [])], ALL_POINTS)
    assert len(matches[0].query) == 0 and matches[0].query.dtype == torch.int64

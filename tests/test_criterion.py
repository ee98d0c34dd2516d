"""The losses: closed forms on a 4x4 image, and what partial labels must not teach."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small_model import small_model

import pem
from pem.outputs import PEMOutput
from pem.training.config import TrainingConfig, get_training_config
from pem.training.criterion import Criterion
from pem.training.target import Target

CONFIG = dataclasses.replace(pem.get_config("default"), num_classes=3, num_queries=2, hidden_dim=32, num_heads=8)
TRAINING = dataclasses.replace(
    get_training_config("default"),
    num_points=1_000,
    auxiliary_semantic_weight=0.0,
    class_weight=2.0,
    pseudo_weight=0.5,
)


def target(ids: list[list[int]], labels: list[int], exhaustive: tuple[bool, ...] = (True, True, True)) -> Target:
    return Target(
        ids=torch.tensor(ids, dtype=torch.int16),
        labels=torch.tensor(labels, dtype=torch.int64),
        weights=torch.ones(len(labels)),
        exhaustive=torch.tensor(exhaustive),
    )


def output(logits: list[list[float]], masks: list[list[list[float]]]) -> PEMOutput:
    """One prediction of queries that draw the given 4x4 mask logits: one feature channel for each query."""
    features = torch.tensor(masks)[None]
    return PEMOutput(torch.tensor(logits)[None].requires_grad_(), torch.eye(len(masks))[None], features)


LEFT = [[2, 2, 1, 1]] * 4
DRAWS_LEFT = [[50.0, 50.0, -50.0, -50.0]] * 4
DRAWS_RIGHT = [[-50.0, -50.0, 50.0, 50.0]] * 4


def test_losses_of_a_4x4_image_by_hand() -> None:
    losses = Criterion(CONFIG, TRAINING)(output([[0.0] * 4, [0.0] * 4], [DRAWS_LEFT, DRAWS_RIGHT]), [target(LEFT, [1])])
    assert losses["class"].item() == pytest.approx(2 * math.log(4), rel=1e-6)  # all classes equally likely
    assert losses["mask"].item() == pytest.approx(0, abs=1e-6)
    assert losses["dice"].item() == pytest.approx(0, abs=1e-6)  # 1 - (2*8+1)/(8+8+1)


def test_dice_and_cross_entropy_of_a_half_right_mask() -> None:
    everything = [[50.0] * 4] * 4
    nothing = [[-50.0] * 4] * 4
    losses = Criterion(CONFIG, TRAINING)(
        output([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]], [everything, nothing]), [target(LEFT, [1])]
    )
    assert losses["mask"].item() == pytest.approx(5 * 25, rel=1e-5)  # half of the pixels are wrong by 50
    assert losses["dice"].item() == pytest.approx(5 * (1 - 17 / 25), rel=1e-5)  # 1 - (2*8+1)/(16+8+1)


def no_object_gradient(exhaustive: tuple[bool, ...], draws: list[list[float]]) -> torch.Tensor:
    """How the class loss pulls at the logits of an unmatched query that draws this mask."""
    ids = [[2, 2, 0, 0]] * 4
    out = output([[0.0, 9.0, 0.0, 0.0], [0.0] * 4], [DRAWS_LEFT, draws])
    Criterion(CONFIG, TRAINING)(out, [target(ids, [1], exhaustive)])["class"].backward()
    assert out.pred_logits.grad is not None
    return out.pred_logits.grad[0, 1]


def test_query_on_unlabelled_ground_may_say_a_class_that_the_image_does_not_label() -> None:
    everywhere_labelled = no_object_gradient((True, True, True), DRAWS_RIGHT)
    partly_labelled = no_object_gradient((True, True, False), DRAWS_RIGHT)
    on_labelled_ground = no_object_gradient((True, True, False), DRAWS_LEFT)
    assert everywhere_labelled[2] > 0  # a positive gradient pushes the class down
    assert partly_labelled[2] < 0 and partly_labelled[3] < 0
    assert partly_labelled[0] > 0 and partly_labelled[1] > 0
    assert torch.allclose(on_labelled_ground[2], everywhere_labelled[2])


def test_void_pixels_count_in_no_mask_loss() -> None:
    void_right = [[2, 2, 0, 0]] * 4
    confident = [[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
    nothing = [[-50.0] * 4] * 4
    exact = Criterion(CONFIG, TRAINING)(output(confident, [DRAWS_LEFT, nothing]), [target(void_right, [1])])
    spilt = Criterion(CONFIG, TRAINING)(output(confident, [[[50.0] * 4] * 4, nothing]), [target(void_right, [1])])
    assert spilt["mask"] == exact["mask"] and spilt["dice"] == exact["dice"]


def test_pseudo_labels_weigh_less() -> None:
    wrong = output([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]], [DRAWS_LEFT, DRAWS_RIGHT])
    person = target([[2, 2, 3, 3]] * 4, [1, 2])
    machine = dataclasses.replace(person, weights=torch.tensor([1.0, 0.5]))
    half_drawn = output([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]], [DRAWS_LEFT, [[-50.0] * 4] * 4])
    loss = Criterion(CONFIG, TRAINING)(half_drawn, [person])["mask"].item()
    less = Criterion(CONFIG, TRAINING)(half_drawn, [machine])["mask"].item()
    # Only the right half is drawn wrong; its share falls from 1 of 2 masks to 0.5 of 1.5.
    assert less / loss == pytest.approx((0.5 / 1.5) / (1 / 2), rel=1e-5)
    assert Criterion(CONFIG, TRAINING)(wrong, [machine])["mask"].item() == pytest.approx(0, abs=1e-6)


def test_semantic_loss_leaves_unlabelled_classes_open() -> None:
    training = dataclasses.replace(TRAINING, auxiliary_semantic_weight=1.0)
    criterion = Criterion(dataclasses.replace(CONFIG, hidden_dim=8), training)
    assert criterion.semantic_head is not None
    torch.nn.init.zeros_(criterion.semantic_head.weight)
    torch.nn.init.zeros_(criterion.semantic_head.bias)
    ids = [[2, 2, 1, 1]] * 4  # 8 pixels of class 0; 8 that are neither class 0 nor 1
    loss = criterion.semantic_loss(torch.zeros(1, 8, 4, 4), [target(ids, [0], (True, True, False))])
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)  # both: the one class that is left has p = 1/3
    complete = criterion.semantic_loss(torch.zeros(1, 8, 4, 4), [target(ids, [0])])
    assert complete.item() == pytest.approx(math.log(3), rel=1e-6)  # only the 8 labelled pixels speak


def test_more_segments_than_queries() -> None:
    ids = [[2, 3, 4, 5]] * 4
    losses = Criterion(CONFIG, TRAINING)(
        output([[0.0] * 4] * 2, [DRAWS_LEFT, DRAWS_RIGHT]), [target(ids, [0, 1, 2, 2])]
    )
    assert all(torch.isfinite(x) for x in losses.values())


def test_without_segments_everything_still_gets_a_gradient() -> None:
    """Else a process whose photos show nothing would leave the others waiting in distributed training."""
    model = small_model(num_classes=3).train()
    nothing = target([[1] * 64] * 64, [])
    sum(
        Criterion(model.config, TrainingConfig())(model(torch.rand(2, 3, 64, 64)), [nothing, nothing]).values()
    ).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []

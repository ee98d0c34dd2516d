"""What the page says of prototypes: where they lie, why they were chosen, how masks grew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import clear_choices, small_model

from pem.explain import Choice, cell_centres, evolution, explain_choice, match_queries
from pem.outputs import PEMOutput, Prediction


def test_cells_are_centred_half_a_stride_in_and_reach_into_the_padding() -> None:
    # Two cells of 32 px over a photo of 40 px: centres at 16 and 48 px, the second beside the photo.
    assert cell_centres(2, 32, 40).tolist() == [0.4, 1.2]


TARGET = np.array([1, 0, 0, 1], np.float32)  # two heads of two channels
KEY = np.array([[0.1, 0, 0, 0.9], [0.2, 5, 0, 0.3], [0.4, 0, 7, 0.2]], np.float32)


@pytest.mark.parametrize(("head", "scores", "index"), [(0, [0.1, 0.2, 0.4], 2), (1, [0.9, 0.3, 0.2], 0)])
def test_a_head_sees_its_own_channels_only(head: int, scores: list[float], index: int) -> None:
    choice = explain_choice(TARGET, KEY, np.zeros(3, bool), head, num_heads=2)
    assert choice.scores == pytest.approx(scores)
    assert choice.index == index
    assert choice.weights == pytest.approx(np.exp(scores) / np.exp(scores).sum())


def test_a_banned_token_is_scored_but_neither_chosen_nor_weighed() -> None:
    choice = explain_choice(TARGET, KEY, np.array([False, False, True]), head=0, num_heads=2)
    assert choice.scores[2] == pytest.approx(0.4)
    assert choice.index == 1 and not choice.empty
    assert choice.weights == pytest.approx([1 / (1 + np.exp(0.1)), 1 / (1 + np.exp(-0.1)), 0])


def test_a_query_whose_tokens_are_all_banned_sees_all_of_them() -> None:
    choice = explain_choice(TARGET, KEY, np.ones(3, bool), head=0, num_heads=2)
    assert choice.empty and choice.index == 2
    assert choice.weights.sum() == pytest.approx(1) and (choice.weights > 0).all()


@pytest.mark.parametrize("head", [-1, 2])
def test_a_head_that_does_not_exist_is_refused(head: int) -> None:
    with pytest.raises(ValueError, match="choose one from 0 to 1"):
        explain_choice(TARGET, KEY, np.zeros(3, bool), head, num_heads=2)


@pytest.mark.parametrize(
    ("weights", "tokens"), [([1, 0, 0], 1), ([0.3, 0.5, 0.2], 1), ([0.4, 0.3, 0.3], 2), ([0.25] * 4, 2)]
)
def test_tokens_for_half_of_the_weight(weights: list[float], tokens: int) -> None:
    nothing = np.zeros(len(weights), bool)
    choice = Choice(np.zeros(len(weights)), nothing, 0, False, np.array(weights, np.float32))
    assert choice.tokens_for_half == tokens


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_the_explained_choice_is_the_networks_own(attention: str) -> None:
    model = small_model(seed=1, attention=attention, empty_mask="release")
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        output = clear_choices(model(pixels, trace=True), model.config.num_heads)
    banned_somewhere = False
    for layer in output.trace:
        target, key, banned = layer.target[0].numpy(), layer.key[0].numpy(), layer.banned[0].numpy()
        _, heads, queries = layer.prototype_index.shape
        banned_somewhere |= bool((banned.any(1) & ~banned.all(1)).any())
        for head in range(heads):
            for query in range(queries):
                choice = explain_choice(target[query], key, banned[query], head, heads)
                similarity = layer.similarity[0, head, query].item()
                kept = choice.scores if attention == "prototype" else choice.weights
                assert kept[choice.index] == pytest.approx(similarity, abs=1e-5)
                assert choice.index == layer.prototype_index[0, head, query].item()
    assert banned_somewhere


def hand_made_output() -> PEMOutput:
    """Two predictions of two queries over 2 x 3 mask cells, of which the last column is padding.

    The mask features are one channel per cell, so the mask embedding is the mask.
    """
    features = torch.eye(6).view(1, 6, 2, 3)

    def prediction(probs: list[list[float]], masks: list[list[float]]) -> Prediction:
        return Prediction(torch.tensor([probs]).log(), torch.tensor([masks]), features)

    first = prediction(
        [[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]],
        [[4.0, 4, 9, -4, -4, 9], [-4, -4, 9, -4, -4, 9]],  # padding is foreground everywhere
    )
    last = prediction(
        [[0.1, 0.6, 0.3], [0.3, 0.1, 0.6]],
        [[-4.0, 4, -9, -4, 4, -9], [-4, -4, 9, -4, -4, 9]],
    )
    return PEMOutput(last.pred_logits, last.mask_embed, features, aux_outputs=(first,))


def test_evolution_of_a_hand_made_output() -> None:
    steps = evolution(hand_made_output(), content_size=(8, 8))
    # Query 1's best class is what it would be if it were an object.
    assert steps.category_id.tolist() == [[0, 1], [1, 0]]
    assert steps.score == pytest.approx(np.array([[0.7, 0.15], [0.6, 0.3]]))
    assert steps.no_object_score == pytest.approx(np.array([[0.1, 0.8], [0.3, 0.6]]))
    # Without the padding: query 0 goes from the upper row to the right column, query 1 has nothing.
    assert steps.area_fraction.tolist() == [[0.5, 0], [0.5, 0]]
    assert steps.final_iou == pytest.approx(np.array([[1 / 3, 1], [1, 1]]))
    sure, unsure = round(255 / (1 + np.exp(-4))), round(255 / (1 + np.exp(4)))
    assert steps.masks[0, 0].tolist() == [[sure, sure], [unsure, unsure]]
    assert steps.masks[1, 0].tolist() == [[unsure, sure], [unsure, sure]]


def test_large_masks_are_kept_smaller_and_measured_whole() -> None:
    steps = evolution(hand_made_output(), content_size=(8, 8), max_mask_side=1)
    assert steps.masks.shape == (2, 2, 1, 1)
    assert steps.masks[0, 0, 0, 0] in (127, 128)  # the mean of two sure cells and two that are sure of the contrary
    assert steps.area_fraction[0, 0] == 0.5


def test_a_query_matches_the_one_that_says_the_same_class() -> None:
    features = torch.eye(4).view(1, 4, 2, 2)

    def says(probs: list[list[float]], masks: list[list[float]]) -> PEMOutput:
        return PEMOutput(torch.tensor([probs]).log(), torch.tensor([masks]), features)

    left, nearly_left, nothing = [1.0, -1, 1, -1], [1.0, -1, 1, 1], [-1.0, -1, -1, -1]
    ours = says([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], [left, left, nothing])
    theirs = says([[0.1, 0.9], [0.8, 0.2]], [left, nearly_left])
    matches, ious = match_queries(ours, theirs, content_size=(8, 8))
    assert matches[:2].tolist() == [1, 0] and ious.tolist() == pytest.approx([2 / 3, 1, 0])

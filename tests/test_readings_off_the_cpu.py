"""The readings of an output that lies on a GPU: with a device that only says that it is not the CPU, so that none is
needed. Its tensors have their values in the CPU's memory, but may not be mixed with the CPU's own."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from test_postprocess import CITYSCAPES, batch_of, of_stuff_and_things, random_output
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from analysis.plain_panoptic import plain_panoptic
from pem.explain import evolution, match_queries
from pem.outputs import PEMOutput
from pem.postprocess import Reading, instances, panoptic, semantic

ELSEWHERE = torch.device("meta")
MAY_TAKE_BOTH = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class There(Tensor):
    """A tensor of that device."""

    kept: Tensor

    def __new__(cls, kept: Tensor) -> There:
        there = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, kept.shape, strides=kept.stride(), dtype=kept.dtype, device=ELSEWHERE
        )
        there.kept = kept
        return there

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{operator} on another device, while there is none.")

    def tolist(self) -> Any:  # which PyTorch does for its own tensors alone
        return self.kept.tolist()


class OtherDevice(TorchDispatchMode):
    """Computes on the CPU, and fails where a GPU's operator could not take what it is given."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        far = [x for x in given if isinstance(x, There)]
        may_take_both = operator in MAY_TAKE_BOTH
        if operator is torch.ops.aten.index.Tensor:  # the CPU's indices are copied, but not the other way round
            may_take_both = isinstance(args[0], There)
        if far and not may_take_both:
            mixed = [x for x in given if not isinstance(x, There) and x.ndim > 0]
            assert not mixed, f"{operator} is given tensors of two devices."
        stays = kwargs.get("device", ELSEWHERE if far else None) == ELSEWHERE
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda x: x.kept if isinstance(x, There) else x, (args, kwargs))
        known = {id(x.kept): x for x in far}  # what works in place returns what it was given

        def moved(x: Any) -> Any:
            if not (stays and isinstance(x, Tensor)):
                return x
            return known[id(x)] if id(x) in known else There(x)

        return tree_map(moved, operator(*args, **kwargs))


def there(output: PEMOutput) -> PEMOutput:
    return PEMOutput(There(output.pred_logits), There(output.mask_embed), There(output.mask_features))


CONTENT, ORIGINAL = (90, 150), (301, 470)
BATCH = batch_of(ORIGINAL, CONTENT)
OUTPUT = of_stuff_and_things(random_output(24, (24, 40), 19))


@pytest.mark.parametrize(
    ("reading", "options"),
    [
        (panoptic, {"object_threshold": 0.3, "overlap_threshold": 0.3}),
        (semantic, {}),
        (semantic, {"config": replace(CITYSCAPES, task="semantic")}),
        (instances, {"score_threshold": 0.3}),
    ],
    ids=["panoptic", "semantic", "semantic, evidence resized", "instances"],
)
def test_a_reading_is_the_same_wherever_the_output_lies(reading: Reading[...], options: dict[str, Any]) -> None:
    options = {"config": CITYSCAPES, **options}
    (expected,) = reading(OUTPUT, BATCH, **options)
    with OtherDevice():
        (result,) = reading(there(OUTPUT), BATCH, **options)
    assert len(result.segments) >= 2
    assert np.array_equal(result.ids, expected.ids)
    assert result.segments == expected.segments and result.outcomes == expected.outcomes
    if expected.masks is not None:
        assert result.masks is not None and np.array_equal(result.masks, expected.masks)


def test_what_happened_inside_is_the_same_wherever_the_output_lies() -> None:
    other = random_output(24, (24, 40), 19, seed=1)
    with OtherDevice():
        found = evolution(there(OUTPUT), CONTENT)
        matches = match_queries(there(OUTPUT), there(other), CONTENT)
    for result, expected in zip(astuple(found), astuple(evolution(OUTPUT, CONTENT)), strict=True):
        assert np.array_equal(result, expected)
    for result, expected in zip(matches, match_queries(OUTPUT, other, CONTENT), strict=True):
        assert np.array_equal(result, expected)


def test_the_plain_reading_is_the_same_wherever_the_output_lies() -> None:
    expected_ids, expected_segments = plain_panoptic(OUTPUT, BATCH, CITYSCAPES)
    with OtherDevice():
        ids, segments = plain_panoptic(there(OUTPUT), BATCH, CITYSCAPES)
        assert ids.device == ELSEWHERE
        assert ids.tolist() == expected_ids.tolist() and segments == expected_segments


def test_a_mixture_would_be_seen() -> None:
    with OtherDevice():
        far, near = There(torch.ones(3)), torch.ones(3)
        assert (far * 2 + torch.tensor(1.0)).tolist() == [3, 3, 3]
        assert (far + near.to(far.device)).cpu().tolist() == [2, 2, 2]
        assert far[torch.tensor([0, 2])].add_(1).tolist() == [2, 2]
        with pytest.raises(AssertionError, match="of two devices"):
            far * near
        with pytest.raises(RuntimeError, match="numpy"):
            far.numpy()

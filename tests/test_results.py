"""What the page keeps of a photo: the latest results, within a budget of memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from halves_model import HalvesModel

from ui.engine import Engine, ResultGone
from ui.results import KeptResult, ResultStore

PHOTO = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def kept_result(num_bytes: int) -> KeptResult:
    engine = Engine(HalvesModel())
    result = engine.result(engine.run(PHOTO))
    return dataclasses.replace(result, jpeg=bytes(num_bytes - (result.num_bytes - len(result.jpeg))))


def test_the_store_forgets_the_least_recently_used_beyond_its_budget() -> None:
    store = ResultStore(budget_bytes=25_000_000)
    ten = kept_result(10_000_000)
    assert ten.num_bytes == 10_000_000
    first, second = store.put(ten), store.put(ten)
    assert store.get(first) is not None  # now the second is the oldest
    third = store.put(ten)
    assert store.get(second) is None
    assert store.get(first) is not None and store.get(third) is not None
    huge = store.put(kept_result(100_000_000))  # a visitor who pressed Segment sees the result, however large it is
    assert store.get(huge) is not None and store.get(first) is None and store.get(third) is None


def test_a_kept_result_counts_all_of_its_arrays() -> None:
    engine = Engine(HalvesModel())
    result = engine.result(engine.run(PHOTO))

    def sizes(value: object) -> int:
        if isinstance(value, (np.ndarray, torch.Tensor)):
            return value.nbytes
        if isinstance(value, bytes):
            return len(value)
        if isinstance(value, (tuple, list)):
            return sum(map(sizes, value))
        if dataclasses.is_dataclass(value):
            return sum(sizes(getattr(value, field.name)) for field in dataclasses.fields(value))
        return 0

    assert result.num_bytes == pytest.approx(sizes(result), rel=0.01)


def test_a_forgotten_result_says_what_to_do() -> None:
    engine = Engine(HalvesModel(), budget_bytes=0)
    old = engine.run(PHOTO)
    engine.run(PHOTO)
    with pytest.raises(ResultGone, match="no longer kept"):
        engine.result(old)

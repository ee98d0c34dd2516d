"""The label sets, and what happens to a config that no set fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pem.categories import categories_for, shade
from pem.config import PRESETS, get_config


@pytest.mark.parametrize(
    ("preset", "total", "things"),
    [("cityscapes-panoptic-r50", 19, 8), ("ade20k-panoptic-r50", 150, 100), ("default", 47, 28)],
)
def test_sets_have_their_benchmarks_numbers_of_classes_and_things(preset: str, total: int, things: int) -> None:
    categories = categories_for(get_config(preset))
    assert len(categories) == len({category.name for category in categories}) == total
    assert sum(category.is_thing for category in categories) == things
    assert len({category.color for category in categories}) == total


def test_every_preset_has_a_named_set() -> None:
    for config in PRESETS.values():
        assert categories_for(config)[0].name != "class 0"


def test_known_places() -> None:
    cityscapes = categories_for(get_config("cityscapes-panoptic-r50"))
    assert (cityscapes[10].name, cityscapes[10].color, cityscapes[10].is_thing) == ("sky", (70, 130, 180), False)
    assert (cityscapes[18].name, cityscapes[18].id) == ("bicycle", 33)  # not its train id, 18
    ade20k = categories_for(get_config("ade20k-panoptic-r50"))
    assert [ade20k[i].name for i in (0, 12, 73, 100, 149)] == ["wall", "person", "kitchen island", "poster", "flag"]
    everyday = categories_for(get_config("default"))
    assert [(c.id, c.name) for c in (everyday[0], everyday[28], everyday[46])] == [
        (1, "person"),
        (29, "sky"),
        (47, "picture-mirror"),
    ]


def test_another_number_of_classes_gets_plain_names() -> None:
    categories = categories_for(replace(get_config("default"), num_classes=5))
    assert [category.name for category in categories] == ["class 0", "class 1", "class 2", "class 3", "class 4"]
    assert all(category.is_thing for category in categories)


def test_things_of_one_class_differ_in_shade_and_the_first_has_the_class_colour() -> None:
    for category in categories_for(get_config("default")):
        shades = [shade(category.color, index) for index in range(8)]
        assert shades[0] == category.color
        distances = [
            np.abs(np.subtract(a, b)).sum() for i, a in enumerate(shades) for b in shades[:i]
        ]  # over three channels
        assert min(distances) >= 8, category.name

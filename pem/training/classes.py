"""Classes by their names: which class of a model a category of a data set is."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from pem.categories import categories_for, named_categories
from pem.config import PEMConfig

# One of ADE20K's 150 classes has another name in the data set's own list than in the benchmark's.
_ALIASES = {"swimming pool": "pool"}


def plain_name(name: str) -> str:
    """What all spellings of a class have in common: "Road, route" and "road" are the same class."""
    return nfc(name).split(",")[0].strip().lower()


def class_names(config: PEMConfig) -> list[tuple[str, bool]]:
    """The plain name of each class of a model, and whether it is a thing."""
    return [(plain_name(category.name), category.is_thing) for category in categories_for(config)]


def nfc(name: str) -> str:
    """The name with each accented letter as one character; files may store two."""
    return unicodedata.normalize("NFC", name)


def match_categories(
    listed: list[dict[str, Any]], config: PEMConfig, path: Path
) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """The class index of each category id, and the K categories, found by name if the config names its classes.

    A file may list a part of the classes. Raises ValueError that names the class which the config does not know.
    """
    known = named_categories(config)
    if not known:  # then only the order of the ids is left
        if len(listed) != config.num_classes:
            raise ValueError(
                f"{path} has {len(listed)} categories but the model {config.name!r} has {config.num_classes};"
                " use a model made for this data."
            )
        return {category["id"]: index for index, category in enumerate(listed)}, listed
    by_spelling: dict[str, set[int]] = {}
    for index, ours in enumerate(known):
        for spelling in _spellings(ours.name):
            by_spelling.setdefault(spelling, set()).add(index)
    categories: list[dict[str, Any]] = [{"id": c.id, "name": c.name, "isthing": c.is_thing} for c in known]
    class_of: dict[int, int] = {}
    for category in listed:
        # The whole name counts before its synonyms: one class is "screen door, screen", another is "screen".
        exact = {index for index, ours in enumerate(known) if ours.name == category["name"]}
        candidates = [exact, *(by_spelling.get(spelling, set()) for spelling in _spellings(category["name"]))]
        matches = [min(found) for found in candidates if len(found) == 1]
        if not matches:
            some = ", ".join(c.name for c in known[:5]) + (", ..." if len(known) > 5 else "")
            raise ValueError(
                f"{path} has the class {category['name']!r}, which the model {config.name!r} ({some}) does not know;"
                " use a model made for this data."
            )
        index, ours = matches[0], known[matches[0]]
        if index in class_of.values():
            raise ValueError(f"{path} has two names of the class {ours.name!r} of {config.name!r}; merge them.")
        if category["isthing"] != ours.is_thing:
            kinds = ("stuff", "a thing")
            raise ValueError(
                f"{path} calls the class {category['name']!r} {kinds[category['isthing']]}, the model {config.name!r}"
                f" {kinds[ours.is_thing]}; use a model made for this data."
            )
        class_of[category["id"]] = index
        categories[index] = category
    return class_of, categories


def _spellings(name: str) -> list[str]:
    """In lower case: the whole name, then the synonyms in it, which commas separate."""
    parts = [part.strip().lower() for part in nfc(name).split(",")]
    return list(dict.fromkeys((", ".join(parts), *parts, *(_ALIASES[part] for part in parts if part in _ALIASES))))

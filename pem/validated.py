"""Frozen records that check their values: the library is pydantic, the error is one clear sentence."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

Record = TypeVar("Record")
# A bool is no int and a text no number, but an int is a float.
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
_OUT_OF_RANGE = ("greater_than_equal", "less_than_equal", "finite_number")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def validated_dataclass(cls: type[Record]) -> type[Record]:
    """Makes a class a frozen dataclass whose fields are given by name and checked against their annotations.

    A range stands in the annotation: ``num_queries: Annotated[int, Field(ge=1, le=100)] = 50``. A wrong value raises
    ValueError with a sentence such as "num_queries is 0; it must be from 1 to 100."
    """
    checked: Any = dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
    validate = checked.__init__

    def __init__(self: Record, *unnamed: Any, **values: Any) -> None:
        try:
            validate(self, *unnamed, **values)
        except ValidationError as error:
            raise ValueError(_sentence(cls, error, values)) from None

    checked.__init__ = __init__
    return checked


def _sentence(cls: type, error: ValidationError, values: dict[str, Any]) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":  # of __post_init__
        return str(first["ctx"]["error"])
    name, kinds = str(first["loc"][0]), get_type_hints(cls)
    if name not in kinds:
        return f"{cls.__name__} has no field {name}."
    if name not in values:
        return f"{name} is missing."
    if first["type"] in _OUT_OF_RANGE:
        limits = list(_limits(get_type_hints(cls, include_extras=True)[name]))
        least = next((limit.ge for limit in limits if hasattr(limit, "ge")), -math.inf)
        most = next((limit.le for limit in limits if hasattr(limit, "le")), math.inf)
        wanted = f"{least} or more" if most == math.inf else f"from {least} to {most}"
    elif get_origin(kinds[name]) is Literal:
        wanted = " or ".join(map(repr, get_args(kinds[name])))
    else:
        wanted = f"of type {inspect.formatannotation(kinds[name])}"
    return f"{name} is {values[name]!r}; it must be {wanted}."


def _limits(annotation: Any) -> Iterator[Any]:
    """What the Fields in an annotation demand, wherever they stand in it."""
    if isinstance(annotation, FieldInfo):
        yield from annotation.metadata
    for part in get_args(annotation):
        yield from _limits(part)

"""Validates arguments: each check returns a valid value, or raises an error."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any, SupportsIndex, TypeVar

from probekit.errors import DataError, OptionError, close_matches

Value = TypeVar("Value")

_MOST_LISTED = 8


def integer(name: str, value: object, *, least: int | None = None, most: int | None = None) -> int:
    """Checks for an integer within bounds; numpy integers are allowed, `True` is not."""
    if not isinstance(value, bool) and isinstance(value, SupportsIndex):
        found = operator.index(value)
        if (least is None or found >= least) and (most is None or found <= most):
            return found
    kinds: dict[Any, str] = {(0, None): "a non-negative integer", (1, None): "a positive integer"}
    kind = kinds.get((least, most), f"an integer{_range(least, None, most, None)}")
    raise OptionError(f"{name} must be {kind}, not {value!r}")


def non_negative_int(name: str, value: object) -> int:
    return integer(name, value, least=0)


def positive_int(name: str, value: object) -> int:
    return integer(name, value, least=1)


def number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Checks for a finite number within bounds and returns a float; `True` is not a number."""
    if isinstance(value, Real) and not isinstance(value, bool):
        found = float(value)
        if (
            math.isfinite(found)
            and (least is None or found >= least)
            and (above is None or found > above)
            and (most is None or found <= most)
            and (below is None or found < below)
        ):
            return found
    kinds: dict[Any, str] = {
        (None, None, None, None): "a finite number",
        (0, None, None, None): "a non-negative number",
        (None, 0, None, None): "a positive number",
    }
    kind = kinds.get((least, above, most, below), f"a number{_range(least, above, most, below)}")
    raise OptionError(f"{name} must be {kind}, not {value!r}")


def one_of(name: str, value: Value, known: Iterable[Value]) -> Value:
    values = list(known)
    if any(isinstance(value, type(one)) and value == one for one in values):
        return value
    if len(values) > _MOST_LISTED:
        near = close_matches(str(value), [str(one) for one in values], what=name)
        raise OptionError(f"there is no {name} {value!r}; {near}")
    *first, last = map(repr, values)
    listed = f"{', '.join(first)} or {last}" if first else last
    raise OptionError(f"{name} must be {listed}, not {value!r}")


def sample_indices(index: Iterable[Any] | None, count: int) -> list[int]:
    """Checks for one non-negative integer per image, by default 0 to `count` - 1."""
    if index is None:
        return list(range(count))
    values = index.tolist() if hasattr(index, "tolist") else list(index)
    values = values if isinstance(values, list) else [values]
    if len(values) != count:
        raise DataError(
            f"index has {len(values)} entries for {count} images; give one for each image"
        )
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
            raise DataError(f"index holds {value!r}; give non-negative integers")
    return [operator.index(value) for value in values]


def _range(
    least: float | None, above: float | None, most: float | None, below: float | None
) -> str:
    """Formats bounds as the end of a noun phrase."""
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    bounds = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
    parts = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return f" {' and '.join(parts)}" if parts else ""

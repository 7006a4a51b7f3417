"""What stored work is of, and what differs from what is asked for now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["as_stored", "differences"]


def as_stored(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as JSON gives it back, which a stored one can be compared with."""
    return dict(json.loads(json.dumps(identity, default=str)))


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, one clause for each value; of hashes only that they do.

    >>> differences({"model": {"weights": "a"}, "seed": 0}, {"model": {"weights": "b"}, "seed": 0})
    ['model.weights was "a" and is "b"']
    """
    before, now = dict(_leaves(stored)), dict(_leaves(as_stored(asked)))
    return [
        _clause(name, before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _clause(name: str, before: Any, now: Any) -> str:
    if all(isinstance(value, str) and value.startswith("sha256:") for value in (before, now)):
        return f"{name} differs"
    return f"{name} was {_short(before)} and is {_short(now)}"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, by dotted names."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else key)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

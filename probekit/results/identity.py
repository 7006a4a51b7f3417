"""Compares the identity of stored work with that of the current request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_OF_MODELS = ("hash", "modules", "mean", "std")


def as_stored(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity after a JSON round trip, to compare with a stored one."""
    return dict(json.loads(json.dumps(identity, default=str)))


def differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], ignored: Iterable[str] = ()
) -> list[str]:
    """The differences between two identities, one clause per value; hashes last and not shown.

    >>> differences({"model": {"weights": "a"}, "seed": 0}, {"model": {"weights": "b"}, "seed": 0})
    ['model.weights was "a" and is "b"']
    """
    before, now = dict(_leaves(stored)), dict(_leaves(as_stored(asked)))
    values, hashes = [], []
    for name in sorted({*before, *now} - {*ignored}):
        pair = before.get(name), now.get(name)
        if all(isinstance(value, str) and value.startswith("sha256:") for value in pair):
            hashes += [f"{name} differs"] if pair[0] != pair[1] else []
        elif pair[0] != pair[1]:
            values.append(f"{name} was {_short(pair[0])} and is {_short(pair[1])}")
    return values + hashes


def model_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The parts in which two models differ, of those that both descriptions have.

    >>> model_differences({"hash": "a", "modules": "b"}, {"hash": "a", "modules": "c", "std": [1.0]})
    ['modules']
    """
    both = [name for name in _OF_MODELS if name in first and name in second]
    return [name for name in both if first[name] != second[name]]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by dotted names."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else key)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

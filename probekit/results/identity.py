"""Compares the identity of stored work with that of the current request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from probekit.results.provenance import facts_of

_OF_MODELS = ("hash", "modules", "mean", "std")


def as_stored(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity after a JSON round trip, to compare with a stored one."""
    return dict(json.loads(json.dumps(identity, default=str)))


def differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], ignored: Iterable[str] = ()
) -> list[str]:
    """The differences between two identities, one clause per value; hashes last and not shown."""
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


def same_images(first: xr.DataTree, second: xr.DataTree) -> bool:
    """Whether results are of the same images and labels, by what both say about them.

    These are the hashes in the provenance, and the samples and labels in `/samples` or, without these,
    the number of samples.
    """
    trees = (first, second)
    facts = [facts_of(one.attrs).get("data") or {} for one in trees]
    names = ["fingerprint", "first_image", "images"]
    if all("samples" in one.children for one in trees):
        one, other = (tree["samples"].to_dataset() for tree in trees)
        columns = one.variables.keys() & other.variables.keys() & {"sample", "label"}
        if not all(np.array_equal(one[name].values, other[name].values) for name in columns):
            return False
    else:
        names.append("samples")
    both = [name for name in names if all(one.get(name) for one in facts)]
    return all(facts[0][name] == facts[1][name] for name in both)


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by dotted names."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else key)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The provenance of a result, as one JSON string, and comparisons of what results were made from."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from probekit._version import __version__

Table = TypeVar("Table", xr.Dataset, xr.DataTree)
_OF_MODELS = ("hash", "modules", "mean", "std")


def provenance(**facts: Any) -> str:
    """Formats facts about the origin of a result, with versions and command."""
    import torch  # which figures of stored results, reading only `facts_of`, do without

    versions = {
        "probekit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "xarray": xr.__version__,
    }
    return json_text({**facts, "versions": versions, "command": " ".join(map(str, sys.argv))})


def json_text(facts: Mapping[str, Any]) -> str:
    """A JSON object; characters that are not valid text, as in names of files, are escaped."""
    text = json.dumps(facts, default=str, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def facts_of(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """The facts in the provenance among the attributes of a result; empty if they cannot be read.

    >>> facts_of({"provenance": provenance(seed=3)})["seed"], facts_of({})
    (3, {})
    """
    try:
        return parsed(attributes["provenance"])
    except (KeyError, TypeError, ValueError):
        return {}


def parsed(text: str) -> dict[str, Any]:
    """A stored JSON object, with the current names of options that had others."""
    return dict(json.loads(str(text).replace('"centred":', '"centered":')))


def with_provenance(table: Table, **facts: Any) -> Table:
    """Adds facts to the provenance of a table without overwriting existing ones.

    >>> table = with_provenance(xr.Dataset(attrs={"provenance": '{"seed": 3}'}), images=500)
    >>> facts = json.loads(table.attrs["provenance"])
    >>> facts["seed"], facts["images"], "command" in facts
    (3, 500, True)
    """
    stored = table.attrs.get("provenance")
    known = facts_of(table.attrs) or ({} if stored in (None, "{}") else {"stored": stored})
    copied = table.copy()
    merged = json_text(json.loads(provenance(**facts)) | known)
    copied.attrs = {**table.attrs, "provenance": merged}
    return copied


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
    the number of samples. Images of two sizes are compared by a hash of some of them as they are stored.
    """
    trees = (first, second)
    facts = [facts_of(one.attrs).get("data") or {} for one in trees]
    names = ["fingerprint", "first_image", "images"]
    if in_two_sizes(*facts) and all(one.get("content") for one in facts):
        names = ["content"]
    if all("samples" in one.children for one in trees):
        one, other = (tree["samples"].to_dataset() for tree in trees)
        columns = one.variables.keys() & other.variables.keys() & {"sample", "label"}
        if not all(np.array_equal(one[name].values, other[name].values) for name in columns):
            return False
    else:
        names.append("samples")
    both = [name for name in names if all(one.get(name) for one in facts)]
    return all(facts[0][name] == facts[1][name] for name in both)


def in_two_sizes(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether results are of images of two sizes, by the facts about the data of both."""
    shapes = [one.get("image_shape") for one in (first, second)]
    return None not in shapes and shapes[0] != shapes[1]


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

"""The provenance of a result, as one JSON string."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from probekit._version import __version__

Table = TypeVar("Table", xr.Dataset, xr.DataTree)


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
    return json.dumps(
        {**facts, "versions": versions, "command": " ".join(map(str, sys.argv))},
        default=str,
        ensure_ascii=False,
    )


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
    merged = json.dumps(json.loads(provenance(**facts)) | known, ensure_ascii=False)
    copied.attrs = {**table.attrs, "provenance": merged}
    return copied

"""The provenance of a result, as one JSON string."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np
import torch
import xarray as xr

from probekit._version import __version__


def provenance(**facts: Any) -> str:
    """Formats facts about the origin of a result, with versions and command.

    >>> json.loads(provenance(seed=3))["seed"]
    3
    """
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


def with_provenance(table: xr.Dataset, **facts: Any) -> xr.Dataset:
    """Adds facts to the provenance of a table without overwriting existing ones.

    >>> table = with_provenance(xr.Dataset(attrs={"provenance": '{"seed": 3}'}), images=500)
    >>> facts = json.loads(table.attrs["provenance"])
    >>> facts["seed"], facts["images"], "command" in facts
    (3, 500, True)
    """
    stored = table.attrs.get("provenance", "{}")
    try:
        known = dict(json.loads(stored))
    except (TypeError, ValueError):
        known = {"stored": stored}
    return table.assign_attrs(
        provenance=json.dumps(json.loads(provenance(**facts)) | known, ensure_ascii=False)
    )

"""Where a result comes from, as one JSON string."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np
import torch
import xarray as xr

from probekit._version import __version__

__all__ = ["provenance"]


def provenance(**facts: Any) -> str:
    """What a result was made of, with versions and command.

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

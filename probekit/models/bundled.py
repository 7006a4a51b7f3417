"""The names of the bundled models, without importing torch."""

from __future__ import annotations

import fnmatch
from importlib import resources


def list_models(pattern: str = "*") -> list[str]:
    """Lists the bundled models whose names match a glob.

    Example:
        >>> list_models("resnet20-fashion-mnist")
        ['resnet20-fashion-mnist']
    """
    files = (resources.files("probekit.models") / "zoo").iterdir()
    names = [file.name.removesuffix(".json") for file in files if file.name.endswith(".json")]
    return sorted(fnmatch.filter(names, pattern))

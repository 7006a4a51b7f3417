"""Peers that may be absent."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

T = TypeVar("T")

# Whose versions are stated, by the names under which they are installed.
PEERS = (
    "captum",
    "foolbox",
    "imagecorruptions-imaug",
    "opencv-python",
    "opencv-python-headless",
    "scikit-learn",
    "timm",
    "torchattacks",
    "torchvision",
)


@dataclass(frozen=True)
class Missing:
    """A peer that did not take part, and why."""

    reason: str


def peer(module: str, make: Callable[[Any], T]) -> T | Missing:
    """What is made of a module, or the reason why it cannot be imported."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return Missing(f"{module} cannot be imported: {error}")
    return make(found)


def versions() -> dict[str, str]:
    """The versions of the peers that are installed."""
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

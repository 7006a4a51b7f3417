"""Files and records that are damaged or malicious."""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save

import probekit as pk

Fails = Callable[..., str]

BUNDLED = "probekit:resnet20-fashion-mnist"
ZOO = Path(pk.__file__).parent / "models" / "zoo"
LAST = ("--layers", "layer3.2.relu2")


class Evil:
    """Creates a file if its pickle is loaded unsafely."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harm",)


def safetensors(header: Any, size: int | None = None, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + rest


@functools.cache
def sound_weights() -> bytes:
    return save(pk.load_model(BUNDLED).module.state_dict())


def mutations(facts: dict[str, Any]) -> list[Any]:
    """A record with each of its fields missing or of another type, and values that are not records."""
    odd: list[Any] = [None, [], {}, "x", -1, 1e308, [[[]]], True]
    without = [{key: facts[key] for key in facts if key != lost} for lost in facts]
    other = [{**facts, key: value} for key in facts for value in odd]
    return [[], None, "x", 5, {}, *without, *other]


QUICK = {"epochs": 1, "architecture": "resnet8", "limit": 64, "device": "cpu", "progress": False}

"""Files and records that are damaged or malicious."""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import probekit as pk

Fails = Callable[..., str]

BUNDLED = "probekit:resnet20-fashion-mnist"
SMALL = "damaged_files:small_network"
ZOO = Path(pk.__file__).parent / "models" / "zoo"
LAST = ("--layers", "layer3.2.relu2")


def small_network() -> pk.ImageModel:
    """A network for files that do not depend on it, which takes a tenth of the time of `BUNDLED`."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 64, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 10))
    return pk.ImageModel(network, (0.3,), (0.35,), (1, 28, 28))


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

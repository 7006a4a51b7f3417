"""Nested values: tensors alone, or in mappings, sequences and dataclasses.

Hooks of compiled models use this code, and the compiler of torch 2.6 supports neither generators nor
`isinstance` with a union.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def named_parts(nested: object) -> list[tuple[str, Any]]:
    """The parts of a nested value by key, field or position; empty for any other value."""
    if isinstance(nested, Mapping):
        return [(str(name), part) for name, part in nested.items()]
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return list(zip(nested._fields, nested, strict=True))
    if isinstance(nested, (list, tuple)):
        return [(str(place), part) for place, part in enumerate(nested)]
    if is_dataclass(nested) and not isinstance(nested, type):
        return [(field.name, getattr(nested, field.name)) for field in fields(nested)]
    return []


def all_tensors(nested: Any) -> list[Tensor]:
    """The tensors in a nested value, in order."""
    if isinstance(nested, Tensor):
        return [nested]
    sequence = isinstance(nested, (list, tuple))
    parts = nested if sequence else [part for _, part in named_parts(nested)]
    return [tensor for part in parts for tensor in all_tensors(part)]

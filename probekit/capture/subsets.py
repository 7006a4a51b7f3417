"""Selects the layers to regularize: the first, the last, or all but the last stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from probekit.capture.layers import Layer
from probekit.errors import LayerError, OptionError

Subset: TypeAlias = Callable[[Sequence[Layer]], list[Layer]]

BUT_LAST_STAGE = "but-last-stage"
_ENDS = re.compile(r"(first|last):(\S*)")


def subset_of(layers: object) -> Subset | None:
    """Returns the subset of the default layers that a string describes, or None for other strings.

    `"first:3"` and `"last:3"` are the first and last three layers in execution order; `"but-last-stage"`
    selects those before the last stage, a sequence of consecutive layers with maps of the same size.
    """
    if layers == BUT_LAST_STAGE:
        return _before_last_stage
    match = _ENDS.fullmatch(layers) if isinstance(layers, str) else None
    if match is None:
        return None
    end, number = match.groups()
    if not number.isdecimal() or int(number) < 1:
        raise OptionError(f"layers={layers!r} needs a positive integer, as in '{end}:3'")
    count = int(number)

    def ends(found: Sequence[Layer]) -> list[Layer]:
        if count > len(found):
            raise LayerError(
                f"layers={layers!r} was requested, but the model has {len(found)} layers: "
                + ", ".join(layer.name for layer in found)
            )
        return list(found[:count] if end == "first" else found[-count:])

    return ends


def _before_last_stage(found: Sequence[Layer]) -> list[Layer]:
    maps = [layer.positions for layer in found]
    last = next((size for size in reversed(maps) if size), ())
    stop = len(maps)
    while stop and maps[stop - 1] in ((), last):
        stop -= 1
    if not stop:
        raise LayerError(
            f"layers={BUT_LAST_STAGE!r} was requested, but all layers of the model have maps of one "
            "size; name the layers, or exclude a stage with '!name.*'"
        )
    return list(found[:stop])

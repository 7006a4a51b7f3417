"""The shape of a corruption procedure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from probekit.runtime.random_streams import RandomStreams

__all__ = ["Procedure", "nothing"]

Draws = tuple[Any, ...]


def nothing(streams: RandomStreams, images: Tensor, constants: Any, room: Tensor) -> Draws:
    """The draw of a type in which nothing is random."""
    return ()


@dataclass(frozen=True)
class Procedure:
    """One corruption type.

    Args:
        apply: images, the type's constants and the draws, to corrupted images; it may write over
            the draws, never over the images.
        draw: the images' streams, the images, the constants and room, to the draws, a tuple. It
            looks at the images' shape alone; room is float32 memory of that shape, in which a
            field may be drawn.
        storage: how the published procedure comes to its 8-bit result: cut off to whole steps,
            rounded to them, or with a result that consists of whole steps already.
        values_at_once: how many values of a batch are best worked on together on a CPU: few enough
            to stay in its cache, many enough that calls cost little beside the work.
    """

    apply: Callable[..., Tensor]
    draw: Callable[[RandomStreams, Tensor, Any, Tensor], Draws] = nothing
    storage: Literal["cut off", "rounded", "as it is"] = "cut off"
    values_at_once: int = 1 << 17

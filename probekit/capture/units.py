"""Determines the sample and unit axes of a layer.

A unit has its own weights; positions share weights. A convolution has one filter per channel, so its
units are on axis 1. A linear layer has one row of weights per output feature, so its units are on the
last axis, whether the axes before it are tokens, windows or, in the token-mixing half of an MLP-Mixer,
the channels. For an activation function, a pad or a permutation, the weights before it determine the
unit axis, which the tracer follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from probekit.capture.axes import Axes, Axis, Kind, Label, kind, newest, size_of
from probekit.models.hooks import runs_as_written_by_torch

_UNITS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
)
_UNITS_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


class Unplaced(Exception):
    """Raised if an output has no units to record; the message completes a sentence."""


@dataclass(frozen=True)
class Layout:
    """The axes of samples, units and tokens in an output, with the attributes of `Layer`.

    `several`: whether non-patch tokens are on several axes, or cannot be identified.
    """

    batch_axis: int
    windows: int
    unit_axis: int
    evidence: str
    certain: bool
    prefix: int = 0
    suffix: int = 0
    class_token: int | None = None
    several: bool = False
    split: tuple[int, ...] = ()
    outer: int = 1


def axis_of_type(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """The unit axis that a module's own parameters determine, or None if its type does not.

    Convolutions, batch norms and group norms have their units on axis 1. Linear and recurrent layers
    and attention have them on the last axis, as do layer norms over one axis. A subclass with a forward of
    its own may move them.
    """
    if len(shape) < 3:
        return 1 if len(shape) == 2 else None
    if isinstance(module, _UNITS_FIRST):
        return 1
    if isinstance(module, _UNITS_LAST):
        return len(shape) - 1
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1:
        return len(shape) - 1
    return None


def place(
    module: nn.Module | None,
    shape: tuple[int, ...],
    axes: Axes,
    depends: bool | None,
    samples: Label | None,
    count: int,
    beside: bool = False,
) -> Layout:
    """Finds the axes of an output, given its traced axes and the label and number of samples.

    `depends` is whether the output depends on the inputs of the model; None if unknown. `beside` is
    whether the model concatenates patches with other tokens. `Unplaced` is raised if it has no units to
    record per sample.
    """
    batch, outer, windows, known = _samples(shape, axes, depends, samples, count)
    rest = [axis for axis in range(len(shape)) if axis != batch]
    if samples is not None and any(axes[axis][0][0].root is samples.root for axis in rest):
        raise Unplaced("compares the samples of a batch with each other, so it has no units")
    units, evidence = _units(module, shape, axes, batch, rest)
    certain = known and evidence != "assumed"
    layout = Layout(
        batch, windows, units[0], evidence, certain, split=tuple(units[1:]), outer=outer
    )
    return _with_tokens(layout, axes, [axis for axis in rest if axis not in units], beside)


def _samples(
    shape: tuple[int, ...], axes: Axes, depends: bool | None, samples: Label | None, count: int
) -> tuple[int, int, int, bool]:
    """The axis of the samples, its windows before the samples and in all, and whether it is certain."""
    if depends is False:
        raise Unplaced("does not depend on the images")
    if samples is not None:
        for axis, parts in enumerate(axes):
            for place, (label, size) in enumerate(parts):
                if label.root is samples.root and size == count:
                    return axis, size_of(parts[:place]), shape[axis] // count, True
    untraced = depends is None or count == 1 or (axes and kind(axes[0]) is Kind.LOST)
    if untraced and count > 0 and shape[:1] == (count,):
        return 0, 1, 1, False
    raise Unplaced(
        f"has the shape {shape}, no axis of which is the batch of {count} samples in their order"
    )


def _units(
    module: nn.Module | None, shape: tuple[int, ...], axes: Axes, batch: int, rest: list[int]
) -> tuple[list[int], str]:
    """The unit axes and the evidence for them: one axis, or the parts into which a reshape split it."""
    declared = None if module is None or len(rest) < 2 else axis_of_type(module, shape)
    if module is not None and declared in rest and runs_as_written_by_torch(module):
        return [declared], "weights"
    inside = _serials(part for part in axes[batch] if part[1] > 1)
    if inside and max(inside) >= max(
        _serials(part for axis in rest for part in axes[axis]), default=0
    ):
        raise Unplaced("has a part of its units in the batch axis, such as heads of attention")
    if len(rest) < 2:
        return rest or [1], "only axis"
    labels = {axis: newest(axes[axis]) for axis in rest}
    if any(label.kind is Kind.UNIT for label in labels.values()):
        return _made_by_weights(axes, labels, declared)
    read = [axis for axis in rest if labels[axis].read]
    if len({labels[axis].serial for axis in read}) == 1:
        return read, "weights after"
    if declared in rest:
        return [declared], "assumed"
    return [rest[-1] if len(shape) == 3 else rest[0]], "assumed"


def _made_by_weights(
    axes: Axes, labels: dict[int, Label], declared: int | None
) -> tuple[list[int], str]:
    """The axes, among those with these labels, whose units the last weights before the output made."""
    last = max(label.serial for label in labels.values() if label.kind is Kind.UNIT)
    made = [x for x, one in labels.items() if one.kind is Kind.UNIT and one.serial == last]
    read = [axis for axis in made if labels[axis].read]
    others = [axis for axis in labels if axis not in made]
    if len(read) == 1 < len(made):
        positions = all(labels[axis].root.scanned for axis in made if axis not in read)
        return read, "weights after" if positions else "assumed"
    if any(_may_be_units(axes[axis], labels[made[0]]) for axis in others):
        return made, "assumed"
    return made, "weights" if made == [declared] else "weights before"


def _serials(parts: Iterable[tuple[Label, int]]) -> list[int]:
    """The serial numbers of the units among the parts of axes."""
    return [label.serial for label, _ in parts if label.kind is Kind.UNIT]


def _may_be_units(axis: Axis, units: Label) -> bool:
    """Whether an axis beside the newest units may be units too.

    Its elements then differ by constants of their own, or are units of weights that made the features of
    which the newest units are combinations, as in a tensor train.
    """
    return any(
        (label.varies and label.serial > units.serial)
        or (label.kind is Kind.UNIT and label.serial in units.reads)
        for label, _ in axis
    )


def _with_tokens(layout: Layout, axes: Axes, positions: list[int], beside: bool) -> Layout:
    """Adds the positions of non-patch tokens."""
    if layout.windows > 1:
        return layout
    joint = [axis for axis in positions if newest(axes[axis]).tokens]
    unclear = any(kind(axes[axis]) is Kind.LOST for axis in positions)
    if len(positions) != 1 or unclear:
        return replace(layout, several=bool(joint) or unclear)
    axis = axes[positions[0]]
    if joint:
        label = newest(axis)
        return replace(
            layout, prefix=label.before, suffix=label.after, class_token=label.class_token
        )
    if beside and kind(axis) is Kind.CONSTANT:
        return replace(layout, prefix=size_of(axis), class_token=0)
    return layout

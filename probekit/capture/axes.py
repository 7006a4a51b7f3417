"""The meaning of tensor axes (samples, units, positions) and how operations transform it.

Every axis is a product of parts, outermost first: the batch axis of Swin windows is
(samples, windows). A part has a label and a size. A label identifies the origin of an axis, so axes of
equal size remain distinct, for example in square maps or with as many tokens as features.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import count
from math import prod
from typing import TypeAlias

_serial = count()


class Kind(Enum):
    """The kind of an axis.

    CONSTANT: An axis of a constant or a broadcast; it adopts the axis that it is combined with.
    INPUT: An axis of a model input, or a stack of inputs.
    PLACE: Positions that share weights: space, tokens, windows.
    UNIT: Created by weights: one column, filter or scale per index.
    LOST: Created by an operation without a rule.
    """

    CONSTANT = 0
    INPUT = 1
    PLACE = 2
    UNIT = 3
    LOST = 4


class Label:
    """The identity of an axis.

    `serial` is the creation order of labels; the newest units are a layer's own. `before` and `after` are the
    numbers of tokens beside the patches, `start` is where a part of an input axis begins on it, `scanned` is
    whether a convolution runs along the axis, and `mixes` whether its elements are combinations of units.
    `varies` is whether constants of their own, such as scales, are all that distinguishes its elements.
    `weights` are the names of the weights that made units, as far as they are known, and `reads` the serials
    of the units that these weights read.
    """

    def __init__(
        self, kind: Kind, before: int = 0, after: int = 0, class_token: int | None = None
    ) -> None:
        self.kind = kind
        self.serial = next(_serial)
        self.before = before
        self.after = after
        self.class_token = class_token
        self.start = 0
        self.scanned = False
        self.mixes = False
        self.varies = False
        self.weights: frozenset[str] = frozenset()
        self.reads: frozenset[int] = frozenset()
        self._read = False
        self._same: Label = self

    @property
    def root(self) -> Label:
        """The representative of all labels known to be the same axis."""
        while self._same._same is not self._same:
            self._same = self._same._same
        return self._same

    @property
    def read(self) -> bool:
        """Whether weights read the axis as their input features."""
        return self.root._read

    @read.setter
    def read(self, value: bool) -> None:
        self.root._read = value

    def cut(self, start: int) -> Label:
        """The label of the part of an input axis that begins at `start`."""
        label = Label(self.kind)
        label.start = self.start + start
        label._same = self
        return label

    def part(self) -> Label:
        """The label of a part of the axis: the same units for units, otherwise new positions."""
        if self.kind in (Kind.CONSTANT, Kind.LOST):
            return self
        label = Label(self.kind if self.kind is Kind.UNIT else Kind.PLACE)
        if self.kind is Kind.UNIT:
            label.serial, label.weights, label.reads = self.serial, self.weights, self.reads
        return label

    def unite(self, other: Label) -> None:
        """Records that two labels are the same axis, for example the samples of two inputs."""
        mine, others = self.root, other.root
        mine._read |= others._read
        others._same = mine

    @property
    def tokens(self) -> bool:
        """Whether the axis has tokens other than patches."""
        return bool(self.before or self.after)

    def __repr__(self) -> str:
        return f"{self.kind.name.lower()}{self.serial}"


Axis: TypeAlias = "tuple[tuple[Label, int], ...]"
Axes: TypeAlias = "tuple[Axis, ...]"

_CONSTANT = Label(Kind.CONSTANT)


def new_axis(kind: Kind, size: int) -> Axis:
    """An axis with a label of its own, except that all constants share one."""
    return ((_CONSTANT if kind is Kind.CONSTANT else Label(kind), size),)


def constant(size: int) -> Axis:
    return new_axis(Kind.CONSTANT, size)


def size_of(axis: Axis) -> int:
    return prod(part for _, part in axis)


def new_axes(kind: Kind, shape: Sequence[int]) -> Axes:
    """An axis of one kind for each size of a shape."""
    return tuple(new_axis(kind, size) for size in shape)


def kind(axis: Axis) -> Kind:
    """The kind of a whole axis: the first of these kinds that one of its parts has."""
    kinds = [label.kind for label, _ in axis]
    for one in (Kind.LOST, Kind.INPUT, Kind.UNIT, Kind.PLACE):
        if one in kinds:
            return one
    return Kind.CONSTANT


def newest(axis: Axis) -> Label:
    """The newest unit label of an axis, or its first known label."""
    units = [label for label, _ in axis if label.kind is Kind.UNIT]
    if units:
        return max(units, key=lambda label: label.serial)
    known = [label for label, _ in axis if label.kind is not Kind.CONSTANT]
    return known[0] if known else axis[0][0]


def read(axis: Axis) -> None:
    """Records that weights read an axis as their input features."""
    latest = newest(axis)
    if latest is _CONSTANT:  # which all constants share
        return
    for label, _ in axis:
        same = (label.kind, label.serial) == (Kind.UNIT, latest.serial)
        label.read |= same or label is latest or label.kind is latest.kind is Kind.LOST


def resized(axis: Axis, size: int) -> Axis:
    """The same axis with another size, after a pad, crop, pool or interpolation."""
    whole = size_of(axis)
    if whole == size:
        return axis
    inner = whole // max(axis[0][1], 1)
    if len(axis) > 1 and inner and size % inner == 0:
        return ((axis[0][0], size // inner), *axis[1:])
    label = newest(axis)
    if len(axis) > 1 and label.kind is not Kind.UNIT:
        label = Label(Kind.PLACE)
    return ((Label(label.kind) if label.tokens else label, size),)


def cropped(axis: Axis, start: int, stop: int, step: int, size: int) -> Axis:
    """An axis cropped from `start` to `stop`, with the non-patch tokens that remain."""
    label = axis[0][0]
    whole = size_of(axis)
    if size == whole:
        return axis
    if len(axis) > 1:  # whole parts remain only if the crop begins at one
        inner = size_of(axis[1:])
        if step == inner and start < inner and size == axis[0][1]:  # one of each inner part
            return axis[:1]
        if kind(axis) is Kind.UNIT or (step == 1 and start % inner == size % inner == 0):
            return resized(axis, size)
        return new_axis(Kind.PLACE, size)
    if label.kind is Kind.INPUT and not label.tokens and step == 1:
        return ((label.cut(start), size),)
    if not label.tokens or step != 1:
        return resized(axis, size)
    before = max(0, label.before - start)
    after = max(0, stop - (whole - label.after))
    if stop <= label.before or start >= whole - label.after:
        return constant(size)
    place = None if label.class_token is None else label.class_token - start
    inside = place is not None and 0 <= place < size
    return ((Label(label.kind, before, after, place if inside else None), size),)


def regrouped(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after a reshape, which preserves the order of elements.

    An axis of positions may be split differently: 8 windows of 7 rows into 7 parts of 8 rows.
    """
    whole = tuple(
        new_axis(Kind.PLACE, size_of(axis))
        if len(axis) > 1 and all(label.kind is Kind.PLACE for label, _ in axis)
        else axis
        for axis in axes
    )
    found = _regrouped(axes, shape) or _regrouped(whole, shape)
    return found or new_axes(Kind.LOST, shape)


def merged(one: Axes, other: Axes) -> Axes:
    """The axes of an elementwise operation on two tensors, aligned at the last one."""
    ndim = max(len(one), len(other))
    first, second = ((constant(1),) * (ndim - len(axes)) + axes for axes in (one, other))
    pairs = list(zip(first, second, strict=True))
    return tuple(_merged_axis(a, b, pairs[:i] + pairs[i + 1 :]) for i, (a, b) in enumerate(pairs))


def joined(parts: Sequence[Axis], names: Sequence[str | None], unit_elsewhere: bool) -> Axis:
    """The axis along which tensors are concatenated, given that axis in each tensor.

    `names` are those of the parameters that the tensors are views of, or None; `unit_elsewhere` is
    whether another axis has units.
    """
    size = sum(map(size_of, parts))
    if (again := _rejoined(parts)) is not None:
        return again
    kinds = [kind(part) for part in parts]
    known = [i for i, one in enumerate(kinds) if one is not Kind.CONSTANT]
    if not known:
        return constant(size)
    units = [newest(parts[i]) for i in known if kinds[i] is Kind.UNIT]
    if units and (len(units) == len(known) or not unit_elsewhere):
        return ((max(units, key=lambda label: label.serial), size),)
    if any(kinds[i] is Kind.LOST for i in known):
        return new_axis(Kind.LOST, size)
    if len(known) == 1 == len(parts):
        return parts[0]
    first, last = newest(parts[known[0]]), newest(parts[known[-1]])
    sizes = list(map(size_of, parts))
    starts = [sum(sizes[:i]) for i in range(len(parts))]
    before = starts[known[0]] + first.before
    after = size - starts[known[-1]] - sizes[known[-1]] + last.after
    class_token = None
    if first.class_token is not None:
        class_token = starts[known[0]] + first.class_token
    for i in range(len(parts)):
        if kinds[i] is Kind.CONSTANT and not _registers(names[i]):
            class_token = starts[i] if class_token is None else min(class_token, starts[i])
            break
    shared = Kind.INPUT if all(kinds[i] is Kind.INPUT for i in known) else Kind.PLACE
    return ((Label(shared, before, after, class_token), size),)


def _rejoined(parts: Sequence[Axis]) -> Axis | None:
    """The axis of parts of one input axis: the axis again, copies of it, or positions in another order.

    None if the parts are not all of one input axis.
    """
    labels = [part[0][0] for part in parts if len(part) == 1 and part[0][0].kind is Kind.INPUT]
    if not len(labels) == len(parts) > 1 or len({label.root for label in labels}) > 1:
        return None
    sizes = list(map(size_of, parts))
    starts = [label.start for label in labels]
    if starts == [sum(sizes[:i]) for i in range(len(parts))]:
        return ((labels[0].root, sum(sizes)),)
    if len(set(sizes)) == len(set(starts)) == 1:
        return ((Label(Kind.PLACE), len(parts)), *parts[0])
    return new_axis(Kind.PLACE, sum(sizes))


def _regrouped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes after a reshape, or None if their parts do not fit."""
    if 0 in shape:
        return None
    left = [part for axis in reversed(axes) for part in reversed(axis)]
    result: list[Axis] = []
    for position, size in enumerate(shape):
        taken: list[tuple[Label, int]] = []
        need = size
        more_ones = position + 1 < len(shape) and shape[position + 1] == 1
        while left:
            label, part = left[-1]
            if part == 1:
                if need == 1 and size > 1 and more_ones:
                    break
                taken.append(left.pop())
                if size == 1 and more_ones:
                    break
            elif need == 1:
                break
            elif need % part == 0:
                taken.append(left.pop())
                need //= part
            elif part % need == 0:
                left[-1] = (label.part(), part // need)
                outer = label  # such as the samples of (samples, frames)
                if label.kind is Kind.UNIT:
                    outer = label.part()
                elif label.tokens:
                    outer = Label(label.kind)
                taken.append((outer, need))
                need = 1
            else:
                return None
        if need != 1:
            return None
        named = tuple(part for part in taken if part[1] > 1 or part[0].kind is not Kind.CONSTANT)
        result.append(named or constant(size))
    return tuple(result)


def _merged_axis(a: Axis, b: Axis, others: list[tuple[Axis, Axis]]) -> Axis:
    if size_of(a) != size_of(b):
        return a if size_of(b) == 1 else b
    one, other = kind(a), kind(b)
    for neutral in (Kind.CONSTANT, Kind.LOST):
        if neutral in (one, other):
            return b if one is neutral else a
    if a == b:
        return a
    if {one, other} == {Kind.UNIT}:
        newest(a).weights = newest(b).weights = newest(a).weights | newest(b).weights
        split = [
            _continues(a, [pair[0] for pair in others]),
            _continues(b, [pair[1] for pair in others]),
        ]
        if split[0] is not split[1]:  # as heads and features, of which the other has only heads
            return a if split[0] else b
        return a if newest(a).serial > newest(b).serial else b
    if Kind.UNIT in (one, other):
        return _units_or_places(a, b, others)
    if one is other is Kind.INPUT:
        if a[0][0].kind is b[0][0].kind is Kind.INPUT:
            a[0][0].unite(b[0][0])
        return a if len(a) >= len(b) else b
    if one is other:
        return b if newest(b).tokens and not newest(a).tokens else a
    return a if one is Kind.INPUT else b


def _continues(axis: Axis, others: Sequence[Axis]) -> bool:
    """Whether the units of an axis are split over other axes too."""
    serial = newest(axis).serial
    return any(kind(one) is Kind.UNIT and newest(one).serial == serial for one in others)


def _units_or_places(a: Axis, b: Axis, others: list[tuple[Axis, Axis]]) -> Axis:
    """Merges an axis that holds units in one operand and positions in the other.

    The result is positions, as when an MLP over the tokens of each channel is added to the tokens,
    unless the operand with positions has no other axis that could be its units.
    """
    units, places = (a, b) if kind(a) is Kind.UNIT else (b, a)
    mine = [pair[1] if units is a else pair[0] for pair in others]
    if kind(places) is Kind.PLACE:
        return places
    known = any(kind(axis) is Kind.UNIT or newest(axis).read for axis in mine)
    return tuple((Label(Kind.PLACE), size) for _, size in places) if known else units


def _registers(name: str | None) -> bool:
    """Whether a parameter holds tokens other than class tokens."""
    last = (name or "").rpartition(".")[2].lower()
    return any(word in last for word in ("reg", "dist", "prompt", "storage", "mask"))

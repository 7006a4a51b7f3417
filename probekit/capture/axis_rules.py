"""How operations transform axes: one rule per kind of torch operation.

Rules apply to the small set of operations below autograd: `F.linear`, `nn.Linear` and `@` become
matrix products; `flatten` and einops become views and permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import torch
from numpy import broadcast_shapes
from torch import Tensor

from probekit.capture.axes import (
    Axes,
    Axis,
    Kind,
    Label,
    constant,
    cropped,
    joined,
    kind,
    merged,
    new_axes,
    new_axis,
    newest,
    read,
    regrouped,
    resized,
    size_of,
)
from probekit.models.nested import all_tensors


class Known(Protocol):
    """The information about tensors collected so far."""

    inputs: list[Axes]
    seen_tokens: bool

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of a tensor."""

    def depends(self, tensor: Tensor) -> bool | None:
        """Whether a tensor depends on the inputs; None if unknown."""

    def name(self, tensor: Tensor) -> str | None:
        """The name of the parameter or buffer that a tensor shares memory with."""

    def learned(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or computed from parameters only."""

    def own_constants(self, tensor: Tensor) -> frozenset[object]:
        """The constants that were factors or summands of a tensor since weights made its units."""

    def vote(self, axes: Axes) -> None:
        """Records that an operation treats the first axis as the batch."""


class OperatorCall:
    """One call of an operator, with what was known about its tensors before it ran.

    `name` has no overload, `given` are the arguments by name, `tensors` those that are tensors.
    `depends` is whether any argument depends on the inputs of the model; None if unknown.
    """

    def __init__(
        self, tracer: Known, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        schema = func._schema
        self.tracer = tracer
        self.overload = str(func._overloadname)
        self.name = str(schema.name)
        self.given: dict[str, Any] = {
            one.name: one.default_value for one in schema.arguments if one.has_default_value()
        }
        self.given |= dict(zip((one.name for one in schema.arguments), args, strict=False)) | kwargs
        self.tensors = all_tensors(self.given)
        self.outputs: Sequence[Tensor] = ()
        self._axes = {id(tensor): tracer.axes(tensor) for tensor in self.tensors}
        self._depends = {id(tensor): tracer.depends(tensor) for tensor in self.tensors}
        self.in_place = self.name.endswith("_") and not self.name.endswith("__")
        self.creates = self.name.endswith("_like") or self.name.startswith("aten::new_")
        flags = self._depends.values()
        self.depends = any(flags) or (None if None in flags else False)
        if self.creates:
            self.depends = False

    @property
    def operation(self) -> str:
        """The name without its namespace and in-place suffix."""
        name = self.name.partition("::")[2]
        return name.removesuffix("_") if self.in_place else name

    @property
    def input(self) -> Axes:
        """The axes of the first tensor among the arguments."""
        return self.axes(self.tensors[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return tuple(self.outputs[0].shape)

    def axes(self, tensor: Tensor) -> Axes:
        return self._axes[id(tensor)]

    def moves(self, tensor: Tensor) -> bool:
        """Whether an argument is known to depend on the inputs."""
        return bool(self._depends[id(tensor)])

    @cached_property
    def rule(self) -> Rule:
        """The rule of the operation."""
        default = _reduction if {"dim", "keepdim"} <= self.given.keys() else _elementwise
        if self.name.partition("::")[0] not in _NAMESPACES:
            default = _unknown
        return _RULES.get(self.operation, default)

    @property
    def is_elementwise(self) -> bool:
        """Whether constants among its arguments are factors or summands, as in a norm."""
        return self.rule in (_elementwise, _norm)

    def dim(self, ndim: int) -> int:
        """The argument `dim` as a non-negative number."""
        return _position(self.given.get("dim", 0), ndim)


Rule: TypeAlias = Callable[[OperatorCall], "Axes | list[Axes]"]


def follow(call: OperatorCall, outputs: Sequence[Tensor]) -> list[Axes]:
    """The axes of the outputs of a call."""
    call.outputs = outputs
    if call.name.startswith("aten::new_"):
        return [new_axes(Kind.CONSTANT, one.shape) for one in outputs]
    found = call.rule(call)
    if isinstance(found, list):
        return found
    return [found, *(new_axes(Kind.LOST, one.shape) for one in outputs[1:])]


def _position(dim: int, ndim: int) -> int:
    return dim % max(ndim, 1)


def _sizes(axes: Axes) -> tuple[int, ...]:
    return tuple(map(size_of, axes))


def _units(call: OperatorCall) -> Axis:
    """New units on the last axis of the first output."""
    return new_axis(Kind.UNIT, call.shape[-1])


def _units_of(call: OperatorCall, weight: Tensor, source: Axis, size: int) -> Axis:
    """New units that a weight makes of the features that it reads on the axis `source`."""
    read(source)
    axis = new_axis(Kind.UNIT, size)
    if name := call.tracer.name(weight):
        newest(axis).weights = frozenset([name])
    newest(axis).reads = frozenset(label.serial for label, _ in source if label.kind is Kind.UNIT)
    return axis


def _all_resized(axes: Axes, shape: Sequence[int]) -> Axes:
    return tuple(resized(axis, size) for axis, size in zip(axes, shape, strict=True))


# Operations without a rule of their own


def _elementwise(call: OperatorCall) -> list[Axes]:
    """Elementwise operations; and pads, pools and interpolations, which only change sizes."""
    return [_like_arguments(call, tuple(output.shape)) for output in call.outputs]


def _like_arguments(call: OperatorCall, shape: tuple[int, ...]) -> Axes:
    found = new_axes(Kind.CONSTANT, shape)
    fits = not call.tensors
    for tensor in call.tensors:
        axes = call.axes(tensor)
        sizes = _sizes(axes)
        if len(sizes) <= len(shape) and all(
            a in (1, b) for a, b in zip(reversed(sizes), reversed(shape), strict=False)
        ):
            found = merged(found, axes)
            fits |= sizes == shape or call.depends is not True
    if call.in_place:
        return found if fits else call.input
    try:
        broadcast = tuple(broadcast_shapes(*(one.shape for one in call.tensors)))
    except ValueError:
        broadcast = None
    if broadcast is not None and (fits or broadcast == shape):
        return _with_constants(call, found)
    axes = next((call.axes(one) for one in call.tensors if call.moves(one)), call.input)
    return (
        _all_resized(axes, shape)
        if len(axes) == len(shape) and not fits
        else new_axes(Kind.LOST, shape)
    )


def _with_constants(call: OperatorCall, axes: Axes) -> Axes:
    """The axes of a result, in which copies of activations may have been given constants of their own."""
    if not call.depends:
        return axes
    found = list(axes)
    for i, axis in enumerate(axes, start=-len(axes)):
        constants = (one for one in call.tensors if not call.moves(one) and one.ndim >= -i)
        if kind(axis) is Kind.CONSTANT and any(_varies(one, i) for one in constants):
            found[i] = new_axis(Kind.PLACE, size_of(axis))
            newest(found[i]).varies = True
    return tuple(found)


def _varies(tensor: Tensor, dim: int) -> bool:
    """Whether the values of a tensor differ along an axis."""
    if tensor.shape[dim] < 2 or tensor.device.type == "meta":
        return False
    tensor = tensor.detach()
    return bool((tensor != tensor.narrow(dim, 0, 1)).any())


def _reduction(call: OperatorCall) -> list[Axes]:
    axes = call.input
    dims = call.given["dim"]
    dims = range(len(axes)) if dims is None or dims == [] else dims
    gone = {_position(dim, len(axes)) for dim in ([dims] if isinstance(dims, int) else dims)}
    if call.given["keepdim"]:
        left = tuple(constant(1) if i in gone else axis for i, axis in enumerate(axes))
    else:
        left = tuple(axis for i, axis in enumerate(axes) if i not in gone)
    return [left] * len(call.outputs)


def _unknown(call: OperatorCall) -> list[Axes]:
    return [new_axes(Kind.LOST, one.shape) for one in call.outputs]


# Norms, copies and writes


def _norm(call: OperatorCall) -> Axes:
    """A norm scales units; if none are known yet, they are on the axis that it scales."""
    axes = call.input
    per_sample = call.operation in ("native_layer_norm", "_fused_rms_norm")
    if not per_sample:
        call.tracer.vote(axes)
    elif len(call.given.get("normalized_shape", ())) != 1:
        return axes
    scaled = len(axes) - 1 if per_sample else 1
    if scaled >= len(axes) or not isinstance(call.given.get("weight"), Tensor):
        return axes
    units = [label.serial for axis in axes for label, _ in axis if label.kind is Kind.UNIT]
    if not units:
        read(axes[scaled])
    elif per_sample or units.count(max(units)) == 1:
        return axes
    return (*axes[:scaled], new_axis(Kind.UNIT, size_of(axes[scaled])), *axes[scaled + 1 :])


def _like_first(call: OperatorCall) -> Axes:
    """The axes of a tensor that is written into; in a new one, rows may be written in any order."""
    axes = call.input
    writes = call.name.startswith(("aten::index_", "aten::scatter", "aten::masked_scatter"))
    if writes and call.depends and not call.moves(call.tensors[0]):
        if all(kind(axis) is Kind.CONSTANT for axis in axes):
            return new_axes(Kind.LOST, call.shape)
        chosen = _written(call, len(axes))
        return tuple(
            new_axis(Kind.LOST, size_of(axis)) if i in chosen else axis
            for i, axis in enumerate(axes)
        )
    return axes


def _written(call: OperatorCall, ndim: int) -> Sequence[int]:
    """The axes along which a write chooses elements."""
    if "dim" in call.given:
        return [call.dim(ndim)]
    indices = call.given.get("indices")
    if indices is None or any(one is not None and one.dtype == torch.bool for one in indices[1:]):
        return range(ndim)
    if indices[0] is not None and indices[0].dtype == torch.bool:
        return range(indices[0].ndim)
    return [i for i, one in enumerate(indices) if one is not None]


# Views


def _view(call: OperatorCall) -> Axes:
    if call.overload == "dtype":
        return _all_resized(call.input, call.shape)
    return regrouped(call.input, call.shape)


def _transpose(call: OperatorCall) -> Axes:
    axes = list(call.input)
    if len(axes) > 1:
        one, other = call.given.get("dim0", 0), call.given.get("dim1", 1)
        axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


def _unsqueeze(call: OperatorCall) -> Axes:
    axes = list(call.input)
    axes.insert(call.dim(len(axes) + 1), constant(1))
    return tuple(axes)


def _squeeze(call: OperatorCall) -> Axes:
    axes = call.input
    dims = call.given.get("dim", range(len(axes)))
    chosen = {_position(dim, len(axes)) for dim in ([dims] if isinstance(dims, int) else dims)}
    return tuple(axis for i, axis in enumerate(axes) if i not in chosen or size_of(axis) != 1)


def _slice(call: OperatorCall) -> Axes:
    axes = list(call.input)
    dim = call.dim(len(axes))
    bounds = slice(call.given.get("start"), call.given.get("end"))
    start, stop, _ = bounds.indices(size_of(axes[dim]))
    axes[dim] = cropped(axes[dim], start, stop, call.given.get("step", 1), call.shape[dim])
    return tuple(axes)


def _select(call: OperatorCall) -> Axes:
    axes = list(call.input)
    del axes[call.dim(len(axes))]
    return tuple(axes)


def _split(call: OperatorCall) -> list[Axes]:
    axes = call.input
    dim = call.dim(len(axes))
    found, start = [], 0
    for output in call.outputs:
        size = output.shape[dim]
        part = cropped(axes[dim], start, start + size, 1, size)
        found.append((*axes[:dim], part, *axes[dim + 1 :]))
        start += size
    return found


def _pad(call: OperatorCall) -> list[Axes]:
    """Tokens added to a sequence are not patches; otherwise, a pad changes only sizes."""
    left, right = (*call.given["pad"][2:], 0, 0)[:2]
    axes = call.input
    token = len(axes) == 3 and kind(axes[1]) is Kind.PLACE and min(left, right) >= 0
    if not token or left == right == 0:
        return _elementwise(call)
    label = newest(axes[1])
    before, after = label.before + left, label.after + right
    place = None if label.class_token is None else label.class_token + left
    padded = ((Label(Kind.PLACE, before, after, place), call.shape[1]),)
    return [(axes[0], padded, resized(axes[2], call.shape[2]))]


def _unfold(call: OperatorCall) -> Axes:
    *front, window = call.shape
    return (*_all_resized(call.input, front), new_axis(Kind.PLACE, window))


# Concatenation, repetition and reordering


def _cat(call: OperatorCall) -> Axes:
    shape = call.shape
    tensors = [one for one in call.tensors if one.ndim == len(shape)]
    dim = call.dim(len(shape))
    parts = [call.axes(one) for one in tensors]
    stacked = _list_axis(call, tensors)
    rest = new_axes(Kind.CONSTANT, shape)
    for axes in parts:
        rest = merged(rest, (*axes[:dim], constant(shape[dim]), *axes[dim + 1 :]))
    units_elsewhere = any(kind(axis) is Kind.UNIT for axis in rest)
    names = [call.tracer.name(one) for one in tensors]
    axis = joined([axes[dim] for axes in parts], names, units_elsewhere)
    listed = kind(axis) is Kind.CONSTANT and size_of(axis) == len(tensors) and call.depends
    if listed and (len(tensors) > 1 or dim == 0):
        axis = stacked
    call.tracer.seen_tokens |= newest(axis).tokens
    return (*rest[:dim], axis, *rest[dim + 1 :])


def _stack(call: OperatorCall) -> Axes:
    stacked = _list_axis(call, call.tensors)
    rest = new_axes(Kind.CONSTANT, call.tensors[0].shape)
    for one in call.tensors:
        rest = merged(rest, call.axes(one))
    dim = call.dim(len(rest) + 1)
    return (*rest[:dim], stacked, *rest[dim:])


def _list_axis(call: OperatorCall, tensors: Sequence[Tensor]) -> Axis:
    """The axis of a list of tensors: units if each has units of weights of its own.

    The steps of a recurrent network have the same weights. If the tensors differ by constant factors or
    summands only, they may be units or positions.
    """
    units = [
        [newest(axis) for axis in call.axes(one) if kind(axis) is Kind.UNIT] for one in tensors
    ]
    made = [{name for label in labels for name in label.weights} for labels in units]
    if all(made) and len(made) > 1 and sum(map(len, made)) == len(set().union(*made)):
        latest = max(
            (label for labels in units for label in labels), key=lambda label: label.serial
        )
        return ((latest, len(tensors)),)
    axis = new_axis(Kind.INPUT, len(tensors))
    newest(axis).varies = len({call.tracer.own_constants(one) for one in tensors}) > 1
    return axis


def _repeat(call: OperatorCall) -> Axes:
    times = list(call.given["repeats"])
    axes = (constant(1),) * (len(times) - len(call.input)) + call.input
    return tuple(
        axis if by == 1 else new_axis(Kind.PLACE, by) + axis if size_of(axis) > 1 else constant(by)
        for axis, by in zip(axes, times, strict=True)
    )


def _reordered(axis: Axis, size: int) -> Axis:
    """An axis in another order; reordered samples no longer count as samples."""
    if kind(axis) is Kind.UNIT:
        return ((newest(axis), size),)
    return new_axis(Kind.CONSTANT if kind(axis) is Kind.CONSTANT else Kind.PLACE, size)


def _reorder(call: OperatorCall) -> list[Axes]:
    axes = list(call.input)
    dims = call.given.get("dims", call.given.get("dim", 1))
    random = call.depends is False and "sort" in call.name  # perhaps of random numbers
    for dim in (dims if isinstance(dims, (list, tuple)) else [dims]) or range(len(axes)):
        place = _position(dim, len(axes))
        size = call.shape[place]
        axes[place] = new_axis(Kind.PLACE, size) if random else _reordered(axes[place], size)
    return [tuple(axes)] * len(call.outputs)


def _transform(call: OperatorCall) -> Axes:
    """A Fourier transform mixes the positions along its axes, also those with matrices of their own."""
    axes = _all_resized(call.input, call.shape)
    dims = {_position(dim, len(axes)) for dim in call.given["dim"]}
    kept = {newest(axis).serial for i, axis in enumerate(axes) if i not in dims}
    return tuple(
        new_axis(Kind.PLACE, size_of(axis))
        if i in dims and kind(axis) is Kind.UNIT and newest(axis).serial in kept
        else axis
        for i, axis in enumerate(axes)
    )


def _gather(call: OperatorCall) -> Axes:
    axes = list(_all_resized(call.input, call.shape))
    dim = call.dim(len(axes))
    axes[dim] = _reordered(axes[dim], call.shape[dim])
    return tuple(axes)


def _index(call: OperatorCall) -> Axes:
    axes, indices = call.axes(call.given["self"]), call.given["indices"]
    places = [i for i, one in enumerate(indices) if one is not None]
    if any(indices[i].dtype in (torch.bool, torch.uint8) for i in places):
        if places != [0] or indices[0].ndim != 1:
            return new_axes(Kind.LOST, call.shape)
        return (_reordered(axes[0], call.shape[0]), *axes[1:])
    shape = broadcast_shapes(*(indices[i].shape for i in places))
    together = places == list(range(places[0], places[-1] + 1))
    start = places[0] if together else 0
    kept = [axis for i, axis in enumerate(axes) if i not in places]
    made = [new_axis(Kind.PLACE if call.depends else Kind.CONSTANT, size) for size in shape]
    if len(shape) == len(places) == 1:
        made = [_reordered(axes[places[0]], shape[0])]
    for place in reversed(places):
        index = indices[place]
        long = [i for i, size in enumerate(index.shape) if size > 1] or [0]
        fixed = not call.moves(index) and all(
            kind(axis) is Kind.CONSTANT for axis in call.axes(index)
        )
        if len(long) == 1 and fixed and _in_order(index.flatten(), size_of(axes[place])):
            made[long[0] - index.ndim] = axes[place]
    return (*kept[:start], *made, *kept[start:])


def _in_order(index: Tensor, size: int) -> bool:
    """Whether an index selects all elements in order, as `torch.arange(len(x))` does."""
    if len(index) != size or index.device.type == "meta":
        return False
    return bool((index == torch.arange(size, device=index.device)).all())


# Patches, grids and regions


def _im2col(call: OperatorCall) -> Axes:
    *_, units, positions = call.shape
    return (*call.input[:-3], resized(call.input[-3], units), new_axis(Kind.PLACE, positions))


def _col2im(call: OperatorCall) -> Axes:
    *_, units, height, width = call.shape
    return (
        *call.input[:-2],
        resized(call.input[-2], units),
        *new_axes(Kind.PLACE, [height, width]),
    )


def _regions(call: OperatorCall) -> Axes:
    """Rows are boxes; those of a sample if fixed boxes list the samples in order, each as often."""
    boxes, units, *space = call.shape
    (rows,) = new_axes(Kind.PLACE, [boxes])
    count = size_of(call.input[0])
    samples = call.given["rois"][:, 0]
    each = boxes // count
    fixed = not call.moves(call.given["rois"]) and samples.device.type != "meta"
    if fixed and torch.equal(samples, torch.arange(count).to(samples).repeat_interleave(each)):
        rows = call.input[0] if each == 1 else call.input[0] + new_axis(Kind.PLACE, each)
    return (rows, resized(call.input[1], units), *new_axes(Kind.PLACE, space))


# Operations with weights


def _convolution(call: OperatorCall) -> Axes:
    weight, axes, shape = call.given["weight"], call.input, call.shape
    if len(axes) != len(shape):
        return new_axes(Kind.LOST, shape)
    call.tracer.vote(axes)
    read(axes[1])
    for axis in axes[2:]:
        newest(axis).root.scanned = True
    rows = axes[0]
    if kind(rows) is Kind.LOST:
        rows = new_axis(Kind.INPUT, shape[0])
        call.tracer.vote((rows,))
    if call.moves(weight):
        units = resized(call.axes(weight)[0], shape[1])
    elif axes[1][0][0].kind is Kind.INPUT and len(axes[1]) > 1:
        units = new_axis(Kind.LOST, shape[1])
    else:
        units = _units_of(call, weight, axes[1], shape[1])
    places = (
        axis if size_of(axis) == size and kind(axis) is Kind.PLACE else new_axis(Kind.PLACE, size)
        for axis, size in zip(axes[2:], shape[2:], strict=True)
    )
    return (rows, units, *places)


def _linear(call: OperatorCall) -> Axes:
    units = _units_of(call, call.given["weight"], call.input[-1], call.shape[-1])
    return (*call.input[:-1], units)


def _product(call: OperatorCall) -> Axes:
    left, right = _factors(call)
    rows, columns, shape = call.axes(left), call.axes(right), call.shape
    first: list[Axis] = list(rows[:-1])
    last: list[Axis] = [columns[-1]] if len(columns) > 1 else []
    if call.moves(left) and not call.moves(right):
        last = [_mapped(call, right, rows[-1], rows[:-1], shape[-1])] if last else []
    elif call.moves(right) and not call.moves(left):
        first = [_mapped(call, left, columns[0], columns[1:], shape[0])] if first else []
    elif last and first and kind(last[0]) is Kind.UNIT and kind(first[0]) is Kind.UNIT:
        first = [new_axis(Kind.PLACE, shape[0])]
    return (*first, *last)


def _batched_product(call: OperatorCall) -> Axes:
    left, right = _factors(call)
    one, other, shape = call.axes(left), call.axes(right), call.shape
    (batch,) = merged(one[:1], other[:1])
    rows, columns = one[1], other[2]
    if call.moves(left) and not call.moves(right) and _stored(call, right):
        columns = _mapped(call, right, one[2], one[:2], shape[2])
        batch = _with_own_weights(batch, right, columns)
    elif call.moves(right) and not call.moves(left) and _stored(call, left):
        rows = _mapped(call, left, other[1], other[::2], shape[1])
        batch = _with_own_weights(batch, left, rows)
    elif kind(columns) is Kind.UNIT:
        rows = _mixing(rows) if kind(rows) is Kind.UNIT else rows
        batch = _beside_units(batch, other[0], columns)
    elif kind(rows) is Kind.UNIT:
        batch = _beside_units(batch, one[0], rows)
    elif newest(rows).mixes and kind(other[1]) is Kind.UNIT and size_of(rows) == size_of(other[1]):
        rows = other[1]
        batch = _beside_units(batch, other[0], rows)
    return (batch, rows, columns)


def _mixing(axis: Axis) -> Axis:
    """The rows of a matrix (units, units), as in attention between channels."""
    parts = tuple(new_axis(Kind.PLACE, size)[0] for _, size in axis)
    for label, _ in parts:
        label.mixes = True
    return parts


def _beside_units(axis: Axis, source: Axis, units: Axis) -> Axis:
    """An axis of a product of activations: the units there are those of the factor that has the `units`.

    Others, such as heads of queries that have other weights, are positions.
    """
    serial = newest(units).serial
    if newest(source).kind is Kind.UNIT and newest(source).serial == serial:
        return source if kind(axis) is not Kind.INPUT or kind(source) is Kind.INPUT else axis
    return tuple(
        new_axis(Kind.PLACE, part[1])[0] if part[0].kind is Kind.UNIT else part for part in axis
    )


def _mapped(call: OperatorCall, weight: Tensor, axis: Axis, others: Axes, size: int) -> Axis:
    """The axis that a matrix maps an axis to: units, or positions if it is fixed and others are units.

    Such a matrix, as the adjacency of a graph, mixes positions.
    """
    if not call.tracer.learned(weight) and any(newest(one).kind is Kind.UNIT for one in others):
        return new_axis(Kind.PLACE, size)
    return _units_of(call, weight, axis, size)


def _stored(call: OperatorCall, tensor: Tensor) -> bool:
    """Whether a tensor is a parameter or a buffer, or computed from parameters only."""
    return call.tracer.name(tensor) is not None or call.tracer.learned(tensor)


def _with_own_weights(batch: Axis, weight: Tensor, made: Axis) -> Axis:
    """The batch axis of a product, of which parts with matrices of their own, as experts, are units too."""
    if kind(made) is not Kind.UNIT or weight.device.type == "meta":
        return batch
    parts = weight.detach().reshape(*(size for _, size in batch), *weight.shape[1:])
    own = [_varies(parts, i) for i in range(len(batch))]
    label = newest(made)
    return tuple((label, part[1]) if mine else part for part, mine in zip(batch, own, strict=True))


def _factors(call: OperatorCall) -> tuple[Tensor, Tensor]:
    for left, right in (("mat1", "mat2"), ("batch1", "batch2"), ("mat", "vec"), ("self", "mat2"),
                        ("self", "vec"), ("self", "tensor"), ("self", "other")):  # fmt: skip
        if left in call.given and right in call.given:
            return call.given[left], call.given[right]
    raise ValueError(call.name)


def _attention(call: OperatorCall) -> Axes:
    query, key, value = (call.axes(call.given[name]) for name in ("query", "key", "value"))
    front = merged(merged(query[:-2], key[:-2]), value[:-2])
    if kind(value[-1]) is Kind.UNIT:
        pairs = zip(front, value[:-2], strict=True)
        front = tuple(_beside_units(axis, own, value[-1]) for axis, own in pairs)
    return (*front, query[-2], value[-1])


def _distances(call: OperatorCall) -> Axes:
    one, other = (call.axes(tensor) for tensor in call.tensors[:2])
    if call.tracer.learned(call.tensors[1]):
        read(one[-1])
    return (*merged(one[:-2], other[:-2]), one[-2], other[-2])


# Namespaces of torch; their operations are elementwise or reductions unless a rule says otherwise.
_NAMESPACES = {
    "aten", "prim", "prims", "quantized", "mkldnn", "onednn", "torchvision", "_c10d_functional",
}  # fmt: skip

_RULES_BY_NAMES: dict[str, Rule] = {
    """native_batch_norm native_group_norm native_layer_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training _batch_norm_with_update cudnn_batch_norm
        miopen_batch_norm _batch_norm_no_update native_batch_norm_legit_functional
        _fused_rms_norm""": _norm,
    """slice_scatter select_scatter scatter scatter_add scatter_reduce masked_scatter
        index_add index_copy index_put _index_put_impl index_fill
        _transformer_encoder_layer_fwd""": _like_first,
    "_native_multi_head_attention": lambda call: (*call.input[:-1], _units(call)),
    "copy": lambda call: merged(new_axes(Kind.CONSTANT, call.shape), call.axes(call.given["src"])),
    "view _unsafe_view reshape _reshape_alias _view_copy view_copy _reshape_copy": _view,
    "permute permute_copy": lambda call: tuple(call.input[dim] for dim in call.given["dims"]),
    "transpose t numpy_T transpose_copy": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand expand_copy": lambda call: merged(new_axes(Kind.CONSTANT, call.shape), call.input),
    "slice slice_copy": _slice,
    "select": _select,
    "unbind": lambda call: [_select(call)] * len(call.outputs),
    """split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk
        tensor_split""": _split,
    "unfold": _unfold,
    "constant_pad_nd": _pad,
    "randperm": lambda call: new_axes(Kind.PLACE, call.shape),
    "as_strided": lambda call: (
        call.input if call.shape == _sizes(call.input) else new_axes(Kind.LOST, call.shape)
    ),
    "view_as_complex": lambda call: call.input[:-1],
    "view_as_real": lambda call: (*call.input, constant(2)),
    """diagonal _nested_view_from_buffer nonzero masked_select tril_indices triu_indices
        bincount unique_dim _unique2 _embedding_bag""": _unknown,
    "cat": _cat,
    "stack": _stack,
    "repeat": _repeat,
    """roll flip index_select sort topk argsort channel_shuffle kthvalue
        native_channel_shuffle""": _reorder,
    "gather": _gather,
    "_fft_r2c _fft_c2r _fft_c2c": _transform,
    "index _unsafe_index": _index,
    "im2col": _im2col,
    "col2im": _col2im,
    """grid_sampler_2d grid_sampler_3d cudnn_grid_sampler
        _grid_sampler_2d_cpu_fallback""": lambda call: (
        *call.input[:2],
        *new_axes(Kind.PLACE, call.shape[2:]),
    ),
    "roi_align roi_pool ps_roi_align ps_roi_pool": _regions,
    """convolution _convolution cudnn_convolution mkldnn_convolution deform_conv2d
        _conv_depthwise2d convolution_overrideable _slow_conv2d_forward conv_depthwise3d
        slow_conv3d_forward slow_conv_transpose2d miopen_convolution""": _convolution,
    "linear mkldnn_linear _mkldnn_linear": _linear,
    "embedding": lambda call: (*call.axes(call.given["indices"]), _units(call)),
    "mkldnn_rnn_layer _cudnn_rnn miopen_rnn quantized_lstm quantized_gru": lambda call: (
        *call.input[: len(call.shape) - 1],
        _units(call),
    ),
    "_thnn_fused_lstm_cell _thnn_fused_gru_cell": lambda call: [
        (call.input[0], new_axis(Kind.UNIT, one.shape[-1])) for one in call.outputs
    ],
    "mm addmm _addmm_activation mv addmv dot matmul": _product,
    "bmm baddbmm": _batched_product,
    """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps
        _scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention""": _attention,
    "cdist _cdist_forward _euclidean_dist": _distances,
}
_RULES = {name: rule for names, rule in _RULES_BY_NAMES.items() for name in names.split()}

FOLLOWED = _RULES.keys()
"""The operations with a rule of their own, which are not elementwise, except for copies."""

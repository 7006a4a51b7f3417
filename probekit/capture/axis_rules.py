"""How operations transform axes: one rule per kind of torch operation.

Rules apply to the small set of operations below autograd: `F.linear`, `nn.Linear` and `@` become
matrix products; `flatten` and einops become views and permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    lost,
    merged,
    newest,
    read,
    regrouped,
    resized,
    size_of,
)

__all__ = ["Call", "Known", "follow"]


class Known(Protocol):
    """The information about tensors collected so far.

    Attributes:
        seen_tokens: Whether non-patch tokens were concatenated with others.
    """

    seen_tokens: bool

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of a tensor."""
        ...

    def depends(self, tensor: Tensor) -> bool | None:
        """Whether a tensor depends on the inputs; None if unknown."""
        ...

    def name(self, tensor: Tensor) -> str | None:
        """The name of the parameter that a tensor shares memory with."""
        ...

    def vote(self, axes: Axes, position: int) -> None:
        """Records that an operation treats an axis as the batch."""
        ...


class Call:
    """One call of an operation, with what was known about its tensors before it ran.

    Attributes:
        name: The name of the operation, without its overload.
        given: Its arguments by name.
        tensors: The tensors among them, in order.
        depends: Whether any of them depends on the inputs of the model.
        in_place: Whether it writes into its first argument.
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
        self.tensors = [tensor for value in self.given.values() for tensor in _flat(value)]
        self._axes = {id(tensor): tracer.axes(tensor) for tensor in self.tensors}
        self._depends = {id(tensor): tracer.depends(tensor) for tensor in self.tensors}
        self.in_place = self.name.endswith("_") and not self.name.endswith("__")
        flags = self._depends.values()
        self.depends = any(flags) or (None if None in flags else False)
        if self.name.endswith("_like") or self.name.startswith("aten::new_"):
            self.depends = False

    @property
    def operation(self) -> str:
        """The name without its namespace and in-place suffix."""
        name = self.name.partition("::")[2]
        return name.removesuffix("_") if self.in_place else name

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of an argument."""
        return self._axes[id(tensor)]

    def moves(self, tensor: Tensor) -> bool:
        """Whether an argument is known to depend on the inputs."""
        return bool(self._depends[id(tensor)])

    def first(self) -> Tensor:
        """The first tensor among the arguments."""
        return self.tensors[0]


Rule: TypeAlias = Callable[[Call, Sequence[Tensor]], "Axes | list[Axes]"]
_RULES: dict[str, Rule] = {}
# Namespaces of torch; their operations are elementwise unless a rule says otherwise.
_NAMESPACES = {
    "aten",
    "prim",
    "prims",
    "quantized",
    "mkldnn",
    "onednn",
    "torchvision",
    "_c10d_functional",
}


def follow(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    """The axes of the outputs of a call."""
    if call.name.startswith("aten::new_"):
        return [tuple(map(constant, one.shape)) for one in outputs]
    rule = _RULES.get(call.operation)
    if rule is None and call.name.partition("::")[0] not in _NAMESPACES:
        return [tuple(map(lost, one.shape)) for one in outputs]
    if rule is None and {"dim", "keepdim"} <= call.given.keys():
        rule = _reduction
    found = (rule or _pointwise)(call, outputs)
    if isinstance(found, list):
        return found
    rest = [tuple(map(lost, one.shape)) for one in outputs[1:]]
    return [found, *rest]


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return register


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [one for one in value if isinstance(one, Tensor)]
    return []


def _position(dim: int, ndim: int) -> int:
    return dim % max(ndim, 1)


def _pointwise(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    """Elementwise operations, and all others whose output has the size of the input."""
    return [_like_arguments(call, tuple(output.shape)) for output in outputs]


def _like_arguments(call: Call, shape: tuple[int, ...]) -> Axes:
    found: Axes = tuple(map(constant, shape))
    fits = False
    for tensor in call.tensors:
        axes = call.axes(tensor)
        own = tuple(map(size_of, axes))
        if len(own) <= len(shape) and all(
            a in (1, b) for a, b in zip(reversed(own), reversed(shape), strict=False)
        ):
            found = merged(found, axes)
            fits |= own == shape or call.depends is not True
    if call.in_place:
        return found if fits else call.axes(call.first())
    broadcast = broadcast_shapes(*(one.shape for one in call.tensors)) if fits else ()
    if fits or tuple(broadcast) == shape or not call.tensors:
        return found
    return _broadcast_or_resized(call, shape, found)


def _broadcast_or_resized(call: Call, shape: tuple[int, ...], found: Axes) -> Axes:
    try:
        if tuple(broadcast_shapes(*(one.shape for one in call.tensors))) == shape:
            return found
    except ValueError:
        pass
    axes = next((call.axes(one) for one in call.tensors if call.moves(one)), ())
    if len(axes) == len(shape):
        return _all_resized(axes, shape)
    return tuple(map(lost, shape))


def _all_resized(axes: Axes, shape: Sequence[int]) -> Axes:
    return tuple(resized(axis, size) for axis, size in zip(axes, shape, strict=True))


@_rule(
    "native_batch_norm", "native_group_norm", "native_layer_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_no_update", "native_batch_norm_legit_functional",
    "_fused_rms_norm",
)  # fmt: skip
def _norm(call: Call, outputs: Sequence[Tensor]) -> Axes:
    """A norm scales units; if none are known yet, they are on the axis that it scales."""
    axes = call.axes(call.first())
    per_sample = call.operation in ("native_layer_norm", "_fused_rms_norm")
    scaled = len(axes) - 1 if per_sample else 1
    scale = call.given.get("weight")
    if not per_sample:
        call.tracer.vote(axes, 0)
    if call.operation.startswith("_fused") or "normalized_shape" in call.given:
        shape = call.given.get("normalized_shape", ())
        if len(shape) != 1:
            return axes
    if scaled >= len(axes) or not isinstance(scale, Tensor):
        return axes
    units = [label.serial for axis in axes for label, _ in axis if label.kind is Kind.UNIT]
    if not units:
        read(axes[scaled])
    elif per_sample or len([one for one in units if one == max(units)]) == 1:
        return axes
    made = ((Label(Kind.UNIT), size_of(axes[scaled])),)
    return (*axes[:scaled], made, *axes[scaled + 1 :])


@_rule("_softmax", "_log_softmax", "native_dropout", "cumsum", "cumprod", "alias", "detach", "clone",
       "contiguous", "_to_copy", "slice_scatter", "select_scatter", "scatter", "scatter_add",
       "scatter_reduce", "masked_scatter", "index_add", "index_copy", "index_put", "index_fill",
       "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "lift", "lift_fresh",
       "_index_put_impl", "logcumsumexp", "fill", "zero")  # fmt: skip
def _as_first(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.first())
    written = call.name.startswith(("aten::index_", "aten::scatter", "aten::masked_scatter"))
    if written and call.depends and all(kind(axis) is Kind.CONSTANT for axis in axes):
        return tuple(map(lost, outputs[0].shape))
    return axes


@_rule("copy")
def _copy(call: Call, outputs: Sequence[Tensor]) -> Axes:
    target, source = call.given["self"], call.given["src"]
    return merged(tuple(map(constant, target.shape)), call.axes(source))


# Views


@_rule(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy", "view_copy", "_reshape_copy"
)
def _view(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.first())
    if call.overload == "dtype":
        return _all_resized(axes, outputs[0].shape)
    return regrouped(axes, outputs[0].shape)


@_rule("permute", "permute_copy")
def _permute(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.first())
    return tuple(axes[dim] for dim in call.given["dims"])


@_rule("transpose", "t", "numpy_T", "transpose_copy")
def _transpose(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = list(call.axes(call.first()))
    if len(axes) > 1:
        one, other = call.given.get("dim0", 0), call.given.get("dim1", 1)
        axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


@_rule("unsqueeze")
def _unsqueeze(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = list(call.axes(call.first()))
    axes.insert(_position(call.given["dim"], len(axes) + 1), constant(1))
    return tuple(axes)


@_rule("squeeze")
def _squeeze(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.first())
    dims = call.given.get("dim", range(len(axes)))
    chosen = {_position(dim, len(axes)) for dim in ([dims] if isinstance(dims, int) else dims)}
    return tuple(axis for i, axis in enumerate(axes) if i not in chosen or size_of(axis) != 1)


@_rule("expand", "expand_copy")
def _expand(call: Call, outputs: Sequence[Tensor]) -> Axes:
    return merged(tuple(map(constant, outputs[0].shape)), call.axes(call.first()))


@_rule("slice", "slice_copy")
def _slice(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = list(call.axes(call.first()))
    dim = _position(call.given.get("dim", 0), len(axes))
    bounds = slice(call.given.get("start"), call.given.get("end"))
    start, stop, _ = bounds.indices(size_of(axes[dim]))
    step = call.given.get("step", 1)
    axes[dim] = cropped(axes[dim], start, stop, step, outputs[0].shape[dim])
    return tuple(axes)


@_rule("narrow")
def _narrow(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = list(call.axes(call.first()))
    dim = _position(call.given["dim"], len(axes))
    start, length = int(call.given["start"]), int(call.given["length"])
    axes[dim] = cropped(axes[dim], start, start + length, 1, length)
    return tuple(axes)


@_rule("select")
def _select(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = list(call.axes(call.first()))
    del axes[_position(call.given["dim"], len(axes))]
    return tuple(axes)


@_rule("unbind")
def _unbind(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    return [_select(call, outputs)] * len(outputs)  # type: ignore[list-item]


@_rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk",
       "unsafe_chunk", "tensor_split")  # fmt: skip
def _split(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    axes = call.axes(call.first())
    dim = _position(call.given.get("dim", 0), len(axes))
    found, start = [], 0
    for output in outputs:
        size = output.shape[dim]
        part = cropped(axes[dim], start, start + size, 1, size)
        found.append((*axes[:dim], part, *axes[dim + 1 :]))
        start += size
    return found


@_rule("unfold")
def _unfold(call: Call, outputs: Sequence[Tensor]) -> Axes:
    shape = outputs[0].shape
    axes = _all_resized(call.axes(call.first()), shape[:-1])
    return (*axes, ((Label(Kind.PLACE), shape[-1]),))


@_rule("as_strided")
def _strided(call: Call, outputs: Sequence[Tensor]) -> Axes:
    same = tuple(outputs[0].shape) == tuple(map(size_of, axes := call.axes(call.first())))
    return axes if same else tuple(map(lost, outputs[0].shape))


@_rule("diagonal", "_nested_view_from_buffer", "nonzero", "masked_select", "tril_indices",
       "triu_indices", "bincount", "unique_dim", "_unique2", "_embedding_bag")  # fmt: skip
def _unknown(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    return [tuple(map(lost, one.shape)) for one in outputs]


# Concatenation, repetition and reordering


@_rule("cat")
def _cat(call: Call, outputs: Sequence[Tensor]) -> Axes:
    shape = outputs[0].shape
    tensors = [one for one in call.tensors if one.ndim == len(shape)]
    dim = _position(call.given.get("dim", 0), len(shape))
    names = [call.tracer.name(one) for one in tensors]
    parts = [call.axes(one) for one in tensors]
    rest = tuple(map(constant, shape))
    for axes in parts:
        rest = merged(rest, (*axes[:dim], constant(shape[dim]), *axes[dim + 1 :]))
    elsewhere = any(kind(axis) is Kind.UNIT for axis in rest)
    axis = joined([axes[dim] for axes in parts], names, elsewhere)
    listed = kind(axis) is Kind.CONSTANT and size_of(axis) == len(tensors) and call.depends
    if listed and (len(tensors) > 1 or dim == 0):
        axis = ((Label(Kind.INPUT), size_of(axis)),)
    call.tracer.seen_tokens |= newest(axis).tokens
    return (*rest[:dim], axis, *rest[dim + 1 :])


@_rule("stack")
def _stack(call: Call, outputs: Sequence[Tensor]) -> Axes:
    rest = tuple(map(constant, call.first().shape))
    for one in call.tensors:
        rest = merged(rest, call.axes(one))
    dim = _position(call.given.get("dim", 0), len(rest) + 1)
    return (*rest[:dim], ((Label(Kind.INPUT), len(call.tensors)),), *rest[dim:])


@_rule("repeat")
def _repeat(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes, times = call.axes(call.first()), list(call.given["repeats"])
    axes = (constant(1),) * (len(times) - len(axes)) + axes
    return tuple(
        axis if by == 1 else ((Label(Kind.PLACE), by), *axis) if size_of(axis) > 1 else constant(by)
        for axis, by in zip(axes, times, strict=True)
    )


def _reordered(axis: Axis, size: int) -> Axis:
    """An axis in another order; reordered samples no longer count as samples."""
    if kind(axis) is Kind.UNIT:
        return ((newest(axis), size),)
    return constant(size) if kind(axis) is Kind.CONSTANT else ((Label(Kind.PLACE), size),)


@_rule("roll", "flip", "index_select", "sort", "topk", "argsort", "channel_shuffle", "kthvalue",
       "native_channel_shuffle")  # fmt: skip
def _reorder(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    axes = list(call.axes(call.first()))
    dims = call.given.get("dims", call.given.get("dim", 1))
    for dim in (dims if isinstance(dims, (list, tuple)) else [dims]) or range(len(axes)):
        place = _position(dim, len(axes))
        axes[place] = _reordered(axes[place], outputs[0].shape[place])
    return [tuple(axes)] * len(outputs)


@_rule("gather")
def _gather(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = list(_all_resized(call.axes(call.first()), outputs[0].shape))
    dim = _position(call.given["dim"], len(axes))
    axes[dim] = _reordered(axes[dim], outputs[0].shape[dim])
    return merged(tuple(axes), tuple(map(constant, outputs[0].shape)))


@_rule("index", "_unsafe_index")
def _index(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes, indices = call.axes(call.given["self"]), call.given["indices"]
    places = [i for i, one in enumerate(indices) if one is not None]
    if any(indices[i].dtype in (torch.bool, torch.uint8) for i in places):
        if places != [0] or indices[0].ndim != 1:
            return tuple(map(lost, outputs[0].shape))
        return (_reordered(axes[0], outputs[0].shape[0]), *axes[1:])
    shape = broadcast_shapes(*(indices[i].shape for i in places))
    together = places == list(range(places[0], places[-1] + 1))
    start = places[0] if together else 0
    kept = [axis for i, axis in enumerate(axes) if i not in places]
    made: list[Axis] = [
        ((Label(Kind.PLACE), size),) if call.depends else constant(size) for size in shape
    ]
    if len(shape) == 1:
        source = axes[places[0]]
        if len(places) == 1:
            made = [_reordered(source, shape[0])]
        if _in_order(indices[places[0]], size_of(source)):
            made = [source]
    return (*kept[:start], *made, *kept[start:])


def _in_order(index: Tensor, size: int) -> bool:
    """Whether an index selects all elements in order, as `torch.arange(len(x))` does."""
    if index.ndim != 1 or len(index) != size or index.device.type == "meta":
        return False
    return bool((index == torch.arange(size, device=index.device)).all())


@_rule("embedding")
def _embedding(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.given["indices"])
    return (*axes, ((Label(Kind.UNIT), outputs[0].shape[-1]),))


# Reductions


def _reduction(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    axes = call.axes(call.first())
    dims = call.given["dim"]
    dims = range(len(axes)) if dims is None or dims == [] else dims
    gone = {_position(dim, len(axes)) for dim in ([dims] if isinstance(dims, int) else dims)}
    if call.given["keepdim"]:
        left = tuple(constant(1) if i in gone else axis for i, axis in enumerate(axes))
    else:
        left = tuple(axis for i, axis in enumerate(axes) if i not in gone)
    return [left] * len(outputs)


# Spatial resampling


@_rule("pixel_shuffle", "pixel_unshuffle", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
       "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "glu",
       "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
       "max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d",
       "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "_fft_r2c", "_fft_c2r",
       "_fft_c2c", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
       "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
       "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
       "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "max_unpool2d", "max_unpool3d")  # fmt: skip
def _resample(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    axes = call.axes(call.first())
    return [_all_resized(axes, one.shape) for one in outputs]


@_rule("im2col")
def _im2col(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes, shape = call.axes(call.first()), outputs[0].shape
    front = axes[: len(axes) - 3]
    return (*front, resized(axes[-3], shape[-2]), ((Label(Kind.PLACE), shape[-1]),))


@_rule("col2im")
def _col2im(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes, shape = call.axes(call.first()), outputs[0].shape
    space: list[Axis] = [((Label(Kind.PLACE), size),) for size in shape[-2:]]
    return (*axes[: len(axes) - 2], resized(axes[-2], shape[-3]), *space)


@_rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "_grid_sampler_2d_cpu_fallback")
def _grid(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.first())
    return (*axes[:2], *(((Label(Kind.PLACE), size),) for size in outputs[0].shape[2:]))


@_rule("view_as_complex")
def _complex(call: Call, outputs: Sequence[Tensor]) -> Axes:
    return call.axes(call.first())[:-1]


@_rule("view_as_real")
def _real(call: Call, outputs: Sequence[Tensor]) -> Axes:
    return (*call.axes(call.first()), constant(2))


# Operations with weights


@_rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "deform_conv2d",
       "_conv_depthwise2d", "convolution_overrideable", "_slow_conv2d_forward",
       "conv_depthwise3d", "slow_conv3d_forward", "slow_conv_transpose2d",
       "miopen_convolution")  # fmt: skip
def _convolution(call: Call, outputs: Sequence[Tensor]) -> Axes:
    weight = call.given["weight"]
    axes, shape = call.axes(call.first()), outputs[0].shape
    if len(axes) != len(shape):
        return tuple(map(lost, shape))
    call.tracer.vote(axes, 0)
    read(axes[1])
    rows = axes[0]
    if kind(rows) is Kind.LOST:
        rows = ((Label(Kind.INPUT), shape[0]),)
        call.tracer.vote((rows,), 0)
    units: Axis = ((Label(Kind.UNIT), shape[1]),)
    if call.moves(weight):
        units = resized(call.axes(weight)[0], shape[1])
    elif axes[1][0][0].kind is Kind.INPUT and len(axes[1]) > 1:
        units = lost(shape[1])
    places = tuple(
        axis if size_of(axis) == size and kind(axis) is Kind.PLACE else ((Label(Kind.PLACE), size),)
        for axis, size in zip(axes[2:], shape[2:], strict=True)
    )
    return (rows, units, *places)


@_rule("linear", "mkldnn_linear", "_mkldnn_linear")
def _linear(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes = call.axes(call.first())
    read(axes[-1])
    return (*axes[:-1], ((Label(Kind.UNIT), outputs[0].shape[-1]),))


@_rule("mm", "addmm", "_addmm_activation", "mv", "addmv", "dot", "matmul")
def _product(call: Call, outputs: Sequence[Tensor]) -> Axes:
    left, right = _factors(call)
    rows, columns = call.axes(left), call.axes(right)
    shape = outputs[0].shape
    first: list[Axis] = list(rows[:-1])
    last: list[Axis] = [columns[-1]] if len(columns) > 1 else []
    if call.moves(left) and not call.moves(right):
        read(rows[-1])
        last = [((Label(Kind.UNIT), shape[-1]),)] if last else []
    elif call.moves(right) and not call.moves(left):
        read(columns[0])
        first = [((Label(Kind.UNIT), shape[0]),)] if first else []
    elif last and first and kind(last[0]) is Kind.UNIT and kind(first[0]) is Kind.UNIT:
        first = [((Label(Kind.PLACE), shape[0]),)]
    return (*first, *last)


@_rule("bmm", "baddbmm")
def _batched_product(call: Call, outputs: Sequence[Tensor]) -> Axes:
    left, right = _factors(call)
    one, other, shape = call.axes(left), call.axes(right), outputs[0].shape
    (batch,) = merged(one[:1], other[:1])
    rows, columns = one[1], other[2]
    if call.moves(left) and not call.moves(right) and call.tracer.name(right):
        read(one[2])
        columns = ((Label(Kind.UNIT), shape[2]),)
    elif call.moves(right) and not call.moves(left) and call.tracer.name(left):
        read(other[1])
        rows = ((Label(Kind.UNIT), shape[1]),)
    elif kind(columns) is Kind.UNIT and kind(rows) is Kind.UNIT:
        rows = tuple((Label(Kind.PLACE), size) for _, size in rows)
    return (batch, rows, columns)


def _factors(call: Call) -> tuple[Tensor, Tensor]:
    names = list(call.given)
    for left, right in (("mat1", "mat2"), ("batch1", "batch2"), ("mat", "vec"), ("self", "mat2"),
                        ("self", "vec"), ("self", "tensor"), ("self", "other")):  # fmt: skip
        if left in names and right in names:
            return call.given[left], call.given[right]
    raise ValueError(call.name)


@_rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
       "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
       "_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps",
       "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention")  # fmt: skip
def _attention(call: Call, outputs: Sequence[Tensor]) -> Axes:
    query, key, value = (call.axes(call.given[name]) for name in ("query", "key", "value"))
    front = merged(merged(query[:-2], key[:-2]), value[:-2])
    return (*front, query[-2], value[-1])


@_rule("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")
def _recurrent(call: Call, outputs: Sequence[Tensor]) -> Axes:
    axes, shape = call.axes(call.first()), outputs[0].shape
    return (*axes[: len(shape) - 1], ((Label(Kind.UNIT), shape[-1]),))


@_rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def _cell(call: Call, outputs: Sequence[Tensor]) -> list[Axes]:
    rows = call.axes(call.first())[0]
    return [(rows, ((Label(Kind.UNIT), one.shape[-1]),)) for one in outputs]


@_rule("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
def _regions(call: Call, outputs: Sequence[Tensor]) -> Axes:
    """Rows are boxes; those of a sample if the boxes list the samples in order, each as often."""
    axes, shape = call.axes(call.first()), outputs[0].shape
    places: list[Axis] = [((Label(Kind.PLACE), size),) for size in (shape[0], *shape[2:])]
    count = size_of(axes[0])
    samples = call.given["rois"][:, 0]
    each = shape[0] // count
    if samples.device.type != "meta" and torch.equal(
        samples, torch.arange(count).to(samples).repeat_interleave(each)
    ):
        places[0] = axes[0] if each == 1 else (*axes[0], (Label(Kind.PLACE), each))
    return (places[0], resized(axes[1], shape[1]), *places[1:])


@_rule("cdist", "_cdist_forward", "_euclidean_dist")
def _distances(call: Call, outputs: Sequence[Tensor]) -> Axes:
    one, other = (call.axes(tensor) for tensor in call.tensors[:2])
    return (*merged(one[:-2], other[:-2]), one[-2], other[-2])

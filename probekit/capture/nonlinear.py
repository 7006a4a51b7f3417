"""Finds nonlinear computations between weights that no recorded activation function explains.

A tensor of a model is linear in the output of the last weights or activation function before it until an
elementwise operation bends it. If weights then read it, an activation function may have been written out
in arithmetic, such as `x * x`, `1 / (1 + exp(-x))` or the product of two halves. A statistic of a tensor,
such as the mean square in a norm, only scales that tensor, except in a gate, such as the sigmoid of a
pooled map.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy import broadcast_shapes
from torch import Tensor

from probekit.capture.axes import Kind, kind
from probekit.capture.axis_rules import FOLLOWED, OperatorCall

_LINEAR = {
    "add", "sub", "rsub", "neg", "mul", "div", "addcmul", "addcdiv", "lerp", "where", "masked_fill",
    "clone", "_to_copy", "copy", "native_dropout", "nan_to_num", "fill", "zero", "complex", "_conj",
}  # fmt: skip
_FACTORS = {
    "mul": ("self", "other"), "div": ("self", "other"), "lerp": ("end", "weight"),
    "addcmul": ("tensor1", "tensor2"), "addcdiv": ("tensor1", "tensor2"),
}  # fmt: skip
_MOVES = {
    "cat", "stack", "repeat", "roll", "flip", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
    "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im",
    "native_channel_shuffle", "index_put", "_index_put_impl", "masked_scatter", "as_strided", "scatter",
}  # fmt: skip
_MASKS_MISSING = {"eq", "ne", "isnan", "isinf"}
_MIXES = ("norm", "pool", "pad", "upsample", "sample", "quant", "_fq_", "linalg", "shuffle")
_CHOOSES = {"index", "_unsafe_index", "index_select", "gather"}
_MAXIMA = {"max", "amax", "min", "amin", "logsumexp"}
_POOLS = {"mean", "sum", *_MAXIMA}
_ORDERS = {"sort", "topk", "cummax", "cummin"}
_CONTROL = {"cond", "while_loop", "scan", "associative_scan", "map_impl"}
_FUSED = re.compile(r"_(relu|tanh)(_dynamic)?$")  # such as quantized::conv2d_relu
_GATES = {"exp", "expm1", "erf", "atan", "sin", "cos"}


@dataclass(frozen=True)
class _State:
    """What is known about the elements of a tensor.

    Attributes:
        root: Identifies the tensor of which the elements are an affine function.
        bent: The module and the operation that made it a nonlinear function; None if it is linear. The
            operation of a mask is empty until it is applied.
        level: How many times it is a statistic: 1 for a pooled map, 2 for the norm of one.
        gate: Whether it was bent in such a way that what it scales is bent too.
        active: Whether an activation function or a softmax made it, or a part of it.
        source: The root of the tensor to which the first of these activation functions was applied.
    """

    root: Any = field(default_factory=object)
    bent: tuple[str, str] | None = None
    level: int = 0
    gate: bool = False
    active: bool = False
    source: Any = None


class Nonlinearities:
    """Follows all operations of a forward pass.

    `caller` returns the name of the running module, None for modules of torch, such as `nn.GRU`; `report` is
    called with it and an operation for each nonlinear computation that weights read.
    """

    def __init__(
        self, caller: Callable[[], str | None], report: Callable[[str, str], None]
    ) -> None:
        self._caller = caller
        self._report = report
        self._states: dict[int, _State] = {}  # by storage, which the tracer keeps from being reused

    def settle(self, tensor: Tensor) -> None:
        """Records that a tensor is the output of a known activation function."""
        before = self._states.get(_storage(tensor), _State())
        self._states[_storage(tensor)] = _State(active=True, source=before.source or before.root)

    def leave_torch(self, tensor: Tensor) -> None:
        """Records that NumPy reads a tensor, whose operations are not followed."""
        state, caller = self._states.get(_storage(tensor)), self._caller()
        if state is not None and state.level == 0 and caller is not None:
            self._report(caller, "with NumPy")

    def read(self, tensor: Tensor) -> None:
        """Records that weights, or the caller of the model, read a tensor."""
        state = self._states.get(_storage(tensor))
        if state is not None and state.bent is not None:
            self._report(*state.bent)

    def run(self, operator: str) -> None:
        """Updates with an operator that runs operations of its own, which are not followed."""
        caller = self._caller()
        if operator in _CONTROL and caller is not None:
            self._report(caller, operator)

    def follow(self, call: OperatorCall, outputs: Sequence[Tensor]) -> None:
        """Updates with one operation that has run."""
        given = {_storage(one) for one in call.tensors}
        views = not call.in_place and any(_storage(one) in given for one in outputs)
        nested = any(one.is_nested for one in (*call.tensors, *outputs))
        if call.depends is False or views or nested:
            return
        known = [one for one in call.tensors if _storage(one) in self._states]
        operation, caller = call.operation, self._caller()
        if _FUSED.search(operation) and operation != "leaky_relu" and caller is not None:
            self._report(caller, operation)
        state: _State | None
        if operation in _MASKS_MISSING:
            state = None
        elif operation in _MOVES:
            state = self._combined(known)
        elif operation in _CHOOSES:
            state = self._chosen(call, known, outputs[0])
        elif _elementwise(call, outputs):
            state = self._bent(call, known)
        elif any(map(call.tracer.learned, call.tensors)):
            for tensor in known:
                self.read(tensor)
            state = _State()
        else:
            state = self._reduced(call, known, outputs)
        for tensor in outputs:
            if state is not None and state.bent is not None and not state.bent[1]:
                state = self._named(state, operation, tensor)
            if state is None:
                self._states.pop(_storage(tensor), None)
            else:
                self._states[_storage(tensor)] = state

    def _state(self, tensor: Tensor) -> _State:
        """The state of a tensor, whose root depends on its place in memory."""
        state = self._states[_storage(tensor)]
        offset = int(tensor.storage_offset())
        return replace(state, root=(state.root, offset)) if offset else state

    def _combined(self, known: Sequence[Tensor]) -> _State | None:
        """The state of a linear combination of tensors, of which statistics of others are only factors."""
        states = [self._state(one) for one in known]
        if not states:
            return None
        level = min(one.level for one in states)
        whole = [one for one in states if one.level == level]
        bents = [one.bent for one in states if one.bent and (one.level == level or one.gate)]
        same = all(one.root == whole[0].root for one in whole)
        return _State(
            whole[0].root if same else object(),
            next(iter(bents), None),
            level,
            gate=any(one.gate for one in states),
            active=any(one.active for one in states),
            source=whole[0].source if same else None,
        )

    def _chosen(self, call: OperatorCall, known: Sequence[Tensor], result: Tensor) -> _State | None:
        """The state of chosen elements: those of a tensor, or of a table with a value for each index."""
        table, *indices = call.tensors
        if not any(one is table for one in known):
            looked_up = [one for one in known if any(one is index for index in indices)]
            caller = self._caller()
            if caller is None or not any(one.shape == result.shape for one in looked_up):
                return None
            return _State(bent=(caller, ""))
        return self._combined([table])

    def _bent(self, call: OperatorCall, known: Sequence[Tensor]) -> _State | None:
        """The state of the result of an elementwise operation."""
        state = self._combined(known)
        operation = call.operation
        limits = operation == "clamp" and None not in (call.given.get("min"), call.given.get("max"))
        gate = operation in _GATES or limits
        if state is None or (state.bent is not None and not gate):
            return state
        factors = [call.given[name] for name in _FACTORS.get(operation, ())]
        pair = [self._state(one) for one in factors if any(one is other for other in known)]
        product = ""
        if len(pair) == 2:
            product = _product(pair[0], pair[1], factors[0].shape == factors[1].shape)
        caller = self._caller()
        if caller is None or (operation in _LINEAR and not product):
            return state
        return replace(state, bent=(caller, product), gate=gate)

    @staticmethod
    def _named(state: _State, operation: str, result: Tensor) -> _State:
        """Names a nonlinear function after an operation; for a mask, it is the one that applies it."""
        assert state.bent is not None
        number = result.is_floating_point() or result.is_complex()
        if not number or operation in ("clone", "_to_copy"):
            return state
        return replace(state, bent=(state.bent[0], operation.strip("_").removesuffix("_impl")))

    def _reduced(
        self, call: OperatorCall, known: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> _State | None:
        """The state after an operation that mixes elements, such as a pool, a norm or a softmax."""
        state = self._combined(known)
        if state is None:
            return None
        operation = call.operation
        pools = "pool" in operation or "upsample" in operation
        reduces = {"dim", "keepdim"} <= call.given.keys()
        caller = self._caller()
        if reduces and operation in _POOLS:
            dims = call.given["dim"]
            dims = [dims] if isinstance(dims, int) else dims or range(len(call.input))
            gone = [call.input[dim] for dim in dims]
            pools = all(kind(axis) is Kind.PLACE for axis in gone)
            if caller is not None and operation in _MAXIMA and self._maxout(call, dims):
                return _State(bent=state.bent or (caller, operation))
        orders = operation in _ORDERS and kind(call.input[call.given["dim"]]) is Kind.UNIT
        if orders and caller is not None:
            return _State(bent=state.bent or (caller, operation))
        if "norm" in operation and not reduces and outputs[0].shape == known[0].shape:
            return state
        bent = state.bent if pools else None
        if "fake_quant" in operation and caller is not None:
            cuts_negative = bool((known[0] < 0).any()) and not bool((outputs[0] < 0).any())
            bent = bent or ((caller, operation) if cuts_negative else None)
        smaller = outputs[0].numel() < known[0].numel()
        level = state.level + 1 if pools or reduces or smaller else 0
        return _State(bent=bent, level=level, active="softmax" in operation)

    @staticmethod
    def _maxout(call: OperatorCall, dims: Sequence[int]) -> bool:
        """Whether a maximum is taken over alternatives of each unit, not over positions or all units."""
        inputs = {label.root for axes in call.tracer.inputs for axis in axes for label, _ in axis}
        gone = {dim % len(call.input) for dim in dims}
        left = [axis for dim, axis in enumerate(call.input) if dim not in gone]
        return any(kind(axis) is Kind.UNIT for axis in left) and all(
            kind(call.input[dim]) in (Kind.UNIT, Kind.INPUT)
            and not any(label.root in inputs for label, _ in call.input[dim])
            for dim in gone
        )


def _product(one: _State, other: _State, same_shape: bool) -> str:
    """The name of a product that is not linear in what both factors come from; empty if it is."""
    if one.root == other.root:
        return "square"
    # With an activation function of itself, as in x * sigmoid(x).
    if {one.root, one.source} & {other.root, other.source} - {None}:
        return "product"
    plain = not any(factor.level or factor.active for factor in (one, other))
    return "product" if same_shape and plain else ""


def _elementwise(call: OperatorCall, outputs: Sequence[Tensor]) -> bool:
    """Whether each element of the output is a function of the elements at its place."""
    name = call.operation
    if name in _LINEAR:
        return True
    if name in FOLLOWED or "dim" in call.given or any(word in name for word in _MIXES):
        return False
    try:
        shape = tuple(broadcast_shapes(*(one.shape for one in call.tensors)))
    except ValueError:
        return False
    return shape == tuple(outputs[0].shape)


def _storage(tensor: Tensor) -> int:
    """The identity of the memory of a tensor; 0 if it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0

"""Follows the axes of tensors through all operations of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from probekit.capture import axis_rules
from probekit.capture.axes import (
    Axes,
    Kind,
    Label,
    constant,
    joined,
    kind,
    new_axes,
    new_axis,
    newest,
    resized,
    size_of,
)
from probekit.capture.nonlinear import Nonlinearities
from probekit.models.nested import all_tensors

Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Tracks the origin of the axes of every tensor while it is active.

    A tensor is identified by its memory and layout, since the Python object of a view may be
    recreated before it reaches the model. The tracer keeps no tensors alive. Parameters, buffers and
    other tensors of the module are constants.

    Attributes:
        votes: For each axis that convolutions or batch norms treated as the batch, how many of them did,
            and its size.
        seen_tokens: Whether non-patch tokens were concatenated with others.
        reads_values: Whether the model read values of tensors that depend on the inputs.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be wrapped by torch, whose wrapper would import its compiler, which takes seconds."""
        return False

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._axes: dict[Key, Axes] = {}
        self._depends: dict[int, bool | None] = {}
        self._own_constants: dict[int, frozenset[object]] = {}
        self._alive: list[StorageWeakRef] = []
        self._by_storage: dict[int, list[Key]] = {}
        self._parameters: dict[int, str] = {}
        self._learned = {key[0] for one in module.parameters() if (key := _key(one)) is not None}
        self.votes: dict[Label, tuple[int, int]] = {}
        self.seen_tokens = False
        self.reads_values = False
        self.running = False
        self.nonlinearities: Nonlinearities | None = None
        self.active = False
        for name, tensor in _constants(module):
            if (key := _key(tensor)) is not None:
                self._parameters.setdefault(key[0], name)
                self._hold(tensor, False)
        self.inputs: list[Axes] = []
        for tensor in inputs:
            axes = tuple(((Label(Kind.INPUT), size),) for size in _shape(tensor))
            if len(axes) > 3:
                axes[1][0][0].read = True
            self.inputs.append(axes)
            self._note(tensor, axes, True)

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; an unknown tensor is a constant."""
        key = _key(tensor)
        known = None if key is None else self._axes.get(key)
        if known is not None:
            return known
        lost = key is None or self._depends.get(key[0])
        return new_axes(Kind.LOST if lost else Kind.CONSTANT, _shape(tensor))

    def depends(self, tensor: Tensor) -> bool | None:
        """Whether a tensor depends on the inputs; None if unknown, but an unknown scalar is a number.

        An unknown parameter is one of a module that is no submodule, as in a plain list of layers.
        """
        key = _key(tensor)
        if key is None:
            return None
        if key[0] not in self._depends and isinstance(tensor, nn.Parameter):
            self._parameters[key[0]] = f"{len(self._parameters)}"
            self._learned.add(key[0])
            self._hold(tensor, False)
        return self._depends.get(key[0], None if tensor.ndim else False)

    def name(self, tensor: Tensor) -> str | None:
        key = _key(tensor)
        return None if key is None else self._parameters.get(key[0])

    def learned(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or computed from parameters only."""
        key = _key(tensor)
        return key is not None and key[0] in self._learned

    def own_constants(self, tensor: Tensor) -> frozenset[object]:
        """The constants that were factors or summands of a tensor since weights made its units."""
        key = _key(tensor)
        return frozenset() if key is None else self._own_constants.get(key[0], frozenset())

    def vote(self, axes: Axes) -> None:
        if axes:
            label, size = axes[0][0]
            if label.kind in (Kind.INPUT, Kind.PLACE):
                votes, _ = self.votes.get(label.root, (0, 0))
                self.votes[label.root] = votes + 1, size

    def start(self) -> None:
        if not self.active:
            self.active = True
            if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):  # torch 2.6
                for operator in torch._ops._higher_order_ops.values():
                    operator.python_key_table[Tracer] = partial(_run_higher_order, operator)
            self.__enter__()  # type: ignore[no-untyped-call]  # untyped in torch

    def stop(self) -> None:
        """Stops following operations; safe to call twice."""
        if self.active:
            self.active = False
            # Tracers of two recorders may end out of order, after which torch 2.6 crashes, or compiles
            # nothing any more, since each mode restores the global flags that it found at its start.
            inner = []
            while (mode := _get_current_dispatch_mode()) not in (self, None):
                TorchDispatchMode.__exit__(mode, None, None, None)  # type: ignore[no-untyped-call]
                inner.append(mode)
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # untyped in torch
            for mode in reversed(inner):
                TorchDispatchMode.__enter__(mode)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            if self.nonlinearities is not None:
                self.nonlinearities.run(func.name())
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and _composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        call = axis_rules.OperatorCall(self, func, args, kwargs)
        self.running = True
        try:
            output = func(*args, **kwargs)
        finally:
            self.running = False
        self._follow(call, output)
        return output

    def _follow(self, call: axis_rules.OperatorCall, output: object) -> None:
        tensors = all_tensors(output)
        if not tensors:
            self.reads_values |= call.depends is True
            return
        depends = call.depends
        try:
            found = axis_rules.follow(call, tensors)
        except (IndexError, KeyError, TypeError, ValueError, RuntimeError):
            found = [new_axes(Kind.LOST, _shape(one)) for one in tensors]
        if depends is False and call.tensors and all(map(self.learned, call.tensors)):
            self._learned |= {key[0] for one in tensors if (key := _key(one)) is not None}
        constants = self._constants_after(call)
        for tensor, axes in zip(tensors, found, strict=True):
            if len(axes) != len(_shape(tensor)):
                axes = new_axes(Kind.LOST, _shape(tensor))
            self._note(tensor, axes, depends, constants)
        if self.nonlinearities is not None:
            self.nonlinearities.follow(call, tensors)
        if call.in_place:
            self._spread(tensors[0], found[0])

    def _constants_after(self, call: axis_rules.OperatorCall) -> frozenset[object]:
        before = frozenset[object]().union(*map(self.own_constants, call.tensors))
        if call.is_elementwise:
            own = {_key(one) for one in call.tensors if self.learned(one) or self.name(one)}
            return before | own
        return frozenset() if any(map(self.learned, call.tensors)) else before

    def _note(
        self,
        tensor: Tensor,
        axes: Axes,
        depends: bool | None,
        constants: frozenset[object] = frozenset(),
    ) -> None:
        key = _key(tensor)
        if key is None:
            return
        if depends:
            self._own_constants[key[0]] = constants
        if key not in self._axes:
            self._by_storage.setdefault(key[0], []).append(key)
        self._axes[key] = axes
        self._hold(tensor, self._depends.get(key[0]) or depends)

    def _hold(self, tensor: Tensor, depends: bool | None) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._depends:
            self._alive.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]  # untyped in torch
        self._depends[storage._cdata] = depends

    def _spread(self, view: Tensor, axes: Axes) -> None:
        """Applies the axes written into part of a constant, such as a buffer of zeros, to the whole."""
        mine = _key(view)
        if mine is None or all(kind(axis) is Kind.CONSTANT for axis in axes):
            return
        for key in self._by_storage.get(mine[0], ()):
            whole = self._axes[key]
            if key == mine or any(kind(axis) is not Kind.CONSTANT for axis in whole):
                continue
            in_list_of_images = len(whole) == 1 + len(axes) > 3 and key[3][1:] == mine[3]
            if len(whole) == len(axes) and key[3] == mine[3]:
                self._axes[key] = self._around(axes, key, mine[1] - key[1])
            elif in_list_of_images:
                rest = (resized(axis, size) for axis, size in zip(axes, key[2][1:], strict=True))
                self._axes[key] = (new_axis(Kind.INPUT, key[2][0]), *rest)
            else:
                self._axes[key] = new_axes(Kind.LOST, key[2])

    def _around(self, axes: Axes, whole: Key, offset: int) -> Axes:
        """The axes of a tensor of constants into which a tensor with these axes was written.

        Elements of a sequence around the written ones are not patches.
        """
        ordered = list(whole[3]) == sorted(whole[3], reverse=True)
        sequence = ordered and len(axes) == 3 and kind(axes[1]) is Kind.PLACE
        found = []
        for axis, size, stride in zip(axes, whole[2], whole[3], strict=True):
            before = offset // stride if stride else 0
            offset -= before * stride
            after = size - before - size_of(axis)
            if sequence and axis is axes[1] and before + after:
                parts = [constant(before), axis, constant(after)]
                found.append(joined([part for part in parts if size_of(part)], [None] * 3, True))
                self.seen_tokens |= newest(found[-1]).tokens
            else:
                found.append(resized(axis, size))
        return tuple(found)


def _run_higher_order(operator: Any, tracer: Tracer, *args: Any, **kwargs: Any) -> Any:
    return tracer.__torch_dispatch__(operator, (), args, kwargs)


def _key(tensor: Tensor) -> Key | None:
    try:
        storage = tensor.untyped_storage()._cdata
        if tensor.is_nested:
            return storage, 0, (-1,), ()
        offset = int(tensor.storage_offset())
        return storage, offset, tuple(tensor.shape), tensor.stride()
    except (RuntimeError, NotImplementedError):
        return None


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if tensor.is_nested else tuple(tensor.shape)


def _composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _constants(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, child in module.named_modules():
        for name, value in (
            *child._parameters.items(),
            *child._buffers.items(),
            *vars(child).items(),
        ):
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    yield f"{prefix}.{name}", tensor

"""The layer: one call of one module in a forward pass, with its name and its units."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from probekit.errors import LayerError, ModelError
from probekit.models.image_model import Model
from probekit.models.inputs import taking_images
from probekit.results.labels import strings


@dataclass(frozen=True)
class FirstPass:
    """What the forward pass that found the layers ran, to notice other calls in later passes.

    Attributes:
        idle: The names of modules that did not run and may be or contain selected layers.
        functions: The activation functions that ran, each as the name of the calling module and of
            the function; None if later passes are not compared.
        may_branch: Whether other functions may run later: the model read values of tensors, or the code
            of a module names an activation function that did not run.
    """

    idle: tuple[str, ...] = ()
    functions: frozenset[tuple[str, str]] | None = None
    may_branch: bool = False


@dataclass(frozen=True)
class Layer:
    """One activation site: one call of one module, or of a function in it, in a forward pass.

    Attributes:
        name: The dotted name under which the module was called, or the name of the calling module and
            that of the function; with `_1`, `_2`, ... for the second, third, ... call.
        module: The dotted name of the module; the first one if it has several.
        call: Index of the call of the module, or of the function in it, in a forward pass, from 0.
        type: The class name of the module, or the name of the function.
        shape: The shape of the output without its batch axis.
        unit_axis: The axis of the units in the output, batch axis included.
        units: Number of units.
        windows: Number of windows of each sample folded into the batch axis (1: none).
        outer: Number of windows before the samples there, as in (views, samples); 1 if each sample's
            windows are contiguous.
        prefix: Number of leading positions that are class, distillation or register tokens.
        itemsize: Bytes per element of the output.
        calls: Number of calls of the module, or of the function in it, per forward pass.
        function: The name of an activation function that the module calls, such as `relu` for
            `F.relu(x)`; empty if the layer is the module itself.
        batch_axis: The axis of the samples in the output.
        suffix: Number of trailing positions that are class, distillation or register tokens.
        class_token: The position of the class token, if there is one.
        evidence: The evidence for the unit axis: the module's own `weights`, `weights before` or
            `weights after` it, the `only axis`, another `image size`; or `assumed`.
        certain: Whether the batch axis and the unit axis are certain.
        samples_from: Where to read the number of samples: the input tensor and its axis. (-1, 0) is
            the number of input tensors; None infers the number from the layers.
        split: Further unit axes if a reshape split the units, for example into heads and features.
        first_pass: What the forward pass that found the layer ran.
        after: The last module with weights that ran before, in that pass.
    """

    name: str
    module: str
    call: int
    type: str
    shape: tuple[int, ...]
    unit_axis: int
    units: int
    windows: int = 1
    prefix: int = 0
    itemsize: int = 4
    calls: int = 1
    function: str = ""
    batch_axis: int = 0
    suffix: int = 0
    class_token: int | None = None
    evidence: str = ""
    certain: bool = True
    samples_from: tuple[int, int] | None = (0, 0)
    split: tuple[int, ...] = ()
    outer: int = 1
    first_pass: FirstPass = field(default=FirstPass(), compare=False, repr=False)
    after: str = field(default="", compare=False, repr=False)

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the positions that share a unit: space, tokens or windows."""
        axes = self._unit_axes
        rest = [size for axis, size in enumerate(self.shape, start=1) if axis not in axes]
        return (self.windows, *rest) if self.windows > 1 else tuple(rest)

    @property
    def _unit_axes(self) -> list[int]:
        """The unit axes of an output with samples on axis 0."""
        return [axis + (axis < self.batch_axis) for axis in (self.unit_axis, *self.split)]

    def chosen(self, tokens: str) -> slice:
        """The positions of a sequence to read: `"all"`, the `"patch"` tokens or the `"class"` token."""
        if tokens == "class" and self.class_token is not None:
            return slice(self.class_token, self.class_token + 1)
        if tokens == "patch" and (self.prefix or self.suffix):
            return slice(self.prefix, self.positions[0] - self.suffix)
        return slice(None)

    def with_samples(self, output: Tensor) -> Tensor:
        """An output of this layer with its batch axis, which `squeeze()` removes from a batch of one."""
        squeezed = self.windows == 1 and output.shape == self.shape
        return output.unsqueeze(self.batch_axis) if squeezed else output

    def arrange(self, output: Tensor) -> Tensor:
        """Views an output of this layer as (batch, units, *positions)."""
        output = self.with_samples(output)
        if self.batch_axis:
            output = output.movedim(self.batch_axis, 0)
        axes = self._unit_axes
        if output.ndim == 1:
            output, axes = output[:, None], [1]
        if self.windows > 1:
            inner = self.windows // self.outer
            samples = len(output) // self.windows
            rows = output.reshape(self.outer, samples, inner, *output.shape[1:])
            output = rows.movedim(1, 0).flatten(1, 2)
            axes = [axis + 1 for axis in axes]
        if axes == [1]:
            return output
        maps = output.movedim(axes, list(range(1, len(axes) + 1)))
        return maps.flatten(1, len(axes)) if self.split else maps

    def restore(self, maps: Tensor, output: Tensor) -> Tensor:
        """Views (batch, units, *positions) as an output of this layer, the inverse of `arrange`."""
        first = self.with_samples(output).movedim(self.batch_axis, 0).shape
        axes = self._unit_axes if len(first) > 1 else [1]
        if self.split:
            maps = maps.reshape(len(maps), *(first[axis] for axis in axes), *maps.shape[2:])
        if self.windows > 1:
            axes = [axis + 1 for axis in axes]
        whole = maps.movedim(list(range(1, len(axes) + 1)), axes)
        if self.windows > 1:
            inner = self.windows // self.outer
            whole = whole.reshape(len(whole), self.outer, inner, *whole.shape[2:]).movedim(1, 0)
        return whole.reshape(first).movedim(0, self.batch_axis).reshape(output.shape)


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile` and `DistributedDataParallel`."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            break
    for name, child in module.named_modules():
        whole = f"the model's part {name!r} is" if name else "the model is"
        if isinstance(child, nn.DataParallel):
            raise ModelError(
                f"{whole} wrapped in nn.DataParallel, whose replicas each process a part of the batch "
                "in a separate thread; pass the model without it (its attribute module), or use "
                "DistributedDataParallel"
            )
        if isinstance(child, ScriptModule):
            raise ModelError(
                f"{whole} TorchScript, which runs its layers outside Python, where they cannot be "
                "recorded; pass the model that it was created from"
            )
    return module


def runnable(model: Model) -> Callable[..., Any]:
    """What to call to run a model as written: its own module, or an `ImageModel` with its normalization."""
    return taking_images(unwrap(model)) if isinstance(model, nn.Module) else model


_EAGER: ContextVar[bool] = ContextVar("eager", default=False)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled models and compiled submodules eagerly.

    Compiled code ignores hooks that are set after `torch.compile`. flex_attention compiles itself, and would
    compile the code that follows the first pass with it. Such contexts may end in any order.
    """
    compilers = {"torch._dynamo", "torch.nn.attention.flex_attention"}
    if _EAGER.get() or not sys.modules.keys() & compilers:
        yield
        return
    _EAGER.set(True)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _EAGER.set(False)


_NOT_RECORDED = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)
_ACTIVATION_FUNCTIONS = tuple(
    kind
    for name in nn.modules.activation.__all__
    if not issubclass(kind := getattr(nn, name), _NOT_RECORDED)
)
_ACTIVATION_MODULES = ("timm.layers.activations", "transformers.activations")


def is_activation_function(module: nn.Module) -> bool:
    """Whether a module is an activation function of torch, timm or transformers.

    Softmax and its variants do not count: they normalize over units or positions. timm's EvoNorm
    layers, which normalize and activate in one expression, do.
    """
    where = type(module).__module__
    if where == "timm.layers.evo_norm":
        return bool(getattr(module, "apply_act", False)) and not hasattr(module, "act")
    return isinstance(module, _ACTIVATION_FUNCTIONS) or where.startswith(_ACTIVATION_MODULES)


def site_names(module: str, taken: Iterable[str]) -> Iterator[str]:
    """The names of the first, second, third, ... call of a module.

    They follow torchvision's fx convention and skip names that a module already has.
    """
    taken = set(taken)
    yield module
    yield from (name for call in count(1) if (name := f"{module}_{call}") not in taken)


def check_reached(layers: Iterable[Layer], found: Container[str]) -> None:
    """Raises `LayerError` unless all layers are among those that a forward pass has reached."""
    for layer in layers:
        if layer.name not in found:
            raise LayerError(
                f"layer {layer.name!r} was reached in the first batch but not now; exclude it"
            )


def unit_coordinates(layers: Sequence[Layer]) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """The coordinates `layer` and `channel` of all units of some layers, in order."""
    names = [layer.name for layer in layers for _ in range(layer.units)]
    channels = [np.arange(layer.units) for layer in layers]
    return {
        "layer": ("unit", strings(names)),
        "channel": ("unit", np.concatenate(channels) if channels else np.empty(0, np.int64)),
    }

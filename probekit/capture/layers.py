"""Layers and their units: what can be chosen, how it is chosen, and the axis on which the units lie."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from probekit.errors import LayerError, ModelError, close_matches

__all__ = [
    "Layer",
    "LayerChoice",
    "Selection",
    "axis_of_type",
    "is_activation_function",
    "prefix_tokens",
    "site_names",
    "tensor_of",
    "unwrap",
]

LayerChoice: TypeAlias = "str | type[nn.Module] | Callable[[str, nn.Module], bool]"


@dataclass(frozen=True)
class Layer:
    """One activation site: one call of one module in a forward pass.

    Attributes:
        name: The dotted module name; with `_1`, `_2`, ... for the second, third, ... call.
        module: The dotted name of the module.
        call: Which call of the module in a forward pass, from 0.
        type: The class name of the module.
        shape: The shape of the output without its batch axis.
        unit_axis: The axis of the units in the output, batch axis included.
        units: Number of units.
        windows: How many windows of each sample are folded into the batch axis (1: none).
        prefix: How many of the first positions are class, distillation or register tokens.
        itemsize: Bytes of one element of the output.
        calls: How often the module is called in a forward pass.
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

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the positions that share a unit: space, tokens or windows."""
        rest = [size for axis, size in enumerate(self.shape, start=1) if axis != self.unit_axis]
        return (self.windows, *rest) if self.windows > 1 else tuple(rest)

    @property
    def tokens(self) -> bool:
        """Whether the positions are tokens of a sequence, with the units last."""
        return len(self.shape) == 2 and self.unit_axis == 2 and self.windows == 1

    def arrange(self, output: Tensor) -> Tensor:
        """Views an output of this layer as (batch, units, *positions)."""
        if output.ndim == 1:
            return output[:, None]
        axis = self.unit_axis
        if self.windows > 1:
            output = output.unflatten(0, (-1, self.windows))
            axis += 1
        return output.movedim(axis, 1)


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile` and `DistributedDataParallel`.

    Raises:
        ModelError: `nn.DataParallel`, whose replicas run side by side in threads.
    """
    while True:
        if isinstance(module, nn.DataParallel):
            raise ModelError(
                "the model is wrapped in nn.DataParallel, whose replicas each see a part of the batch "
                "in a thread of their own; pass model.module, or use DistributedDataParallel"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


_NOT_RECORDED = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)
_ACTIVATION_FUNCTIONS = tuple(
    kind
    for name in nn.modules.activation.__all__
    if not issubclass(kind := getattr(nn, name), _NOT_RECORDED)
)
_ACTIVATION_MODULES = ("timm.layers.activations", "transformers.activations")


def is_activation_function(module: nn.Module) -> bool:
    """Whether a module is an activation function of torch, timm or transformers.

    Softmax and its relatives are not: they normalize over units or positions.
    """
    return isinstance(module, _ACTIVATION_FUNCTIONS) or type(module).__module__.startswith(
        _ACTIVATION_MODULES
    )


def site_names(module: str, taken: Iterable[str]) -> Iterator[str]:
    """The names of the first, second, third, ... call of a module.

    They follow torchvision's fx convention and pass over a name that a module has already.

    >>> from itertools import islice
    >>> list(islice(site_names("relu", {"relu", "relu_1"}), 3))
    ['relu', 'relu_2', 'relu_3']
    """
    taken = set(taken)
    yield module
    call = 0
    while True:
        call += 1
        if (name := f"{module}_{call}") not in taken:
            yield name


class Selection:
    """Which layers are wanted: names, globs, module types, predicates, each or several of them.

    A string that begins with `!` takes out what matches. `None` is every activation function.
    Names are resolved when the selection is made, before any forward pass.

    Raises:
        LayerError: A name that no module has, or a pattern that matches none.
    """

    def __init__(
        self, module: nn.Module, layers: LayerChoice | Sequence[LayerChoice] | None = None
    ) -> None:
        self.modules = {name: child for name, child in module.named_modules() if name}
        self._canonical = {child: name for name, child in self.modules.items()}
        choices = [layers] if isinstance(layers, str | type) or callable(layers) else layers
        self.default = choices is None
        self.exact: set[str] = set()
        self._without: list[str] = []
        self._with: list[LayerChoice] = []
        aliases = dict(module.named_modules(remove_duplicate=False))
        for choice in choices or ():
            if not isinstance(choice, str):
                self._with.append(choice)
            elif choice.startswith("!"):
                self._without.append(choice[1:])
            elif any(mark in choice for mark in "*?["):
                self._with.append(choice)
            else:
                self.exact.add(self._resolve(choice, aliases))
        if choices is not None and not self.exact and not self._with:
            if not self._without:
                raise LayerError("layers is empty: name at least one layer, or pass None for all")
            self.default = True
        self.candidates = self._candidates()

    @property
    def only(self) -> set[str] | None:
        """The wanted layers where each was asked for by its name, otherwise None."""
        return None if self._with or self.default else self.exact

    def _resolve(self, name: str, aliases: Mapping[str, nn.Module]) -> str:
        if name in aliases and name:
            return self._canonical[aliases[name]]
        if self.base(name) is not None:
            return name
        raise LayerError(
            f"no layer is named {name!r}; {close_matches(name, self.modules, what='module')}"
        )

    def base(self, site: str) -> str | None:
        """The module whose later call a name such as `relu_1` can mean."""
        if site in self.modules:
            return site
        match = re.fullmatch(r"(.+)_[1-9]\d*", site)
        return match[1] if match and match[1] in self.modules else None

    def _candidates(self) -> dict[str, nn.Module]:
        """The modules that can give a wanted layer, judged before any forward pass."""
        bases = {self.base(name) for name in self.exact}
        found = {
            name: child
            for name, child in self.modules.items()
            if name in bases
            or (self.default and is_activation_function(child))
            or any(self._may_match(choice, name, child) for choice in self._with)
        }
        for choice in self._with:
            if not any(self._may_match(choice, name, child) for name, child in found.items()):
                kinds = sorted({type(child).__name__ for child in self.modules.values()})
                asked = choice if isinstance(choice, str) else getattr(choice, "__name__", choice)
                raise LayerError(
                    f"no layer matches {asked!r}; "
                    + (
                        close_matches(choice.strip("*."), self.modules, what="module")
                        if isinstance(choice, str)
                        else f"the model has modules of the types {', '.join(kinds[:20])}"
                    )
                )
        if self.default and not found:
            kinds = sorted({type(child).__name__ for child in self.modules.values()})
            raise LayerError(
                "the model has no activation-function modules (a functional call such as F.relu is "
                f"not a module and cannot be hooked); name layers, or a type among {', '.join(kinds[:20])}"
            )
        return found

    def _may_match(self, choice: LayerChoice, name: str, child: nn.Module) -> bool:
        if isinstance(choice, str):
            return fnmatch.fnmatchcase(name, choice) or fnmatch.fnmatchcase(f"{name}_1", choice)
        return self._matches(choice, name, child)

    @staticmethod
    def _matches(choice: LayerChoice, site: str, child: nn.Module) -> bool:
        if isinstance(choice, str):
            return fnmatch.fnmatchcase(site, choice)
        if isinstance(choice, type):
            return isinstance(child, choice)
        return bool(choice(site, child))

    def wants(self, site: str, child: nn.Module) -> bool:
        """Whether a call that has just happened is a wanted layer."""
        if site in self.exact:
            return True
        if any(fnmatch.fnmatchcase(site, pattern) for pattern in self._without):
            return False
        if self.default:
            return is_activation_function(child)
        return any(self._matches(choice, site, child) for choice in self._with)

    def explain_silence(self, calls: Mapping[str, int]) -> None:
        """Raises for the wanted layers that a forward pass did not reach.

        Args:
            calls: How often each module was called.
        """
        for name in sorted(self.exact):
            base = self.base(name) or name
            taken = self.modules.keys()
            fired = [site for site, _ in zip(site_names(base, taken), range(calls.get(base, 0)))]
            if name not in fired:
                if fired:
                    raise LayerError(
                        f"layer {name!r} was not reached: {base!r} is called {len(fired)} "
                        f"time{'s' if len(fired) > 1 else ''} in a forward pass, as {', '.join(fired)}"
                    )
                raise LayerError(self._silent(base, calls))
        if not any(calls.get(name) for name in self.candidates):
            raise LayerError(self._silent(next(iter(self.candidates)), calls))

    def _silent(self, name: str, calls: Mapping[str, int]) -> str:
        parent = name
        while parent and not calls.get(parent):
            parent = parent.rpartition(".")[0]
        nearest = (
            f"its nearest parent that does is {parent!r}" if parent else "no parent of it does"
        )
        return (
            f"layer {name!r} ({type(self.modules[name]).__name__}) exists but its forward is never "
            f"called, as with fused attention or a functional call; {nearest}: record that instead"
        )


_UNITS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_UNITS_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention, nn.LSTM, nn.GRU)


def axis_of_type(module: nn.Module, output: Tensor) -> int | None:
    """The unit axis that a module's type fixes, or None where the type says nothing.

    Convolutions, batch norms and pooling have their units on axis 1; linear layers on the last;
    layer norms on the last too, unless they are the channels-first ones whose names end in `2d`.
    """
    if output.ndim < 3:
        return 1
    if isinstance(module, _UNITS_FIRST):
        return 1
    if isinstance(module, _UNITS_LAST):
        return output.ndim - 1
    if hasattr(module, "normalized_shape"):
        return 1 if type(module).__name__.lower().endswith("2d") else output.ndim - 1
    return None


_TOKEN_PARAMETERS = {
    "class_token": 1, "cls_token": 1, "class_embedding": 1, "dist_token": 1,
    "distillation_token": 1, "reg_token": None, "register_tokens": None,
}  # fmt: skip


def prefix_tokens(module: nn.Module) -> int:
    """How many class, distillation and register tokens stand before the patch tokens.

    Taken from timm's `num_prefix_tokens`, otherwise counted from the parameters that hold them.
    """
    declared = getattr(module, "num_prefix_tokens", None)
    if isinstance(declared, int):
        return declared
    count = 0
    for name, parameter in module.named_parameters():
        last = name.rpartition(".")[2]
        if last in _TOKEN_PARAMETERS:
            count += _TOKEN_PARAMETERS[last] or parameter.shape[-2]
    return count


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors of any nested output, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.ndim:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))


def tensor_of(output: Any, pick: int | str | None = None) -> Tensor | None:
    """The tensor that stands for a module's output.

    Args:
        output: A tensor, or a tuple, dict, named tuple, dataclass or ModelOutput with tensors in it.
        pick: The index, key or field to take; None takes the first floating-point tensor.

    Raises:
        LayerError: `pick` names nothing in this output.
    """
    if pick is not None and not isinstance(output, Tensor):
        try:
            output = output[pick] if not isinstance(pick, str) else _field(output, pick)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise LayerError(
                f"output={pick!r} names nothing in an output of type {type(output).__name__}"
            ) from None
    return next(tensors_in(output), None)


def _field(output: Any, name: str) -> Any:
    return output[name] if isinstance(output, Mapping) else getattr(output, name)

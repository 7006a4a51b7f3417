"""Where the units of a layer lie: the one place that knows the unit axis.

A unit is what has weights of its own; the positions are what shares weights. A convolution has a
filter a channel, so its units are on axis 1; a linear layer has a row of weights an output feature,
so its units are on the last axis, whether the axes before it are tokens, windows or, in the
token-mixing half of an MLP-Mixer, the channels.
"""

from __future__ import annotations

from math import prod

from torch import nn

__all__ = ["UnitAxes", "axis_of_type", "prefix_tokens"]

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
_UNITS_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def axis_of_type(module: nn.Module, ndim: int) -> int | None:
    """The unit axis that a module's type fixes, or None where the type says nothing.

    Convolutions, batch norms and pooling have their units on axis 1; linear layers on the last;
    layer norms on the last too, unless they are the channels-first ones whose names end in `2d`.

    >>> axis_of_type(nn.Conv2d(3, 8, 1), 4), axis_of_type(nn.Linear(3, 8), 4)
    (1, 3)
    >>> axis_of_type(nn.ReLU(), 4) is None
    True
    """
    if ndim < 3 or isinstance(module, _UNITS_FIRST):
        return 1
    if isinstance(module, _UNITS_LAST):
        return ndim - 1
    if hasattr(module, "normalized_shape"):
        return 1 if type(module).__name__.lower().endswith("2d") else ndim - 1
    return None


class UnitAxes:
    """Follows the shapes in a forward pass and finds the units of modules whose type tells nothing.

    The units of a pointwise module (an activation function, dropout, a sum in a block) lie where the
    nearest module of a telling type put them: the last one before it with an output of the same
    shape, or else the first one after it.
    """

    def __init__(self, prefix: int) -> None:
        self._prefix = prefix
        self._told: list[tuple[tuple[int, ...], int]] = []
        self._patches: int | None = None

    @property
    def now(self) -> int:
        """A moment in the pass, to look on from later."""
        return len(self._told)

    def note(self, module: nn.Module, shape: tuple[int, ...]) -> int | None:
        """Takes in a call; returns the unit axis that the type fixes, if it does."""
        axis = axis_of_type(module, len(shape))
        if axis is not None and len(shape) > 2:
            self._told.append((shape, axis))
            self._count_patches(shape, axis)
        return axis

    def before(self, shape: tuple[int, ...]) -> int | None:
        """The axis in the last output of this shape whose module fixes it."""
        return next((axis for seen, axis in reversed(self._told) if seen == shape), None)

    def after(self, moment: int, shape: tuple[int, ...]) -> int | None:
        """The axis in the first output of this shape since a moment whose module fixes it."""
        return next((axis for seen, axis in self._told[moment:] if seen == shape), None)

    def contested(self, shape: tuple[int, ...]) -> bool:
        """Whether outputs of this shape have their units in different places."""
        return len({axis for seen, axis in self._told if seen == shape}) > 1

    def prefix(self, tokens: int) -> int:
        """How many of so many tokens stand before the patch tokens.

        None do where there are as many tokens as patches, as in the embedding of a transformer; the
        last channels-first map before tells the number of patches, or else the first sequence of tokens.
        """
        return 0 if tokens == self._patches or tokens < self._prefix else self._prefix

    def _count_patches(self, shape: tuple[int, ...], axis: int) -> None:
        if len(shape) == 4 and axis == 1:
            self._patches = prod(shape[2:])
        elif len(shape) == 3 and axis == 2 and self._patches is None:
            self._patches = shape[1]


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

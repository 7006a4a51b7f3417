"""A control for the class selectivity index: added constants change the index, not the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy.typing as npt
import torch
from torch import Tensor, nn

from probekit.capture.layers import Layer
from probekit.capture.plan import scout_layers
from probekit.errors import LayerError, OptionError
from probekit.models.image_model import ImageModel, Model, as_module


def add_constants(
    model: Model, constants: Mapping[str, npt.ArrayLike | Tensor], images: Tensor
) -> Any:
    """A copy of a network that adds constants to units and subtracts them again after the layer.

    The copy computes the same function, up to rounding. The affine maps of the following layers can
    absorb a constant that is added to a unit (for a linear layer, b' = b - W c). The copy subtracts the
    constant instead, so that this also holds for padding and shortcuts. The class selectivity index of
    the units still changes; eta squared, the AUC and the offset-free index do not.

    Args:
        model: A module or an `ImageModel`; it is not modified.
        constants: For each layer, a scalar or an array (units,), in units of the activation.
        images: A few inputs of the model (two are enough), used to find the unit axis.

    Returns:
        The copy, of the model's type. Three layers replace the layer `NAME`: `NAME.original` has the
        original activations; `NAME.shifted` has the constants added; and `NAME` returns the original
        activations to the following layers.

    Raises:
        LayerError: There is no such layer, or it is a function, the model itself, called several times or
            inside another one.
        OptionError: The constants are not a scalar or one per unit, or contain NaN or infinity.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> images, _ = pk.images_at(data, [0, 1])
        >>> shifted = pk.add_constants(model, {"layer3.2.relu2": 1.0}, images)
        >>> bool(torch.allclose(model(images), shifted(images), atol=1e-4))
        True
        >>> layers = ["layer3.2.relu2.original", "layer3.2.relu2.shifted"]
        >>> result = pk.analyze(shifted, data, layers, limit=100)
        >>> before, after = result["layers"]["selectivity_mean"].values
        >>> bool(after < before)
        True
    """
    found, _ = scout_layers(model, images, list(constants))
    made = copy.deepcopy(as_module(model))
    by_name = {layer.name: layer for layer in found}
    for name, values in constants.items():
        layer = by_name.get(name)
        if layer is None or not layer.module or layer.function or layer.calls > 1:
            raise LayerError(
                f"constants are added to layers by name whose module is called once, not to {name!r}"
            )
        inside = f"{layer.module}."
        if inner := [one for one in by_name if by_name[one].module.startswith(inside)]:
            raise LayerError(
                f"{inner[0]!r} is inside {name!r}, and one of them would move the units of the other; make "
                "a copy for each"
            )
        original = made.get_submodule(layer.module)
        replaced = _Reparametrized(original, _added(values, layer))
        for holder in list(made.modules()):
            for child, module in holder._modules.items():  # under all of its names
                if module is original and holder is not replaced:
                    setattr(holder, child, replaced)
    return replace(model, module=made) if isinstance(model, ImageModel) else made


def _added(values: npt.ArrayLike | Tensor, layer: Layer) -> Tensor:
    """The constants of one layer, in a shape that broadcasts to its output."""
    given = torch.as_tensor(values, dtype=torch.float32).detach().clone()
    if given.shape not in ((), (layer.units,)) or not given.isfinite().all():
        raise OptionError(
            f"the constants of {layer.name!r} must be one finite number or {layer.units}, not of the "
            f"shape {tuple(given.shape)}"
        )
    shape = [1] * (len(layer.shape) + 1)
    for axis in (layer.unit_axis, *layer.split):
        if axis < len(shape):  # otherwise, each sample has one number
            shape[axis] = layer.shape[axis - (axis > layer.batch_axis)]
    return given.expand(layer.units).reshape(shape)


class _Reparametrized(nn.Module):
    """A module whose units have constants added, visible only to hooks on `shifted`."""

    def __init__(self, original: nn.Module, constants: Tensor) -> None:
        super().__init__()
        self.original = original
        self.shifted = _Shift(constants)
        self.train(original.training)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        shifted: Tensor = self.shifted(self.original(*inputs, **options))
        return shifted - cast(Tensor, self.shifted.constants).to(shifted.dtype)


class _Shift(nn.Module):
    def __init__(self, constants: Tensor) -> None:
        super().__init__()
        self.register_buffer("constants", constants)

    def forward(self, activations: Tensor) -> Tensor:
        return activations + cast(Tensor, self.constants).to(activations.dtype)

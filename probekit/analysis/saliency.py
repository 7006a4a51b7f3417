"""Attribution of a unit's activation to the pixels of the image, with captum."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from probekit.capture.gradients.backward import differentiable
from probekit.capture.recorder import Recorder, Tokens
from probekit.checks import integer, one_of, positive_int
from probekit.data.fitting import fit_to
from probekit.errors import DataError, LayerError, optional
from probekit.models.image_model import Model, as_module, borrow, check_differentiable
from probekit.models.inputs import check_continuous, explained_failure
from probekit.runtime.settings import in_own_settings

SaliencyMethod: TypeAlias = Literal["integrated_gradients", "gradient"]

_AT_A_TIME = 256


@in_own_settings
def unit_saliency(
    model: Model,
    images: Tensor,
    layer: str | nn.Module,
    channel: int,
    *,
    method: SaliencyMethod = "integrated_gradients",
    baseline: float = 0.0,
    steps: int = 32,
    device: str | torch.device | None = None,
    tokens: Tokens = "all",
    output: int | str | None = None,
) -> Tensor:
    """Attributes a unit's activation, averaged over the positions of its map, to the pixels.

    Args:
        model: A module, or an `ImageModel`; it is not changed.
        images: (n, channels, height, width), in the form that the model expects.
        layer: The layer's name, as in a result, or its module, whose first call is used.
        channel: The unit's number in the layer.
        method: `"integrated_gradients"`: the mean gradient along the line from a constant baseline
            image to this one, times the difference; the values of an image add up to its activation
            minus that of the baseline. `"gradient"`: the gradient with respect to each pixel.
        baseline: The value of the baseline image; 0 is black for images in [0, 1].
        steps: Number of points on the line.
        device: Where to run; None uses the model's device.
        tokens: As for `Recorder`.
        output: As for `Recorder`.

    Returns:
        Signed attributions of the shape of the images, on the CPU.

    Raises:
        LayerError: The layer does not exist, or it has no such unit.
        OptionError: An unknown method, fewer than one step, or a channel that is no integer.

    Source:
        Sundararajan et al. 2017 (arXiv 1703.01365); Simonyan et al. 2013 (arXiv 1312.6034).

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> images, _ = pk.images_at(data, [0, 1])
        >>> pk.unit_saliency(model, images, "layer3.2.relu2", 4).shape
        torch.Size([2, 1, 28, 28])
    """
    one_of("method", method, get_args(SaliencyMethod))
    positive_int("steps", steps)
    channel = integer("channel", channel)
    check_differentiable(as_module(model))
    if not isinstance(images, Tensor):
        raise DataError(
            f"images must be a tensor (batch, channels, height, width), not {type(images).__name__}"
        )
    check_continuous(images)
    with optional("captum", "unit_saliency"):
        from captum.attr import IntegratedGradients, Saliency

    with (
        explained_failure(images),
        borrow(model, device) as place,
        Recorder(model, [layer], grad=True, stop=True, tokens=tokens, output=output) as recorder,
        torch.enable_grad(),
    ):

        def activation(inputs: Tensor) -> Tensor:
            recorder(inputs)
            tables = recorder.activations
            if isinstance(layer, str) and layer not in tables:
                raise LayerError(f"{layer!r} is a pattern of names; give the name of one layer")
            name = layer if isinstance(layer, str) else next(iter(tables))
            table = differentiable(tables, [name])[name]
            if not 0 <= channel < table.shape[1]:
                raise LayerError(
                    f"layer {layer!r} has no unit {channel}, only units 0 to {table.shape[1] - 1}"
                )
            return table[:, channel]

        at_a_time = _AT_A_TIME if method == "gradient" else max(1, _AT_A_TIME // steps)
        parts = []
        for part in torch.split(fit_to(model)(images.detach()), at_a_time):
            # A copy, because captum sets attributes on its input.
            inputs = part.to(place, copy=True).requires_grad_()
            if method == "gradient":
                found = Saliency(activation).attribute(inputs, abs=False)
            else:
                attribution = IntegratedGradients(activation)
                found = attribution.attribute(inputs, baselines=baseline, n_steps=steps)
            parts.append(found.detach().to("cpu", images.dtype))
    return torch.cat(parts) if parts else images.detach().cpu().clone()

"""Exact gradients of many units with respect to the images, in chunks that fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from probekit.errors import LayerError, ModelError, first_line
from probekit.models.inputs import check_continuous, reported_refusal

Forward: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

# On CPUs, more rows at once than about this number exceed the cache, and fewer leave cores idle.
_ROWS = 128


def square_norms(
    forward: Forward, images: Tensor, units: Mapping[str, Tensor], memory: int, per_row: int
) -> dict[str, Tensor]:
    """Squared norms of the gradients of units with respect to each sample's image, in float64.

    Samples are independent, so one backward pass from a unit gives its gradient for every sample.
    The batch is repeated, and each backward pass starts from one unit, of any layer, per repetition.
    `memory` is the maximum number of bytes for the graph of a forward pass, which takes `per_row` bytes per
    sample (`footprint`).
    """
    rows = max(1, min(memory // max(per_row, 1), max(_ROWS, len(images))))
    parts = [_part(forward, part, units, rows // len(part)) for part in torch.split(images, rows)]
    return {name: torch.cat([part[name] for part in parts]) for name in units}


def backward_gradients(
    forward: Forward, images: Tensor, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradient of a sum of each layer's units, weighted by (batch, units), with respect to the images.

    It is zero if a layer does not depend on the images.
    """
    with torch.enable_grad():
        inputs = _leaf(images)
        outputs = forward(inputs)
    found = {}
    for name, weight in weights.items():
        gradient = None
        if outputs[name].requires_grad:
            (gradient,) = gradients(
                outputs[name], inputs, weight, retain_graph=True, allow_unused=True
            )
        found[name] = torch.zeros_like(images) if gradient is None else gradient
    return found


def gradients(*given: Any, **options: Any) -> tuple[Tensor, ...]:
    try:
        found: tuple[Tensor, ...] = torch.autograd.grad(*given, **options)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"the model cannot be differentiated: {first_line(error)}") from error
    return found


def differentiable(outputs: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Returns the outputs of some layers; raises `LayerError` if one does not depend on the images."""
    for name in names:
        if not outputs[name].requires_grad:
            raise _independent(name)
    return {name: outputs[name] for name in names}


def check_separate(forward: Forward, images: Tensor, module: object = None) -> None:
    """Checks that no sample's activations depend on another sample's image.

    The activations of each half of the images are differentiated with respect to the other half; the
    cause is searched for in `module`.
    """
    with torch.enable_grad():
        inputs = _leaf(images)
        outputs = differentiable(found := forward(inputs), found)
    half = len(images) // 2
    for name, output in outputs.items():
        for mine, others in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            start = torch.zeros_like(output)
            start[mine] = (
                torch.linspace(0.5, 1.5, start[mine].numel()).view_as(start[mine]).to(start)
            )
            (gradient,) = gradients(output, inputs, start, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise _independent(name)
            if bool(gradient[others].any()):
                raise ModelError(
                    f"layer {name!r}: a sample's activations depend on the other samples of its batch"
                    f"{_cause(module)}, so a gradient does not belong to one sample; use a model whose "
                    "samples do not mix (batch norm with running statistics, in eval mode)"
                )


def footprint(forward: Forward, images: Tensor) -> tuple[int, int]:
    """Bytes per sample of the whole graph of a forward pass, and of its largest tensor."""
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) == len(images):
            kept.append(tensor)
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)
    with reported_refusal(), torch.enable_grad(), saving:
        forward(_leaf(images))
    own = images.nelement() * images.element_size()
    largest = max(sizes.values(), default=0)
    whole = sum(sizes.values()) + 2 * largest + own
    return whole // len(images), max(largest, own) // len(images)


def _part(
    forward: Forward, images: Tensor, units: Mapping[str, Tensor], most: int
) -> dict[str, Tensor]:
    pairs = [(name, place) for name in units for place in range(len(units[name]))]
    repeats = max(1, min(most, len(pairs)))
    batch = len(images)
    found = {
        name: torch.zeros(batch, len(some), dtype=_double(images), device=images.device)
        for name, some in units.items()
    }
    with torch.enable_grad():
        inputs = _leaf(images.repeat(repeats, *[1] * (images.ndim - 1)))
        outputs = differentiable(forward(inputs), units)
    for start in range(0, len(pairs), repeats):
        chunk = pairs[start : start + repeats]
        starts: dict[str, Tensor] = {}
        for copy, (name, place) in enumerate(chunk):
            if name not in starts:
                starts[name] = torch.zeros_like(outputs[name])
            starts[name][copy * batch : (copy + 1) * batch, units[name][place]] = 1
        (gradient,) = gradients(
            [outputs[name] for name in starts],
            inputs,
            list(starts.values()),
            retain_graph=start + repeats < len(pairs),
        )
        size = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=_double(images))
        for copy, (name, place) in enumerate(chunk):
            found[name][:, place] = size[copy * batch : (copy + 1) * batch].square()
    return found


def _independent(name: str) -> LayerError:
    return LayerError(
        f"layer {name!r} does not depend on the images in a way that can be differentiated (a "
        "constant, quantized weights, or a detach or no_grad inside the model); exclude it"
    )


def _cause(module: Any) -> str:
    norms = (
        name
        for name, child in (module.named_modules() if module is not None else ())
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm)
        and (child.training or child.running_mean is None)
    )
    name = next(norms, None)
    return "" if name is None else f" ({name!r} uses the mean and variance of the batch)"


def _leaf(images: Tensor) -> Tensor:
    check_continuous(images)
    return images.detach().clone().requires_grad_()


def _double(like: Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64

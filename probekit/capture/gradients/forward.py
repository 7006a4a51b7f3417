"""Derivatives along random directions in image space, for every unit of every layer at once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from traceback import walk_tb

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from probekit.capture.gradients.backward import Forward
from probekit.errors import LayerError, ModelError
from probekit.runtime.randomness import RandomStreams


def directions(
    images: Tensor, index: Tensor, probes: int, seed: int, chunk: int
) -> Iterator[Tensor]:
    """Yields `probes` Gaussian directions in chunks of shape (some, batch, ...).

    Each sample has its own random stream and each direction a field of it, so directions do not depend
    on the batch, chunk, process or device.
    """
    streams = RandomStreams(f"probes, seed {seed}", index, images.device)
    for start in range(0, probes, chunk):
        drawn = [
            streams.normal(*images.shape[1:], field=number)
            for number in range(start, min(start + chunk, probes))
        ]
        yield torch.stack(drawn).to(images.dtype)


class Differentiator:
    """Forward-mode differentiation of a model along several directions at once.

    The activations are computed once for all directions (`torch.func.vmap`), or once per direction if
    an operation of the model does not support this batching.
    """

    def __init__(self, forward: Forward, module: nn.Module) -> None:
        self._forward = forward
        self._module = module
        self._together = True

    def __call__(self, images: Tensor, along: Tensor) -> dict[str, Tensor]:
        """Derivatives of the activations, {layer: (directions, batch, units)}."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated", FutureWarning)
            if self._together:
                try:
                    found: dict[str, Tensor] = torch.func.vmap(
                        lambda one: torch.func.jvp(self._forward, (images,), (one,))[1]
                    )(along)
                    return found
                except (RuntimeError, NotImplementedError, ValueError, TypeError):
                    self._together = False
            return self._one_by_one(images, along)

    def _one_by_one(self, images: Tensor, along: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for direction in along:
            with forward_ad.dual_level():
                try:
                    outputs = self._forward(forward_ad.make_dual(images, direction))  # type: ignore[no-untyped-call]  # untyped in torch
                except (RuntimeError, NotImplementedError) as error:
                    raise self._explained(error) from error
                for name, output in outputs.items():
                    tangent = forward_ad.unpack_dual(output).tangent  # type: ignore[no-untyped-call]  # untyped in torch
                    if tangent is None:
                        raise LayerError(
                            f"layer {name!r} does not depend on the images in a way that can be "
                            "differentiated forward; exclude it, or use method='exact'"
                        )
                    found.setdefault(name, []).append(tangent)
        return {name: torch.stack(tangents) for name, tangents in found.items()}

    def _explained(self, error: Exception) -> Exception:
        operation = re.search(r"forward AD with (\S+)", str(error))
        if operation is None and "jvp" not in str(error):
            return error
        what = operation[1] if operation else "a custom autograd function without jvp"
        return ModelError(
            f"method='probes' differentiates forward, and {what} in "
            f"{_innermost(self._module, error)} has no forward-mode "
            "derivative; use method='exact'"
        )


def directional_derivatives(
    differentiate: Differentiator,
    images: Tensor,
    index: Tensor,
    *,
    probes: int,
    seed: int,
    rows: int,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Derivatives along each sample's own directions, in chunks of at most `rows` rows.

    Yields the slice of samples, and {layer: (some directions, those samples, units)}.
    """
    for start in range(0, len(images), rows):
        part = slice(start, min(start + rows, len(images)))
        chunk = max(1, rows // (part.stop - part.start))
        for along in directions(images[part], index[part], probes, seed, chunk):
            yield part, differentiate(images[part], along)


def _innermost(module: nn.Module, error: Exception) -> str:
    """The innermost module that was running when an error was raised, from its traceback."""
    names = {child: name for name, child in module.named_modules()}
    running = [
        frame.f_locals["self"]
        for frame, _ in walk_tb(error.__traceback__)
        if frame.f_code is nn.Module._call_impl.__code__
    ]
    known = [child for child in running if names.get(child)]
    return f"{names[known[-1]]!r} ({type(known[-1]).__name__})" if known else "the model"

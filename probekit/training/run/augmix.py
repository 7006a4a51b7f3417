"""AugMix for whole batches: images mixed with chains of simple operations on themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probekit.errors import OptionError

__all__ = ["AugMix"]

_STRONGEST = 10


@dataclass(frozen=True)
class AugMix:
    """AugMix of torchvision on batches, repeatable and the same on every device.

    torchvision draws its operations once for a whole batch, so that a batch would see one chain. Here
    a few images at a time share a draw; the weights of the mixture are each image's own. The
    operations are those of the AugMix paper's robustness runs: none that is also a corruption
    (brightness, contrast, colour, sharpness). The loss stays the plain cross-entropy; the paper's
    consistency term between three views is left out, which triples the cost of a step.

    Args:
        severity: Strength of the operations, from 1 to 10.
        together: How many images share a draw of operations.

    Raises:
        OptionError: A severity or a number of images out of range.

    Source:
        Hendrycks et al. 2020 (arXiv 1912.02781), through `torchvision.transforms.AugMix`.

    Example:
        >>> images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(4, 1, 1, 1)
        >>> mixed = AugMix(severity=3)(images, [0])
        >>> mixed.shape, mixed.dtype, bool((mixed == AugMix(severity=3)(images, [0])).all())
        (torch.Size([4, 1, 8, 8]), torch.uint8, True)
    """

    severity: int = 3
    together: int = 16

    def __post_init__(self) -> None:
        for name, most in (("severity", _STRONGEST), ("together", None)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < 1 or (most is not None and value > most):
                limit = "" if most is None else f" to {most}"
                raise OptionError(
                    f"{name} of AugMix is a whole number from 1{limit}, not {value!r}"
                )

    def __call__(self, images: Tensor, seeds: list[int]) -> Tensor:
        """Mixes a batch.

        Args:
            images: (batch, 1 or 3, height, width), uint8.
            seeds: A number for every `together` images.

        Raises:
            OptionError: There are too few numbers.
        """
        groups = torch.split(images, self.together)
        if len(seeds) < len(groups):
            raise OptionError(
                f"{len(images)} images are mixed in {len(groups)} groups, which need a seed each, "
                f"not {len(seeds)}"
            )
        operation = _operation(self.severity)
        before = torch.get_rng_state()
        try:
            mixed = []
            for group, seed in zip(groups, seeds, strict=False):
                # The generator of the CPU alone: manual_seed would change a device's as well.
                torch.default_generator.manual_seed(seed)
                mixed.append(operation(group))
        finally:
            torch.set_rng_state(before)
        return torch.cat(mixed)


def _operation(severity: int) -> Any:
    from torchvision.transforms import AugMix as Original

    class OnAnyDevice(Original):  # type: ignore[misc]
        """Draws its weights on the CPU, so that every device gets the same ones."""

        def _sample_dirichlet(self, params: Tensor) -> Tensor:
            drawn: Tensor = torch._sample_dirichlet(params.cpu())
            return drawn.to(params.device)

    return OnAnyDevice(severity=severity, all_ops=False)

"""Checks of models, images and radii before an attack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from scipy.stats import binom
from torch import Tensor

from probekit.errors import DataError, ModelError, OptionError, warn
from probekit.models.image_model import check_differentiable, module_of
from probekit.models.inputs import check_pixels
from probekit.models.state import State
from probekit.perturbations.attacks.balls import Norm
from probekit.perturbations.attacks.goals import Goal, Loss, Model, gradient_of, model_logits

CHANCE_LEVEL = 0.05
FEWEST_FOR_CHANCE = 20
ZERO_GRADIENT_FRACTION = 0.05
PROBABILITY_TOLERANCE = 1e-3


@contextmanager
def attackable(model: Model) -> Iterator[None]:
    """Puts the model in eval mode, disables parameter gradients, enables autograd; then restores it.

    The training flag of every submodule is restored separately, so a batch norm that was frozen inside
    a model in training mode stays frozen; so is the state that the model changes when it runs. Hooks and
    `.grad` are not changed.
    """
    module = module_of(model)
    if module is not None:
        check_differentiable(module)
    state = None if module is None else State(module)
    training = [part for part in module.modules() if part.training] if module else []
    trained = [p for p in module.parameters() if p.requires_grad] if module else []
    try:
        if module is not None and training:
            module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.inference_mode(False):  # this also enables autograd
            yield
    finally:
        for part in training:
            part.training = True
        for parameter in trained:
            parameter.requires_grad_(True)
        if state is not None:
            state.restore()


def check_model_for_attack(
    model: Model, images: Tensor, labels: Tensor, *, loss: Loss = "cross_entropy"
) -> tuple[str, ...]:
    """Warns about a model for which a gradient attack does not measure robustness.

    It runs one forward and one backward pass over the images; a few dozen images are enough. It returns the
    warnings: the model is in training mode (attacks run it in eval mode and restore it), the outputs are
    probabilities, the gradient is zero for correctly classified images, or the clean accuracy does not
    exceed chance.
    """
    check_images(images)
    messages = []
    module = module_of(model)
    if module is not None and any(part.training for part in module.modules()):
        messages.append(
            "the model is in training mode; it is put in eval mode for the attack and restored "
            "afterwards: call .eval() first to avoid this warning"
        )
    with attackable(model):
        images = images.detach().clone()
        logits = model_logits(model, images.requires_grad_(True))
        labels = check_classes(labels, images, what="labels", n_classes=logits.shape[1])
        if not torch.isfinite(logits).all():
            raise ModelError("the model's logits are not finite (NaN or infinity) on clean images")
        total = Goal(labels, loss=loss).objective(logits, reduction="sum")
        gradient = gradient_of(total, images).nan_to_num_(nan=0)
    logits = logits.detach()
    correct = logits.argmax(dim=1) == labels
    messages += _messages(logits, gradient, correct, loss)
    for text in messages:
        warn(text)
    return tuple(messages)


def check_images(images: Tensor) -> None:
    """Checks that the input is a batch of images in [0, 1]."""
    if not isinstance(images, Tensor) or images.ndim < 2 or images.numel() == 0:
        known = isinstance(images, Tensor)
        found = f"shape {tuple(images.shape)}" if known else type(images).__name__
        raise DataError(
            f"an attack needs a batch of images (n, channels, height, width), not {found}"
        )
    check_pixels(images, "an attack")
    if images.dtype not in (torch.float32, torch.float64):
        raise DataError(
            f"{images.dtype} is too coarse for a small epsilon; pass images.float() (the "
            "model may use autocast inside)"
        )


def check_classes(
    classes: Tensor | Sequence[int], images: Tensor, *, what: str, n_classes: int
) -> Tensor:
    """Returns labels or targets as (n,) int64 on the images' device."""
    classes = torch.as_tensor(classes)
    if classes.shape != images.shape[:1] or classes.is_floating_point() or classes.is_complex():
        raise DataError(
            f"an attack needs {what} as {len(images)} integers, one for each image; these are "
            f"{classes.dtype} of shape {tuple(classes.shape)}"
        )
    low, high = (int(value) for value in torch.aminmax(classes))
    if low < 0 or high >= n_classes:
        raise DataError(
            f"{what} hold class {low if low < 0 else high}, which does not exist: the model has "
            f"classes 0 to {n_classes - 1}"
        )
    return classes.to(images.device, torch.int64, copy=True)


def check_epsilons(
    epsilons: float | Sequence[float], norm: Norm, features: int
) -> tuple[float, ...]:
    """Returns the radii as a tuple, in the order given."""
    if isinstance(epsilons, str):
        raise OptionError(
            f"epsilons must be numbers, such as 8/255 without quotes, not {epsilons!r}"
        )
    asked = (epsilons,) if isinstance(epsilons, int | float) else tuple(epsilons)
    radii = tuple(float(epsilon) for epsilon in asked)
    if not radii:
        raise OptionError("an attack needs at least one epsilon")
    most = 1.0 if norm == "linf" else math.sqrt(features)
    for radius in radii:
        if not math.isfinite(radius) or radius < 0:
            raise OptionError(f"epsilon must be a number from 0 to {most:g}, not {radius}")
        if radius > most and norm == "linf":
            raise OptionError(
                f"epsilon {radius:g} is more than the whole range of a pixel, because images are in "
                f"[0, 1]; for {radius:g} steps of 255 pass {radius:g}/255 (8/255 is 0.0314)"
            )
        if radius > most:
            raise OptionError(
                f"epsilon {radius:g} in l2 contains every image: the two most distant images of "
                f"{features} values in [0, 1] are {most:.4g} apart; divide by 255 if it was meant "
                "for images from 0 to 255"
            )
    return radii


def _messages(logits: Tensor, gradient: Tensor, correct: Tensor, loss: Loss) -> Iterator[str]:
    """Why a gradient attack would not measure robustness, judging by clean images."""
    sums = logits.float().sum(dim=1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() <= PROBABILITY_TOLERANCE).all()):
        yield (
            "the model returns probabilities, not logits: the attack would take a softmax of a "
            "softmax, whose gradient is weak; pass the model without its last softmax"
        )
    zero = gradient[correct].flatten(1).abs().amax(dim=1) == 0
    if len(zero) and zero.float().mean() >= ZERO_GRADIENT_FRACTION:
        other = 'try loss="margin", and ' if loss == "cross_entropy" else ""
        yield (
            f"the gradient is zero for {int(zero.sum())} of {len(zero)} correctly classified "
            "images: an attack that follows it cannot move them, and accuracy under attack will "
            f"look better than it is; {other}check for a saturated or a rounding layer"
        )
    right, (n, n_classes) = int(correct.sum()), logits.shape
    if n >= FEWEST_FOR_CHANCE and binom.sf(right - 1, n, 1 / n_classes) > CHANCE_LEVEL:
        yield (
            f"the model is right on {right} of {n} clean images, no better than chance for "
            f"{n_classes} classes: an attack cannot lower that accuracy; check the weights, the "
            "normalization and the order of the classes"
        )

"""Recipes: all options that determine a trained network, as plain data."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeAlias, get_args

import torch

from probekit.checks import integer, number, one_of, positive_int
from probekit.errors import OptionError, close_matches
from probekit.models.architectures import ARCHITECTURES
from probekit.training.run.augment import Adversary, Augmentation, AugMix

Schedule: TypeAlias = Literal["milestones", "one-cycle"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD on the cross-entropy, plus the regularizer if there is one.

    Attributes:
        name: Name of the recipe.
        architecture: A name in `ARCHITECTURES`.
        data: A name for `load_data`, or a folder with the splits `train` and `test`.
        mean: Mean of each channel, for the normalization.
        std: Standard deviation of each channel.
        input_size: (channels, height, width) of the images.
        epochs: Number of passes over the training images.
        batch_size: Images per step, over all processes together.
        learning_rate: The initial rate, or the peak of one cycle.
        schedule: `"milestones"` multiplies the rate by `decay` at each milestone; `"one-cycle"` raises
            it over the fraction `rise` of the steps and then lowers it to nearly zero, in half cosines.
        milestones: Epochs, counted from 0, at which the rate drops.
        decay: Factor by which each milestone multiplies the rate.
        rise: Fraction of all steps in which the rate of one cycle rises.
        momentum: Momentum of SGD.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Weight decay, applied to every parameter.
        flip: Mirror training images at random.
        shift: Maximum random shift of training images, in pixels.
        augmix: Severity, from 1 to 10, at which `AugMix` mixes training images; None to disable it.
        pgd: (epsilon, steps): train on PGD adversarial images within this radius, in units of images in
            [0, 1], with this number of steps (`Adversary`); None trains on the images themselves.
        validation: Number of training images to hold out, drawn separately for each seed. With 0, the
            last epoch counts as the best one.
        stratified: Hold out the same number of images from each class.
        limit: Number of the remaining training images to use, drawn by the seed.
        precision: Data type of the activations; weights are always float32. `"auto"` selects bfloat16
            if the processor computes in it, and float32 otherwise (`Recipe.on`).
        channels_last: Memory layout of the images and weights.
        guessed: The fields whose values the source does not give.
        source: Where the values come from.

    Raises:
        OptionError: A value is invalid.

    Example:
        >>> from dataclasses import replace
        >>> recipe = replace(get_recipe("resnet20-digits"), epochs=3, augmix=3)
        >>> recipe.data, recipe.epochs, recipe.mixture
        ('digits', 3, AugMix(severity=3))
    """

    name: str
    architecture: str
    data: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule = "milestones"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    rise: float = 0.2
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    flip: bool = False
    shift: int = 0
    augmix: int | None = None
    pgd: tuple[float, int] | None = None
    validation: int = 0
    stratified: bool = False
    limit: int | None = None
    precision: Precision = "float32"
    channels_last: bool = False
    guessed: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        one_of("architecture", self.architecture, ARCHITECTURES)
        for name, least in (("epochs", 1), ("batch_size", 2), ("validation", 0), ("limit", 2)):
            value = getattr(self, name)
            if value is not None:
                integer(name, value, least=least)
        for name in ("learning_rate", "weight_decay"):
            number(name, getattr(self, name), least=0)
        for name in ("decay", "rise", "momentum"):
            number(name, getattr(self, name), least=0, most=1)
        one_of("schedule", self.schedule, get_args(Schedule))
        channels = self.input_size[0]
        if not len(self.mean) == len(self.std) == channels:
            raise OptionError(
                f"mean and std need one number for each of {channels} channels (input_size), not "
                f"{len(self.mean)} and {len(self.std)}"
            )
        for epoch in self.milestones:
            positive_int("every milestone", epoch)
        one_of("precision", self.precision, get_args(Precision))
        if self.pgd is not None and (not isinstance(self.pgd, tuple) or len(self.pgd) != 2):
            raise OptionError(
                f"pgd must be (epsilon, steps), such as (8 / 255, 7), not {self.pgd!r}"
            )
        _ = self.augmentation, self.mixture, self.adversary  # check their options

    def on(self, device: torch.device) -> Recipe:
        """This recipe with `"auto"` precision replaced by one that suits the device.

        The precision is bfloat16 on a CPU with AVX-512 and on a GPU that supports it, and float32
        otherwise. With AVX2 only, bfloat16 is several times slower than float32.

        Example:
            >>> get_recipe("resnet20-fashion-mnist", precision="float32").on(torch.device("cpu")).precision
            'float32'
        """
        if self.precision != "auto":
            return self
        if device.type == "cpu":
            native = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        else:
            native = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return replace(self, precision="bfloat16" if native else "float32")

    @property
    def augmentation(self) -> Augmentation:
        """The random augmentation of training images."""
        return Augmentation(self.flip, self.shift)

    @property
    def mixture(self) -> AugMix | None:
        """AugMix for training images, if enabled."""
        return None if self.augmix is None else AugMix(self.augmix)

    @property
    def adversary(self) -> Adversary | None:
        """The attack on training images, if enabled."""
        return None if self.pgd is None else Adversary(*self.pgd)

    def with_options(self, **options: Any) -> Recipe:
        """The same recipe with some fields replaced.

        Raises:
            OptionError: The field does not exist, or a value is invalid.

        >>> get_recipe("resnet20-digits").with_options(epochs=3).epochs
        3
        """
        known = [field.name for field in fields(self) if field.name not in ("name", "guessed")]
        for name in options:
            if name not in known:
                raise OptionError(
                    f"a recipe has no option {name!r}; {close_matches(name, known, what='option')}"
                )
        guessed = tuple(name for name in self.guessed if name not in options)
        return replace(self, **options, guessed=guessed)

    def facts(self) -> dict[str, Any]:
        """The recipe as plain data that survives a round trip through JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def learning_rate(recipe: Recipe, step: int, steps_an_epoch: int) -> float:
    """The learning rate of one step.

    Source:
        One cycle: Smith & Topin 2019 (arXiv 1708.07120), with the defaults of PyTorch's `OneCycleLR`:
        the rate begins at 1/25 of the peak and ends at 1e-4 of its initial value.
    """
    peak = recipe.learning_rate
    if recipe.schedule == "milestones":
        passed = sum(step // steps_an_epoch >= epoch for epoch in recipe.milestones)
        return peak * recipe.decay**passed
    start, end = peak / 25, peak
    top = recipe.rise * recipe.epochs * steps_an_epoch - 1
    share = step / top if top else 1.0
    if step > top:
        start, end = peak, peak / 25 * 1e-4
        share = (step - top) / (recipe.epochs * steps_an_epoch - 1 - top)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))  # half a cosine


def list_recipes() -> list[str]:
    """The names of all recipes.

    >>> list_recipes()[0]
    'resnet18-tiny-imagenet'
    """
    return sorted(_recipes())


def get_recipe(name: str | Recipe, /, **options: Any) -> Recipe:
    """A recipe by name, with some of its fields replaced."""
    if isinstance(name, Recipe):
        return name.with_options(**options)
    if not isinstance(name, str):
        raise OptionError(
            f"a recipe must be a name or a pk.Recipe, not {type(name).__name__}; to train your own model, "
            "add pk.SelectivityRegularizer to the loss of your loop"
        )
    if name not in _recipes():
        raise OptionError(
            f"no recipe is named {name!r}; {close_matches(name, list_recipes(), what='recipe')}"
        )
    return _recipes()[name].with_options(**options)


@cache
def _recipes() -> dict[str, Recipe]:
    file = resources.files("probekit.training.run") / "recipes.toml"
    found: dict[str, dict[str, Any]] = {}
    for name, values in tomllib.loads(file.read_text("utf-8")).items():
        found[name] = found.get(values.pop("like", ""), {}) | values
    return {name: Recipe(name, **values) for name, values in found.items()}

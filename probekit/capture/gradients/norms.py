"""Gradient norms, which measure how strongly each unit's activation depends on the image."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import exp, lgamma, sqrt
from typing import Any, Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor

from probekit.capture.gradients.backward import Forward
from probekit.capture.gradients.differentiated import Differentiated
from probekit.capture.layers import Layer, check_reached
from probekit.capture.readouts import Tap
from probekit.capture.recorder import Recorder
from probekit.checks import one_of, positive_int
from probekit.data.sources import draw
from probekit.errors import LayerError, ModelError, close_matches, some_of
from probekit.models.image_model import Model
from probekit.models.inputs import one_tensor

Method: TypeAlias = Literal["auto", "exact", "probes"]

NOT_MEASURED = -1.0


def mean_chi(probes: int) -> float:
    """The ratio E[sqrt(s)] / g of the mean root of a probe estimate s to the gradient norm g.

    s is g squared times a chi-square variable with K = `probes` degrees of freedom, divided by K:
    c_K = sqrt(2 / K) Gamma((K + 1) / 2) / Gamma(K / 2).
    """
    return sqrt(2 / probes) * exp(lgamma((probes + 1) / 2) - lgamma(probes / 2))


def check_options(method: str, probes: int, memory: int) -> None:
    one_of("method", method, get_args(Method))
    positive_int("probes", probes)
    positive_int("memory", memory)


def choose_method(method: Method, units: int, probes: int) -> Literal["exact", "probes"]:
    """The selected method; for `"auto"`, the one that takes fewer passes.

    One probe of all units costs about as much as one backward pass from one unit.
    """
    if method == "auto":
        return "exact" if units <= probes else "probes"
    return method


def why_exact(reasons: Mapping[str, str], method: Method) -> str:
    """A message about layers that require backward passes, from the result of `forward_mode_fails`."""
    why = next(iter(reasons.values()))
    if method == "probes":
        advice = "" if "method='exact'" in why else "; use method='exact', or 'auto'"
        raise ModelError(why + advice)
    why = why.removesuffix("; use method='exact'")
    return (
        f"the gradients of {some_of(list(reasons))} are computed by backward passes, because {why}"
    )


@dataclass(frozen=True)
class GradientNorms:
    """Norms of the gradients of each unit's pooled activation with respect to the image, per sample.

    Each table is (batch, 2 * units) in float64: for each unit, an unbiased estimate of the norm
    g = ||d activation / d image||_2, then for each unit, one of g squared. Units and samples that are
    not measured have -1. The options are those of the metric `GradientVariability`.
    """

    method: Method = "auto"
    probes: int = 32
    units: int | None = None
    samples: int | None = None
    layers: str | Sequence[str] | None = None
    seed: int = 0
    memory: int = 2**30
    exact_layers: tuple[str, ...] = ()
    own_pass = True

    def __post_init__(self) -> None:
        check_options(self.method, self.probes, self.memory)
        for name, value in (("units", self.units), ("samples", self.samples)):
            if value is not None:
                positive_int(name, value)

    def chosen_units(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """The units to measure of each layer, in order."""
        names = [layer.name for layer in layers]
        patterns = [self.layers] if isinstance(self.layers, str) else self.layers
        for pattern in patterns or ():
            if not fnmatch.filter(names, pattern):
                raise LayerError(
                    f"gradients were requested for layer {pattern!r}, which is not analyzed; "
                    f"{close_matches(pattern.strip('*.'), names, what='layer')}"
                )
        return {
            layer.name: self._draw(layer.units, self.units)
            for layer in layers
            if patterns is None or any(fnmatch.fnmatchcase(layer.name, x) for x in patterns)
        }

    def chosen_samples(self, known: Tensor | None) -> set[int] | None:
        """The indices of the samples to measure among all known ones; None if not limited in advance."""
        if known is None or self.samples is None or self.samples >= len(known):
            return None
        return set(known[self._draw(len(known), self.samples)].tolist())

    def _draw(self, count: int, most: int | None) -> Tensor:
        if most is None or most >= count:
            return torch.arange(count)
        return draw(count, most, self.seed)

    def chosen_method(self, layers: Sequence[Layer]) -> Literal["exact", "probes"]:
        units = self.chosen_units(layers)
        if units.keys() <= set(self.exact_layers):
            return "exact"
        count = sum(map(len, units.values()))
        return choose_method(self.method, count, self.probes)

    def fitted(
        self, model: Model, images: Tensor, layers: Sequence[Layer], **options: Any
    ) -> tuple[Self, str]:
        """Adapts the source to one model in eval mode, checking probes against backward passes.

        Returns the source with `exact_layers` set, and a message about them, empty if there are none.
        """
        one_tensor(images, "a gradient in the input")
        if self.chosen_method(layers) == "exact":
            return self, ""
        wanted = [layer for layer in layers if layer.name in self.chosen_units(layers)]
        with _differentiated(model, images, wanted, self.memory, options) as differentiated:
            differentiated.check(images)
            reasons = differentiated.forward_mode_fails(images, [layer.name for layer in wanted])
        if not reasons:
            return self, ""
        return replace(self, exact_layers=tuple(reasons)), why_exact(reasons, self.method)

    @contextmanager
    def open(
        self,
        model: Model,
        layers: Sequence[Layer],
        *,
        samples: Tensor | None = None,
        **options: Any,
    ) -> Iterator[Tap]:
        """Yields a function from images and their indices to the tables of all layers."""
        with ExitStack() as stack:
            yield _Tap(self, model, layers, samples, options, stack)


@dataclass
class _Tap:
    """Measures successive batches; closing the stack releases resources created for the model."""

    source: GradientNorms
    model: Model
    layers: Sequence[Layer]
    samples: Tensor | None
    options: Mapping[str, Any]
    stack: ExitStack

    def __post_init__(self) -> None:
        self._units = self.source.chosen_units(self.layers)
        everything = self.source.chosen_method(self.layers) == "exact"
        self._exact = set(self._units if everything else self.source.exact_layers)
        self._wanted = [layer for layer in self.layers if layer.name in self._units]
        self._samples = self.source.chosen_samples(self.samples)
        self._left = self.source.samples
        self._differentiated: Differentiated | None = None

    def __call__(self, images: Tensor, index: Tensor) -> dict[str, Tensor]:
        rows = self._rows(index)
        tables = {
            layer.name: torch.full((len(images), 2 * layer.units), NOT_MEASURED, dtype=torch.double)
            for layer in self.layers
        }
        if len(rows):
            if self._differentiated is None:
                opened = _differentiated(
                    self.model, images, self._wanted, self.source.memory, self.options
                )
                self._differentiated = self.stack.enter_context(opened)
            self._differentiated.check(images)
            squares = self._squares(
                self._differentiated, images[rows.to(images.device)], index[rows]
            )
            for layer in self._wanted:
                scale = 1.0 if layer.name in self._exact else mean_chi(self.source.probes)
                units, square = self._units[layer.name], squares[layer.name]
                tables[layer.name][rows[:, None], units] = square.sqrt() / scale
                tables[layer.name][rows[:, None], units + layer.units] = square
        return tables

    def _rows(self, index: Tensor) -> Tensor:
        """The rows of a batch to measure."""
        if self._samples is not None:
            return torch.tensor([i for i, x in enumerate(index.tolist()) if x in self._samples])
        if self._left is None:
            return torch.arange(len(index))
        rows = torch.arange(min(len(index), self._left))
        self._left -= len(rows)
        return rows

    def _squares(
        self, differentiated: Differentiated, images: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Squared norms, or unbiased estimates of them, {layer: (batch, measured units)}."""
        exact = {name: units for name, units in self._units.items() if name in self._exact}
        probed = {name: units for name, units in self._units.items() if name not in self._exact}
        found = differentiated.square_norms(images, exact) if exact else {}
        squares = {name: values.cpu() for name, values in found.items()}
        if not probed:
            return squares
        probes, seed = self.source.probes, self.source.seed
        sums = {
            name: torch.zeros(len(images), len(units), dtype=torch.double)
            for name, units in probed.items()
        }
        for part, derivatives in differentiated.derivatives(images, index, probes, seed):
            for name, units in probed.items():
                values = derivatives[name][..., units.to(images.device)]
                sums[name][part] += values.cpu().double().square().sum(0)
        return squares | {name: total / probes for name, total in sums.items()}


def _differentiated(
    model: Model, images: Tensor, layers: Sequence[Layer], memory: int, options: Mapping[str, Any]
) -> AbstractContextManager[Differentiated]:
    """A model prepared to differentiate the pooled activations of some layers."""

    @contextmanager
    def read_out(one: Any) -> Iterator[Forward]:
        with Recorder(one, list(layers), grad=True, stop=True, **options) as recorder:
            recorder.paused = True  # in other passes of a model that could not be copied

            def forward(inputs: Tensor) -> dict[str, Tensor]:
                recorder.paused = False
                try:
                    recorder(inputs)
                finally:
                    recorder.paused = True
                found = recorder.activations
                check_reached(layers, found)
                return found

            yield forward

    return Differentiated.open(model, images, read_out, memory)

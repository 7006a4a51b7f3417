"""The forward pass of a stream, compiled together with the recording hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probekit.capture.layers import Layer, uncompiled
from probekit.errors import warn
from probekit.models.inputs import call

_TOLERANCE = 1e-3


class ForwardPass:
    """Runs a model eagerly or, on request, compiled.

    The first batch runs both ways and the results are compared. Batches of another size run
    eagerly, since each size would need another compilation. If compilation fails or changes the
    recorded values (`recorded` returns those of the last pass), a warning is issued and all batches
    run eagerly.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        layers: Sequence[Layer],
        recorded: Callable[[], Sequence[Mapping[str, Tensor]]],
        compile: bool,
    ) -> None:
        self._run = run
        self._recorded = recorded
        self._size: int | None = None
        self._compiled: Callable[..., Any] | None = None
        functions = [layer.name for layer in layers if layer.function]
        if compile and functions:
            warn(
                f"the model is not compiled: layer {functions[0]!r} is a function that a module calls, "
                "and functions are recorded only when the model runs uncompiled"
            )
        elif compile:
            self._compiled = torch.compile(lambda *x, **named: run(*x, **named), dynamic=False)

    @property
    def compiles(self) -> bool:
        """Whether the next pass begins with compilation."""
        return self._compiled is not None and self._size is None

    def __call__(self, images: Any) -> Any:
        """Returns the output of the model for a copy of a batch of images or of named inputs."""
        if self._compiled is None or self._size not in (None, len(images)):
            return self._as_written(images)
        if self._size is None:
            self._size = len(images)
            return self._first(images)
        return call(self._compiled, images)

    def _as_written(self, images: object) -> Any:
        with uncompiled():
            return call(self._run, images)

    def _first(self, images: object) -> Any:
        """Compiles the model and runs the first batch both ways."""
        compiled, self._compiled = self._compiled, None
        assert compiled is not None
        try:
            given = call(compiled, images)
            found = [dict(tables) for tables in self._recorded()]
        except Exception as error:  # compilers may raise any exception
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warn(f"the model is not compiled: {reason}")
            return self._as_written(images)
        output = self._as_written(images)
        for tables, expected in zip(found, self._recorded(), strict=True):
            for name, values in expected.items():
                if not _alike(tables.get(name), values):
                    warn(f"the model is not compiled: layer {name!r} would have other values")
                    return output
        if isinstance(output, Tensor) and not _alike(given, output):
            warn("the model is not compiled: its outputs would differ")
            return output
        self._compiled = compiled
        return output


def _alike(found: object, expected: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    scale = expected.abs().max() if expected.numel() else 0
    return bool(((found - expected).abs() <= _TOLERANCE * scale).all())

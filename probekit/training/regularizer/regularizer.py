"""A loss term that raises or lowers class selectivity in any training loop."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.plan import scout_layers
from probekit.capture.recorder import Layers, Tokens
from probekit.capture.subsets import subset_of
from probekit.checks import integer, number, one_of
from probekit.errors import DataError, LayerError, some_of, warn
from probekit.models.image_model import Model
from probekit.training.regularizer.accumulation import Accumulation, TrainingRecorder
from probekit.training.regularizer.batch_selectivity import (
    TrainingNegative,
    add_sums,
    batch_selectivity,
    by_layer,
    check_labels,
    class_sums,
    sum_over_processes,
)

_MOST_SHARED = 2**16
_POLICIES = {
    "clip": "count as zero",
    "keep": "take the index out of [0, 1], and its gradient has no bound",
    "shift": "have the lowest subtracted",
}


class SelectivityRegularizer:
    """Adds `-alpha * mean class selectivity of the batch` to the loss of any training loop.

    Its hooks stay on the model until `close()` or the end of a `with` block. After each forward pass
    with gradients, call `penalty(labels)` once and add its value to the loss. Forward passes without
    gradients, such as in validation, are ignored. The first forward pass finds the layers.

    Args:
        model: The module that is trained, before or after `DistributedDataParallel` wraps it.
        alpha: Below 0 lowers selectivity, above 0 raises it; 0 is bit-identical to plain training.
        layers: As for `Recorder`: None selects every activation-function output except the
            classifier's. Also `"first:3"`, `"last:3"` or `"but-last-stage"` of these.
        eps: As for `class_selectivity`.
        negative: Treatment of class means below zero, as for `class_selectivity`, except `"nan"`,
            which would have no gradient. With `"keep"` the gradient is unbounded.
        classes: Number of classes. None reads it from the labels, which synchronizes a GPU.
        images: A few inputs, used to find the layers immediately, in eval mode and without gradients.
            Required for `torch.compile`.
        tokens: As for `Recorder`.
        output: As for `Recorder`.
        accumulation: What to do if gradients of several batches are accumulated without `gathering`:
            `"refuse"` raises an error, `"each"` uses the selectivity of each batch separately.
        across_processes: With `torch.distributed`, compute the class means over the batches of all
            processes. All processes must then call the penalty equally often.

    Attributes:
        layers: The layers, known after the first forward pass.

    Raises:
        LayerError: As for `Recorder`, or a layer is under reentrant activation checkpointing.
        OptionError: An option is invalid, such as an alpha that is not a number.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262): loss = cross-entropy - alpha * (mean over layers of
        the mean over units of the index), with the class means of the minibatch.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> images, labels = pk.images_at(data, range(40))
        >>> with pk.SelectivityRegularizer(model, alpha=-1.0, layers="last:3") as penalty:
        ...     loss = torch.nn.functional.cross_entropy(model(images), labels) + penalty(labels)
        >>> list(penalty.selectivity)
        ['layer3.1.relu2', 'layer3.2.relu1', 'layer3.2.relu2']
    """

    def __init__(
        self,
        model: Model,
        alpha: float,
        layers: Layers = None,
        *,
        eps: float = 1e-6,
        negative: TrainingNegative = "clip",
        classes: int | None = None,
        images: Tensor | None = None,
        tokens: Tokens = "all",
        output: int | str | None = None,
        accumulation: Literal["refuse", "each"] = "refuse",
        across_processes: bool = True,
    ) -> None:
        number("eps", eps, least=0)
        one_of("negative", negative, _POLICIES)
        if classes is not None:
            integer("classes", classes, least=2)
        one_of("accumulation", accumulation, ("refuse", "each"))
        self.alpha = alpha
        self._eps = eps
        self._negative: TrainingNegative = negative
        self._classes = classes
        self._across = across_processes
        subset = subset_of(layers)
        chosen = None if subset else layers
        if images is not None:
            known, _ = scout_layers(model, images, chosen, tokens=tokens, output=output)
            chosen, subset = (subset(known) if subset else known), None
        self._recorder = TrainingRecorder(model, chosen, subset, tokens=tokens, output=output)
        self._accumulation = (
            Accumulation(self._recorder.module) if accumulation == "refuse" else None
        )
        self._gathered: Tensor | None = None
        # Without `classes`, the labels of a step in the order of the rows of its sums.
        self._row_labels = torch.zeros(0, dtype=torch.long)
        self._gathering = False
        self._to_come = 0
        self._skipped: Tensor | int = 0
        self._last: tuple[list[str], Tensor] | None = None
        self._recorder.__enter__()
        self._end = weakref.finalize(self, self._recorder.__exit__, None, None, None)
        self._end.atexit = False

    @property
    def alpha(self) -> float:
        """The weight, which can be set at any time, for example to `AlphaSchedule.alpha(epoch)`."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._alpha = number("alpha", alpha)

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers in execution order, known after the first forward pass."""
        return self._recorder.layers

    @property
    def selectivity(self) -> dict[str, float]:
        """The mean selectivity of each layer in the last batch; empty before the first."""
        if self._last is None:
            return {}
        names, values = self._last
        return dict(zip(names, values.tolist(), strict=True))

    @property
    def skipped(self) -> int:
        """The number of batches with fewer than two classes, for which the penalty is zero."""
        return int(self._skipped)

    def __call__(self, labels: Tensor) -> Tensor:
        """The term to add to the loss of the last forward pass.

        Args:
            labels: (batch,), non-negative integers. Soft labels, as in mixup, are not supported.

        Returns:
            A scalar, float32 unless the activations are float64. Zero, without a graph, at alpha 0.
        """
        if not self._end.alive:
            raise LayerError("this regularizer is closed; make a new one")
        with torch.set_grad_enabled(self._alpha != 0 and not self._gathering):
            taken = self._recorder.take()
            sums = self._class_sums(list(taken.values()), labels)
            if self._gathering:
                known = self._gathered
                self._gathered = sums if known is None else add_sums(known, sums)
                self._to_come += 1
                return sums.new_zeros(())
            return self._penalty(self._with_gathered(sums), list(taken))

    def _penalty(self, sums: Tensor, names: list[str]) -> Tensor:
        group = self._processes()
        if group is not None:
            sums = sum_over_processes(sums, group)
        if self._last is None:
            self._review(sums)
        index, enough = batch_selectivity(sums, eps=self._eps, negative=self._negative)
        selectivity = by_layer(index, [layer.units for layer in self.layers])
        self._last = names, selectivity.detach()
        self._skipped = self._skipped + ~enough
        penalty = -self._alpha * selectivity.mean()
        if self._alpha == 0:
            return torch.zeros_like(penalty)
        if self._accumulation is not None and self._gathered is None and penalty.requires_grad:
            penalty.register_hook(self._accumulation.refuse)  # type: ignore[no-untyped-call]  # untyped in torch
        return penalty

    def _review(self, sums: Tensor) -> None:
        below = torch.split((sums[:, :-1] < 0).any(0), [layer.units for layer in self.layers])
        names = [layer.name for layer, units in zip(self.layers, below, strict=True) if units.any()]
        if names:
            shown = some_of(names)
            warn(
                f"class means below zero in {shown} {_POLICIES[self._negative]} "
                f"(negative={self._negative!r}); later batches are not reported"
            )

    def _class_sums(self, pooled: Sequence[Tensor], labels: Tensor) -> Tensor:
        check_labels(labels, len(pooled[0]))
        device = pooled[0].device
        labels = labels.to(device, torch.long)
        classes = self._count_classes(labels)
        if self._classes is None and self._processes() is None:
            labels, classes = self._compacted(labels)
        return class_sums([table.to(device) for table in pooled], labels, classes)

    def _compacted(self, labels: Tensor) -> tuple[Tensor, int]:
        """Labels as indices of the classes of this step, and the number of these classes."""
        if not self._gathering and self._gathered is None:
            self._row_labels = self._row_labels[:0]
        known, present = self._row_labels.to(labels.device), torch.unique(labels)
        self._row_labels = known = torch.cat([known, present[~torch.isin(present, known)]])
        order = known.argsort()
        return order[torch.searchsorted(known[order], labels)], len(known)

    def _count_classes(self, labels: Tensor) -> int:
        """The number of classes in all processes."""
        if self._classes is not None and labels.device.type != "cpu":
            return self._classes
        ends = labels.new_tensor([0, -1]) if not len(labels) else torch.stack(labels.aminmax())
        lowest, highest = map(int, ends.tolist())
        if lowest < 0 or (self._classes is not None and highest >= self._classes):
            wanted = "from 0" if self._classes is None else f"from 0 to {self._classes - 1}"
            raise DataError(
                f"labels must be integers {wanted}, not {lowest if lowest < 0 else highest}"
            )
        if self._classes is not None:
            return self._classes
        group = self._processes()
        if group is not None:
            dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=group)
            highest = int(ends[1])
            if highest >= _MOST_SHARED:
                raise DataError(
                    f"label {highest} would need sums of {highest + 1} classes in every process; number "
                    "the classes from 0, and give classes="
                )
        return max(highest, 0) + 1

    def _processes(self) -> dist.ProcessGroup | None:
        """The process group that shares a batch, or None for a single process."""
        if not (self._across and dist.is_available() and dist.is_initialized()):
            return None
        return dist.group.WORLD if dist.get_world_size() > 1 else None

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Collects the class means of a batch that is too large for one forward pass.

        Inside the context, run the model over every part of the batch and call `penalty(labels)` after
        each part; no graph is stored. Then run the parts again with gradients. Each penalty then has
        the value for the whole batch and the part's share of its gradient, so the accumulated gradient
        is that of the whole batch. Do not divide the penalty by the number of parts, as is necessary for
        the mean cross-entropy. The gradient is exact if both runs over a part give the same activations,
        which is not the case with dropout.
        """
        self._recorder.drop()
        self._gathered, self._to_come = None, 0
        self._gathering = self._recorder.without_gradients = True
        try:
            with torch.no_grad():
                yield
        except BaseException:
            self._gathered, self._to_come = None, 0
            raise
        finally:
            self._gathering = self._recorder.without_gradients = False
            self._recorder.drop()

    def _with_gathered(self, sums: Tensor) -> Tensor:
        if self._to_come == 0:
            self._gathered = None
        if self._gathered is None:
            return sums
        self._to_come -= 1
        gradient_only = sums - sums.detach()  # zero, with the gradient of this part
        return add_sums(self._gathered, gradient_only)

    def close(self) -> None:
        """Removes the hooks from the model; safe to call twice."""
        self._end()
        self._recorder.drop()

    def __enter__(self) -> SelectivityRegularizer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._end.alive else ", closed"
        return f"SelectivityRegularizer(alpha={self._alpha:g}, layers={len(self.layers)}{state})"

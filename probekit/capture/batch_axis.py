"""Determines which axis of the inputs, or which list of inputs, is the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from probekit.capture.axes import Axes, Kind, Label
from probekit.capture.tracer import Tracer


@dataclass(frozen=True)
class BatchAxis:
    """The axis of the samples of a forward pass.

    `source` is where to read their number, in the format of `count_samples`; `certain`, whether the model
    confirms that this is the batch.
    """

    label: Label | None
    size: int
    source: tuple[int, int] | None
    certain: bool = True


def first_guess(inputs: Sequence[Axes]) -> BatchAxis | None:
    """The batch that the inputs suggest: axis 0 of the first images, if there are any.

    For lists of images and inputs with fewer axes, the batch is known only after the model has run.
    """
    images = [i for i, axes in enumerate(inputs) if len(axes) > 3]
    if len({inputs[i][0][0][1] for i in images}) != 1:
        return None
    label, size = inputs[images[0]][0][0]
    return BatchAxis(label, size, (images[0], 0))


def decide(
    tracer: Tracer,
    outputs: Sequence[Axes],
    sequences: Sequence[tuple[Label, int]],
    guess: BatchAxis | None,
    inputs: Sequence[Tensor],
) -> BatchAxis:
    """The batch after the model has run, given the axes of its outputs and the batch that its inputs suggest.

    A table that the model returns has one row per sample. Otherwise, the batch is the axis that the
    model's convolutions, batch norms and sequence modules (`batch_first`) treat as such, or axis 0 of the
    images.
    """
    lengths = {axis[0][0].root: axis[0][1] for axes in tracer.inputs for axis in axes}
    first = outputs[0] if outputs else ()
    rows = [
        (label, size)
        for (label, size), *_ in first[:1]
        if label.kind in _CAN_BE_SAMPLES and lengths.get(label.root, size) == size
    ]
    ranked = sorted(tracer.votes.items(), key=lambda vote: -vote[1][0])
    declared = [(label, size) for label, (_, size) in ranked] + [
        (label, size) for label, size in sequences if label.kind in _CAN_BE_SAMPLES
    ]
    inside = {label.root for axis in first for label, _ in axis}
    table = bool(rows) and len(first) <= 2 and len(first[0]) == 1
    if table and (guess is None or rows[0][0].kind is Kind.INPUT):
        return _batch(tracer, *rows[0], inputs)
    if guess is not None and guess.label is not None and guess.label.root in inside:
        return guess
    for label, size in declared:
        if label.root in inside:
            return _batch(tracer, label.root, size, inputs)
    if guess is not None:
        for label, size in declared:  # of a batch that the model assembles itself
            if size == guess.size and guess.label not in tracer.votes:
                if guess.label is not None and label.root is guess.label.root:
                    return guess
                return BatchAxis(label, size, guess.source, certain=False)
        return guess
    if known := [*declared, *rows]:
        return _batch(tracer, *known[0], inputs)
    for i, axes in enumerate(tracer.inputs):
        if len(axes) > 1:
            return BatchAxis(*axes[0][0], (i, 0), certain=False)
    return BatchAxis(None, 0, None, certain=False)


_CAN_BE_SAMPLES = (Kind.INPUT, Kind.PLACE)


def _batch(tracer: Tracer, label: Label, size: int, inputs: Sequence[Tensor]) -> BatchAxis:
    for i, axes in enumerate(tracer.inputs):
        for j, axis in enumerate(axes):
            if axis[0][0].root is label.root:
                return BatchAxis(label, size, (i, j))
    return BatchAxis(label, size, (-1, 0) if len(inputs) == size else None)

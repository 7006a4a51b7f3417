"""How selective a layer could be in any linear basis: selectivity that hides off its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.errors import DataError, OptionError
from probekit.results.labels import strings

__all__ = ["linear_basis_selectivity"]

NegativeProjection: TypeAlias = Literal["absolute", "rectify", "clip", "shift"]


def linear_basis_selectivity(
    activations: Any,
    labels: Any = None,
    *,
    negative: NegativeProjection = "absolute",
    penalty: float = 1.0,
    steps: int = 300,
    learning_rate: float = 0.02,
    starts: int = 2,
    eps: float = 1e-6,
    seed: int = 0,
) -> xr.Dataset:
    """An upper bound, found by optimisation, of a layer's mean selectivity in a rotated basis.

    A matrix W is learned that minimises (1 - SI(A W)) + penalty * ||W'W - I||^2, where A holds the
    activations and SI is the mean class selectivity of the columns. The matrix that is found is then
    made exactly orthogonal (the nearest rotation), and the highest mean of all starts and of the
    units' own axes is the bound. A search can only find what it finds: a higher one may exist.

    A rotated axis has projections below zero, for which the papers' index is not meant; what is done
    with them is `negative`, and decides much. What discards them lets the search hide in what is
    discarded: with `"clip"` a direction whose class means are below zero but for one has the index 1
    however noisy it is, and with `"rectify"` one that is above zero for few samples. `"absolute"`
    discards nothing, and is the default.

    Args:
        activations: (sample, unit), or a recording, of which each layer is searched.
        labels: (sample,) classes; a recording has its own.
        negative: `"absolute"`: a projection's size counts, before class means are taken;
            `"rectify"`: it counts as zero where it is below, as if a ReLU followed; `"clip"`: class
            means below zero count as zero; `"shift"`: the lowest class mean is subtracted where it is
            below zero. On the units' own axes of non-negative activations all are the plain index.
        penalty: Weight of the departure from orthogonality.
        steps: Steps of Adam for each start.
        learning_rate: Its highest rate, from which it falls to zero along half a cosine.
        starts: The first is at the units' own axes, the others at random rotations.
        eps: As for `class_selectivity`.
        seed: Of the rotations.

    Returns:
        `selectivity_axes`, the mean index of the units; `selectivity_bound`, the highest mean that was
        found; `orthogonality_error`, ||W'W - I||^2 of its matrix before it was made orthogonal; all
        (layer) for a recording, whose provenance-worthy options are among the attributes.

    Raises:
        DataError: Shapes that do not fit, one class only, or NaN.
        OptionError: Options that mean nothing.

    Source:
        Our reading of the control of Leavitt & Morcos 2020 (arXiv 2003.01262); the optimiser, the
        starts and what is done with negative projections are choices of probekit's.

    Example:
        >>> labels = np.arange(300) % 3
        >>> selective = np.eye(3)[labels]
        >>> turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
        >>> found = linear_basis_selectivity(selective @ turn, labels)
        >>> found["selectivity_axes"].item() < 0.9 < found["selectivity_bound"].item()
        True
    """
    options = {
        "negative": negative, "penalty": penalty, "steps": steps, "eps": eps,
        "learning_rate": learning_rate, "starts": starts, "seed": seed,
    }  # fmt: skip
    _check(negative, penalty, steps, learning_rate, starts)
    search = _Search(**options)  # type: ignore[arg-type]
    if isinstance(activations, xr.Dataset):
        found = _by_layer(activations, search)
    else:
        if labels is None:
            raise DataError("selectivity needs labels (sample,) beside activations (sample, unit)")
        found = xr.Dataset(search.run(*_tensors(activations, labels)))
    return found.assign_attrs(options)


class _Search:
    """The optimisation, with its options."""

    def __init__(
        self,
        *,
        negative: NegativeProjection,
        penalty: float,
        steps: int,
        learning_rate: float,
        starts: int,
        eps: float,
        seed: int,
    ) -> None:
        self.negative, self.penalty, self.steps = negative, penalty, steps
        self.learning_rate, self.starts, self.eps, self.seed = learning_rate, starts, eps, seed

    def run(self, table: Tensor, labels: Tensor) -> dict[str, float]:
        """The mean index on the axes and in the best basis that is found."""
        classes = torch.unique(labels, return_inverse=True)[1]
        member = torch.nn.functional.one_hot(classes).to(table.dtype)
        share = (member / member.sum(0)).T
        units = table.shape[1]
        identity = torch.eye(units, dtype=table.dtype)
        generator = torch.Generator().manual_seed(self.seed)
        axes = self._selectivity(table, share, identity).item()
        best, error = axes, 0.0
        for start in range(self.starts):
            first = identity
            if start:
                drawn = torch.randn(units, units, generator=generator, dtype=table.dtype)
                first = torch.linalg.qr(drawn)[0]
            matrix = self._descend(table, share, first)
            left, _, right = torch.linalg.svd(matrix)
            found = self._selectivity(table, share, left @ right).item()
            if found > best:
                best, error = found, float((matrix.T @ matrix - identity).square().sum())
        return {
            "selectivity_axes": axes,
            "selectivity_bound": best,
            "orthogonality_error": error,
        }

    def _descend(self, table: Tensor, share: Tensor, first: Tensor) -> Tensor:
        matrix = first.clone().requires_grad_(True)
        identity = torch.eye(len(first), dtype=first.dtype)
        optimizer = torch.optim.Adam([matrix], self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                departure = (matrix.T @ matrix - identity).square().sum()
                loss = 1 - self._selectivity(table, share, matrix) + self.penalty * departure
                (matrix.grad,) = torch.autograd.grad(loss, matrix)
                optimizer.step()
                schedule.step()
        return matrix.detach()

    def _selectivity(self, table: Tensor, share: Tensor, matrix: Tensor) -> Tensor:
        """The mean index of the columns of table @ matrix, as class_selectivity has it."""
        if self.negative == "absolute":
            means = share @ (table @ matrix).abs()
        elif self.negative == "rectify":
            means = share @ (table @ matrix).clamp(min=0)
        else:
            means = (share @ table) @ matrix
        if self.negative == "clip":
            means = means.clamp(min=0)
        elif self.negative == "shift":
            means = means - means.amin(0).clamp(max=0)
        highest = means.amax(0)
        rest = (means.sum(0) - highest) / (len(means) - 1)
        return ((highest - rest) / (highest + rest + self.eps)).mean()


def _by_layer(recording: xr.Dataset, search: _Search) -> xr.Dataset:
    if "activation" not in recording or "label" not in recording.variables:
        raise DataError("a recording has activation(sample, unit) and label(sample)")
    table = recording["activation"].transpose("sample", "unit")
    labels = recording["label"].values
    if "layer" not in table.coords:
        return xr.Dataset(search.run(*_tensors(table.values, labels)))
    names: Sequence[str] = list(dict.fromkeys(table["layer"].values.tolist()))
    found = [
        search.run(*_tensors(table.values[:, table["layer"].values == name], labels))
        for name in names
    ]
    return xr.Dataset(
        {key: ("layer", [one[key] for one in found]) for key in found[0]},
        coords={"layer": strings(names)},
    )


def _tensors(activations: Any, labels: Any) -> tuple[Tensor, Tensor]:
    table = np.asarray(activations, dtype=np.float64)
    classes = np.asarray(labels)
    if table.ndim != 2 or classes.shape != table.shape[:1]:
        raise DataError(
            f"activations are (sample, unit) and labels (sample,), not {table.shape} and "
            f"{classes.shape}"
        )
    if not np.isfinite(table).all():
        raise DataError("the activations hold NaN or infinity, so that selectivity has no meaning")
    if len(np.unique(classes)) < 2:
        raise DataError("selectivity compares classes, and the samples are of one class only")
    return torch.from_numpy(table), torch.from_numpy(classes.astype(np.int64))


def _check(negative: Any, penalty: Any, steps: Any, learning_rate: Any, starts: Any) -> None:
    if negative not in get_args(NegativeProjection):
        known = ", ".join(get_args(NegativeProjection))
        raise OptionError(f"negative is one of {known}, not {negative!r}")
    for name, value in (("penalty", penalty), ("learning_rate", learning_rate)):
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise OptionError(f"{name} is a number above 0, not {value!r}")
    for name, value in (("steps", steps), ("starts", starts)):
        if not isinstance(value, int) or value < 1:
            raise OptionError(f"{name} is a whole number from 1, not {value!r}")

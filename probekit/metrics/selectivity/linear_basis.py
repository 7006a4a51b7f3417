"""A search for the rotation of a layer's units with the highest class selectivity."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from probekit.checks import integer, number, one_of
from probekit.errors import DataError
from probekit.metrics.selectivity.index import SelectivityIndex, enough_classes
from probekit.statistics.decompositions import singular_vectors
from probekit.statistics.feeding import by_layer, table_and_labels

NegativeProjection: TypeAlias = Literal["absolute", "rectify", "clip", "shift"]
_BLOCK = 100  # steps between two convergence checks
_COOLINGS = 3  # number of times that the learning rate is divided by four before a search ends


def linear_basis_selectivity(
    activations: npt.ArrayLike | xr.DataArray | xr.Dataset,
    labels: npt.ArrayLike | None = None,
    *,
    negative: NegativeProjection = "absolute",
    penalty: float = 1.0,
    steps: int = 4000,
    learning_rate: float = 0.02,
    starts: int = 3,
    tolerance: float = 1e-3,
    held_out: float = 0.25,
    permutations: int = 1,
    eps: float = 1e-6,
    seed: int = 0,
) -> xr.Dataset:
    """The highest mean selectivity of a layer that a search finds in a rotated basis.

    The search learns a matrix W that minimizes (1 - SI(A W)) + penalty * ||W'W - I||^2, where A is the
    matrix of activations and SI is the mean class selectivity of the columns. W is then replaced by the
    nearest rotation. The search is heuristic: a higher value may exist. Compare two networks only if
    their searches have converged, and compare the result with the floor, which is the result of the
    same search under permuted labels. Adding a constant to the activations lowers the result, as it
    lowers the index itself.

    Projections on a rotated axis can be negative, and the index is not defined for negative values. The
    treatment of negative values matters: if it discards them, the search can exploit what is discarded.
    With `"clip"`, a direction with only one positive class mean has the index 1 however noisy it is.
    The same holds with `"rectify"` for a direction that is positive for few samples. `"absolute"`
    discards nothing.

    Args:
        activations: (sample, unit), or a recording; each layer of a recording is searched.
        labels: Classes (sample,); a recording contains its own labels.
        negative: Treatment of negative values. `"absolute"`: take the absolute value of each projection
            before computing class means; `"rectify"`: set negative projections to zero, as a ReLU does;
            `"clip"`: set negative class means to zero; `"shift"`: subtract the lowest class mean if it
            is negative. For non-negative activations, all four are the plain index on the unit axes.
        penalty: Weight of the orthogonality penalty.
        steps: Maximum number of Adam steps per start.
        learning_rate: Initial learning rate, divided by four whenever 100 steps gain less than
            `tolerance`.
        starts: Number of starts. The first is at the unit axes, the second at a rotation with one axis
            along the mean activation, the others at random rotations.
        tolerance: A search has converged when the learning rate has decreased three times and 100 more
            steps gain less than this.
        held_out: Fraction of each class's samples that are held out from the search; 0 for none.
        permutations: Number of searches under permuted labels; 0 for none.
        eps: As for `class_selectivity`.
        seed: Seed of the rotations, the held-out samples and the permutations.

    Returns:
        On the samples used by the search: `selectivity_axes`, the mean index of the units;
        `selectivity_found`, the highest mean of all starts and of the unit axes; `selectivity_floor`,
        the same under permuted labels (mean over permutations). On the held-out samples:
        `selectivity_axes_held_out`, and `selectivity_held_out` for the basis found by the search. Of
        the best start: `converged`, `steps_taken`, `start`, and `orthogonality_error`, ||W'W - I||^2
        before W was replaced by a rotation. Values are NaN if no samples were held out or permuted. For
        a recording, all have the dimension `layer`. The options are stored as attributes.
        `selectivity_bound` is the deprecated former name of `selectivity_found`.

    Raises:
        DataError: Shapes do not match, there is only one class, or there is NaN.
        OptionError: An option is not valid.

    Source:
        Our interpretation of the control of Leavitt & Morcos 2020 (arXiv 2003.01262); the optimizer,
        the starts and the treatment of negative projections are probekit's choices.

    Example:
        >>> labels = np.arange(300) % 3
        >>> selective = np.eye(3)[labels]
        >>> turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
        >>> found = linear_basis_selectivity(selective @ turn, labels, starts=2, permutations=0)
        >>> found["selectivity_axes"].item() < 0.9 < found["selectivity_found"].item()
        True
        >>> bool(found["converged"])
        True
    """
    search = _Search(
        negative=negative, penalty=penalty, steps=steps, learning_rate=learning_rate, starts=starts,
        tolerance=tolerance, held_out=held_out, permutations=permutations, eps=eps, seed=seed,
    )  # fmt: skip
    if isinstance(activations, xr.Dataset):

        def of_layer(part: xr.Dataset) -> xr.Dataset:
            table, labels = table_and_labels(part)
            return xr.Dataset(search.run(*_tensors(table.values, labels)))

        found = by_layer(activations, of_layer)
    elif labels is None:
        raise DataError(
            "selectivity needs labels (sample,) in addition to activations (sample, unit)"
        )
    else:
        found = xr.Dataset(search.run(*_tensors(activations, labels)))
    return found.assign(selectivity_bound=found["selectivity_found"]).assign_attrs(asdict(search))


class _SearchResult(NamedTuple):
    """The result of one search: a rotation, its selectivity, and how the search ended."""

    value: float
    rotation: Tensor
    converged: bool
    steps: int
    error: float


@dataclass(frozen=True)
class _Search:
    """A search with its options."""

    negative: NegativeProjection
    penalty: float
    steps: int
    learning_rate: float
    starts: int
    tolerance: float
    held_out: float
    permutations: int
    eps: float
    seed: int

    def __post_init__(self) -> None:
        one_of("negative", self.negative, get_args(NegativeProjection))
        for name in ("penalty", "learning_rate", "tolerance"):
            number(name, getattr(self, name), above=0)
        for name, least in (("steps", 1), ("starts", 1), ("permutations", 0)):
            integer(name, getattr(self, name), least=least)
        number("held_out", self.held_out, least=0, below=1)
        SelectivityIndex(self.eps)

    def run(self, table: Tensor, labels: Tensor) -> dict[str, float]:
        draws = np.random.default_rng(self.seed)
        apart = _held_out(labels.numpy(), self.held_out, draws)
        held_out, held_out_labels = table[apart], labels[apart]
        table, labels = table[~apart], labels[~apart]
        identity = torch.eye(table.shape[1], dtype=table.dtype)
        best, start = self._best(table, labels)
        floors = [
            self._best(table, labels[torch.from_numpy(draws.permutation(len(labels)))])[0].value
            for _ in range(self.permutations)
        ]

        def outside(basis: Tensor) -> float:
            if len(torch.unique(held_out_labels)) < 2:
                return float("nan")
            return self._selectivity(held_out, _shares(held_out_labels), basis).item()

        return {
            "selectivity_axes": self._selectivity(table, _shares(labels), identity).item(),
            "selectivity_found": best.value,
            "selectivity_floor": float(np.mean(floors)) if floors else float("nan"),
            "selectivity_axes_held_out": outside(identity),
            "selectivity_held_out": outside(best.rotation),
            "converged": best.converged,
            "steps_taken": best.steps,
            "start": start,
            "orthogonality_error": best.error,
        }

    def _best(self, table: Tensor, labels: Tensor) -> tuple[_SearchResult, int]:
        """The best result of all starts, and the number of that start."""
        share = _shares(labels)
        ends = [self._descend(table, share, first) for first in self._first(table)]
        start = int(np.argmax([end.value for end in ends]))
        return ends[start], start

    def _first(self, table: Tensor) -> list[Tensor]:
        """The starting points: the unit axes, a rotation toward the mean, random rotations."""
        units = table.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        found = [torch.eye(units, dtype=table.dtype)]
        for start in range(1, self.starts):
            drawn = torch.randn(units, units, generator=generator, dtype=table.dtype)
            if start == 1:
                drawn[:, 0] = table.mean(0)
            found.append(torch.linalg.qr(drawn)[0])
        return found

    def _descend(self, table: Tensor, share: Tensor, first: Tensor) -> _SearchResult:
        matrix = first.clone().requires_grad_(True)
        identity = torch.eye(len(first), dtype=first.dtype)
        optimizer = torch.optim.Adam([matrix], self.learning_rate)
        best = _SearchResult(self._selectivity(table, share, first).item(), first, False, 0, 0.0)
        before, coolings = -1.0, 0
        for step in range(1, self.steps + 1):
            with torch.enable_grad():
                departure = (matrix.T @ matrix - identity).square().sum()
                loss = 1 - self._selectivity(table, share, matrix) + self.penalty * departure
                (matrix.grad,) = torch.autograd.grad(loss, matrix)
            optimizer.step()
            if step % _BLOCK and step < self.steps:
                continue
            left, _, right = singular_vectors(matrix.detach())
            value = self._selectivity(table, share, left @ right).item()
            if value > best.value:
                best = _SearchResult(value, left @ right, False, step, float(departure.detach()))
            if value - before < self.tolerance:
                if coolings == _COOLINGS:
                    return best._replace(converged=True, steps=step)
                coolings += 1
                optimizer.param_groups[0]["lr"] /= 4
            before = value
        return best._replace(converged=False, steps=self.steps)

    def _selectivity(self, table: Tensor, share: Tensor, matrix: Tensor) -> Tensor:
        """The mean index of the columns of table @ matrix."""
        index = SelectivityIndex(self.eps, "shift" if self.negative == "shift" else "clip")
        if self.negative == "absolute":
            means = share @ (table @ matrix).abs()
        elif self.negative == "rectify":
            means = share @ (table @ matrix).clamp(min=0)
        else:
            means = (share @ table) @ matrix
        return index.at(means.T).mean()


def _shares(labels: Tensor) -> Tensor:
    """The weight of each sample in the mean of its class (classes, samples)."""
    member = torch.nn.functional.one_hot(torch.unique(labels, return_inverse=True)[1]).double()
    return (member / member.sum(0)).T


def _held_out(
    labels: npt.NDArray[np.int64], share: float, draws: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """A mask of held-out samples: a fraction of each class, never all samples of a class."""
    apart = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = draws.permutation(np.flatnonzero(labels == label))
        apart[own[: min(round(share * len(own)), len(own) - 1)]] = True
    return apart


def _tensors(activations: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Tensor, Tensor]:
    table = np.asarray(activations, dtype=np.float64)
    classes = np.asarray(labels)
    if table.ndim != 2 or classes.shape != table.shape[:1]:
        raise DataError(
            f"activations must be (sample, unit) and labels (sample,), not {table.shape} and "
            f"{classes.shape}"
        )
    if not np.isfinite(table).all():
        raise DataError("the activations contain NaN or infinity, so they have no selectivity")
    enough_classes(len(np.unique(classes)))
    return torch.from_numpy(table), torch.from_numpy(classes.astype(np.int64))

"""The base class of all statistics: options, a state of tensors, and four methods; and tables of rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, Protocol, Self, TypeVar, get_args, runtime_checkable

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.pooling import precise
from probekit.capture.readouts import Activations, Readout, Spatial
from probekit.checks import one_of
from probekit.errors import DataError, OptionError
from probekit.runtime.processes import processes

Key = TypeVar("Key")
Value = TypeVar("Value")


@runtime_checkable
class StatisticLike(Protocol):
    """The interface of a statistic that analyses use."""

    def fresh(self) -> Self:
        """An empty statistic with the same options."""

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the statistic with a batch.

        Args:
            activations: (batch, columns).
            labels: (batch,), non-negative integers.
            index: (batch,), the samples' indices in the data.

        Raises:
            DataError: The batch does not have this form.
            OptionError: The state would exceed the memory allowed.
        """

    def merge(self, other: Self) -> None:
        """Adds the samples of another statistic with the same options."""

    def to_xarray(self) -> xr.DataArray | xr.Dataset:
        """The statistic as a labeled array or dataset, with a `unit` dimension if it is per unit."""


@dataclass
class Statistic:
    """Base class of statistics: options are fields, and `state` depends on the samples.

    Two statistics are equal if their options are equal, so metrics that need the same statistic can
    share it. `uses_labels` states whether the statistic depends on labels; if not, data without labels
    can be used. `state` holds only tensors, so it can be saved and loaded as safetensors.
    `StatisticLike` describes the methods.

    Example:
        >>> @dataclass
        ... class Peak(Statistic):
        ...     "The highest activation of each unit."
        ...
        ...     def update(self, activations, labels, index=None):
        ...         if len(activations):
        ...             self._keep(activations.detach().amax(0))
        ...
        ...     def merge(self, other):
        ...         if other.state:
        ...             self._keep(other.state["peak"])
        ...
        ...     def _keep(self, peak):
        ...         self.state = {"peak": torch.maximum(self.state.get("peak", peak), peak)}
        ...
        ...     def to_xarray(self):
        ...         return xr.DataArray(self._on_cpu()["peak"].numpy(), dims="unit", name="peak")
        >>> statistic = Peak()
        >>> statistic.update(torch.tensor([[1.0, 5.0], [3.0, 2.0]]), torch.tensor([0, 1]))
        >>> statistic.to_xarray().values
        array([3., 5.], dtype=float32)
    """

    uses_labels: ClassVar[bool] = True

    state: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @property
    def source(self) -> Readout:
        """The table of a layer that updates it: by default, the activations pooled over positions."""
        return Activations()

    def fresh(self) -> Self:
        """An empty statistic with the same options."""
        return replace(self, state={})

    def to(self, device: torch.device | str) -> None:
        """Moves the state to a device."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}

    def _on_cpu(self) -> dict[str, Tensor]:
        """The state for NumPy: on the CPU, with half precision as float32; `DataError` without samples."""
        if not self.state:
            raise DataError(f"{type(self).__name__} has no samples; update it first")
        return {name: one.to(precise(one.dtype)).cpu() for name, one in self.state.items()}


@dataclass
class SpatialStatistic(Statistic):
    """A statistic of activations: units pooled over the positions of a map (`spatial="mean"`), with every
    position as a row (`"positions"`), or the elements of the map (`"flatten"`).
    """

    spatial: Spatial = "mean"

    def __post_init__(self) -> None:
        one_of("spatial", self.spatial, get_args(Spatial))

    @property
    def source(self) -> Activations:
        return Activations(self.spatial)


def accumulator(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros in float64 on a tensor's device, or on the CPU if the device does not support float64."""
    device = torch.device("cpu") if like.device.type == "mps" else like.device
    return torch.zeros(*shape, dtype=torch.float64, device=device)


def add_to(state: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Adds tensors to those of the same name in a state; new names get a copy."""
    for name, values in parts.items():
        known = state.get(name)
        state[name] = values.clone() if known is None else known + values.to(known.device)


def check_batch(activations: Tensor, labels: Tensor, *, uses_labels: bool = True) -> None:
    """Raises `DataError` unless a batch has one label per row, and labels that are used are class numbers."""
    for name, given in (("activations", activations), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise DataError(
                f"{name} must be a tensor, not {type(given).__name__}; convert them with torch.as_tensor"
            )
    if labels.shape != activations.shape[:1]:
        raise DataError(
            f"{tuple(activations.shape)} activations need one label per row, not "
            f"{tuple(labels.shape)}"
        )
    if uses_labels and (labels.is_floating_point() or labels.is_complex()):
        raise DataError(f"labels must be integers, not {labels.dtype}")
    if uses_labels and len(labels) and int(labels.min()) < 0:
        raise DataError(f"label {int(labels.min())} is below 0")


def distinct(values: Iterable[Value]) -> list[Value]:
    """The values without those that equal an earlier one; statistics cannot be hashed."""
    found: list[Value] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def merged(statistics: Mapping[Key, Any]) -> dict[Key, Any]:
    """Merges the statistics of all processes in the order of their ranks.

    Every process passes the statistics of its share of the samples and receives those of all
    samples. A process whose share was empty may lack a key.
    """
    together = processes()
    if together.world == 1:
        return dict(statistics)
    for one in statistics.values():
        if isinstance(one, Statistic):
            one.to("cpu")
    whole: dict[Key, Any] = {}
    for part in together.gather(dict(statistics)):
        for key, one in part.items():
            whole.setdefault(key, one.fresh()).merge(one)
    return whole


@dataclass
class ClassSums(Statistic):
    """Sums with one row per class, for the classes in `label` (classes,), which are in increasing order.

    State: `label`, the number of samples `count` (classes,), and sums (classes, ...).
    """

    @abstractmethod
    def _shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        """The shape of the rows of each sum."""

    @abstractmethod
    def _check(self, classes: int, columns: int) -> None:
        """Checks that the sums fit into memory; called before they grow."""

    def merge(self, other: Self) -> None:
        if other.state:
            rows = self._rows(other.state["label"], other.state["sum"])
            for name in ("count", *self._shapes(0)):
                self.state[name][rows] += other.state[name].to(rows.device)

    def _rows(self, labels: Tensor, like: Tensor) -> Tensor:
        """The row of each label, on the device of the sums; new labels get a row."""
        columns = like.shape[-1]
        if not self.state:
            for name, shape in self._shapes(columns).items():
                self.state[name] = accumulator((0, *shape), like)
            none = torch.zeros(0, dtype=torch.int64, device=self.state["sum"].device)
            self.state |= {"count": none, "label": none}
        known = self.state["label"]
        labels = labels.to(known.device)
        every = torch.unique(torch.cat([known, labels]))
        if len(every) > len(known):
            self._check(len(every), columns)
            self.state = with_classes(self.state, every)
        return torch.searchsorted(every, labels)


def with_classes(state: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Extends tables to more labels (in increasing order), with zero rows for new labels."""
    place = torch.searchsorted(labels, state["label"])
    grown = {}
    for name, values in state.items():
        grown[name] = values.new_zeros(len(labels), *values.shape[1:])
        grown[name][place] = values
    return grown | {"label": labels}


def lowest_rows(
    known: dict[str, Tensor], offered: dict[str, Tensor], most: int
) -> dict[str, Tensor]:
    """Selects the rows with the lowest random numbers in `order` from two sets of tables."""
    both = {
        name: torch.cat([known[name], rows.detach().to(known[name])]) if known else rows.detach()
        for name, rows in offered.items()
    }
    lowest = both["order"].argsort(stable=True)[:most]
    return {name: rows[lowest.to(rows.device)] for name, rows in both.items()}


def append(state: dict[str, Tensor], **parts: Tensor) -> None:
    """Adds the tensors of a batch to a state, each under its name and the number of the batch."""
    number = 1 + max((int(name.rpartition(".")[2]) for name in state if "." in name), default=-1)
    for name, values in parts.items():
        state[f"{name}.{number}"] = values.detach().clone()


def gather(state: dict[str, Tensor], name: str) -> list[Tensor]:
    """The tensors of all batches under a name, in the order in which they were added."""
    numbers = [int(key.rpartition(".")[2]) for key in state if key.startswith(f"{name}.")]
    return [state[f"{name}.{number}"] for number in sorted(numbers)]


def nbytes(state: dict[str, Tensor]) -> int:
    return sum(values.nbytes for values in state.values())


def columns_of(layer: Layer, spatial: str) -> int:
    return layer.units * (prod(layer.positions) if spatial == "flatten" else 1)


def check_memory(needed: int, memory: int, what: str, remedy: str) -> None:
    """Raises `OptionError` if the required memory exceeds the limit; the message ends with the remedy."""
    if needed > memory:
        raise OptionError(
            f"{what} needs {format_bytes(needed)} of memory, and memory={memory} allows "
            f"{format_bytes(memory)}; {remedy}, or raise memory"
        )


def format_bytes(size: int) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    step = min(len(units) - 1, max(0, (int(size).bit_length() - 1) // 10))
    return f"{size / 1024**step:.1f} {units[step]}" if step else f"{size} bytes"

"""What a metric is, and how a function becomes one that `analyze` knows by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import xarray as xr

from probekit.errors import OptionError, close_matches
from probekit.statistics.base import Statistic

__all__ = ["Metric", "get_metric", "layer_metric", "list_metrics", "resolve", "unit_metric"]

ENTRY_POINTS = "probekit.metrics"


@runtime_checkable
class Metric(Protocol):
    """What an analysis asks of a metric.

    Attributes:
        name: What results and the command line call it.
        needs: The statistics that it is computed from.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Sequence[Any]: ...

    def evaluate(self, *statistics: Any) -> tuple[xr.Dataset, xr.Dataset]:
        """One layer's numbers from its statistics.

        Returns:
            A dataset with the dimension `unit`, and one of numbers of the whole layer.
        """
        ...

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Sentences about what the reader of the whole result must know."""
        ...


Level: TypeAlias = Literal["unit", "layer"]
Function: TypeAlias = Callable[..., xr.DataArray | xr.Dataset]


@dataclass(frozen=True)
class FunctionMetric:
    """A metric made of one pure function."""

    name: str
    needs: tuple[Any, ...]
    function: Function
    level: Level

    def evaluate(self, *statistics: Any) -> tuple[xr.Dataset, xr.Dataset]:
        """Calls the function for one layer."""
        found = self.function(*statistics)
        named = found.to_dataset(name=self.name) if isinstance(found, xr.DataArray) else found
        if self.level == "unit" and "unit" not in named.dims:
            raise OptionError(
                f"unit metric {self.name!r} must return an array with the dimension 'unit', "
                f"not {tuple(named.dims)}; for one number a layer use layer_metric"
            )
        return (named, xr.Dataset()) if self.level == "unit" else (xr.Dataset(), named)

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Nothing to say."""
        return []


_REGISTERED: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Makes a metric known by its name; a later one of the same name replaces it."""
    _REGISTERED[metric.name] = metric
    return metric


def unit_metric(*, needs: Any, name: str | None = None) -> Callable[[Function], Function]:
    """Registers a function from statistics to one number a unit.

    Args:
        needs: A statistic, or a sequence of them (classes or configured ones); the function is
            called with the `to_xarray()` of each, for one layer at a time.
        name: What to call it; the function's name otherwise.

    Example:
        >>> from probekit.statistics.class_means import ClassMeans
        >>> @unit_metric(needs=ClassMeans)
        ... def highest_class_mean(class_mean):
        ...     return class_mean.max("class")
        >>> "highest_class_mean" in list_metrics()
        True
    """
    return _registrar(needs, name, "unit")


def layer_metric(*, needs: Any, name: str | None = None) -> Callable[[Function], Function]:
    """Registers a function from statistics to one number (or a few) a layer, as `unit_metric`."""
    return _registrar(needs, name, "layer")


def _registrar(needs: Any, name: str | None, level: Level) -> Callable[[Function], Function]:
    wanted = needs if isinstance(needs, list | tuple) else (needs,)

    def wrap(function: Function) -> Function:
        register(FunctionMetric(name or function.__name__, statistics(wanted), function, level))
        return function

    return wrap


def statistics(needs: Iterable[Any]) -> tuple[Any, ...]:
    """Statistics as configured objects, made from classes where they are given as classes."""
    made = tuple(need() if isinstance(need, type) else need for need in needs)
    for statistic in made:
        if not hasattr(statistic, "update") or not hasattr(statistic, "to_xarray"):
            raise OptionError(f"a metric needs statistics, and {statistic!r} is none")
    return made


def list_metrics() -> list[str]:
    """The names that `analyze` and the command line know."""
    _load_built_in()
    return sorted({*_REGISTERED, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def get_metric(name: str) -> Metric:
    """A metric by name: a registered one, or one that an installed package provides.

    Raises:
        OptionError: No such metric.
    """
    _load_built_in()
    if name not in _REGISTERED:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            loaded = point.load()
            if isinstance(loaded, Metric):
                register(loaded)
            if name not in _REGISTERED:
                raise OptionError(
                    f"entry point {point.value!r} promises the metric {name!r} and registers none "
                    "of that name; decorate its function with unit_metric or layer_metric"
                )
    if name not in _REGISTERED:
        raise OptionError(
            f"no metric is named {name!r}; {close_matches(name, list_metrics(), what='metric')}"
        )
    return _REGISTERED[name]


def resolve(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Metrics from names, configured objects and classes.

    Raises:
        OptionError: Something that is no metric, none at all, or two of one name.
    """
    asked = metrics if isinstance(metrics, list | tuple) else [metrics]
    found: list[Metric] = []
    for metric in asked:
        made = get_metric(metric) if isinstance(metric, str) else metric
        made = made() if isinstance(made, type) else made
        if not isinstance(made, Metric):
            known = _metric_of(made)
            if known is None:
                raise OptionError(f"a metric is a name or a metric object, not {made!r}")
            made = known
        found.append(made)
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"metrics must be one or more different ones, not {names}")
    return found


def _metric_of(function: Any) -> Metric | None:
    """The metric that a decorated function became."""
    same = (
        metric
        for metric in _REGISTERED.values()
        if isinstance(metric, FunctionMetric) and metric.function is function
    )
    return next(same, None)


def _load_built_in() -> None:
    import probekit.metrics.chance
    import probekit.metrics.dimensionality
    import probekit.metrics.interval
    import probekit.metrics.selectivity
    import probekit.metrics.split_half  # noqa: F401


# `Statistic` is what `needs` is usually made of; named here for those who read the types.
Needs: TypeAlias = "type[Statistic] | Statistic | Sequence[type[Statistic] | Statistic]"

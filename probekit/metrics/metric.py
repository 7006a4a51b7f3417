"""What a metric is, and the names by which `analyze` and the command line know metrics."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any, Literal, TypeAlias, TypeVar, cast

import xarray as xr

import probekit.metrics
from probekit.errors import OptionError, ProbekitError, close_matches
from probekit.statistics.base import StatisticLike
from probekit.statistics.feeding import feed

__all__ = [
    "FunctionMetric",
    "Metric",
    "configured",
    "get_metric",
    "layer_metric",
    "list_metrics",
    "register",
    "resolve",
    "unit_metric",
]

ENTRY_POINTS = "probekit.metrics"

Level: TypeAlias = Literal["unit", "layer"]
Function = TypeVar("Function", bound=Callable[..., Any])


class Metric(ABC):
    """Base of all metrics: what an analysis asks of one, with defaults for what most do not need.

    A metric is usually a frozen dataclass whose fields are its options; `unit_metric` and
    `layer_metric` make one from a function.

    Example:
        >>> from dataclasses import dataclass
        >>> from probekit.statistics.class_means import ClassMeans
        >>> @dataclass(frozen=True)
        ... class HighestMean(Metric):
        ...     @property
        ...     def name(self):
        ...         return "highest_mean"
        ...
        ...     @property
        ...     def needs(self):
        ...         return (ClassMeans(),)
        ...
        ...     def evaluate(self, class_mean):
        ...         return xr.Dataset({"highest_mean": class_mean.max("class")}), xr.Dataset()
        >>> HighestMean().review(xr.Dataset(), xr.Dataset())
        []
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in results and on the command line."""

    @property
    @abstractmethod
    def needs(self) -> Sequence[Any]:
        """The statistics that it is computed from."""

    @abstractmethod
    def evaluate(self, *statistics: Any) -> tuple[xr.Dataset, xr.Dataset]:
        """One layer's numbers from the `to_xarray()` of its statistics.

        Returns:
            A dataset with the dimension `unit`, and one of numbers of the whole layer.
        """

    def fitted(
        self, model: Any, images: Any, layers: Sequence[Any], **reading: Any
    ) -> tuple[Metric, str]:
        """The metric for one model, from a few images before the pass, and a warning or `""`."""
        return self, ""

    def describe(self, layers: Sequence[Any]) -> dict[str, Any]:
        """What it does with these layers, for the provenance, beside its options."""
        return {}

    def conclude(
        self, units: xr.Dataset, layers: xr.Dataset
    ) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
        """Further numbers from the tables of all layers: of units, of layers and of the network."""
        return xr.Dataset(), xr.Dataset(), xr.Dataset()

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Sentences about what the reader of the whole result must know; they become warnings."""
        return []


_REGISTERED: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Makes a metric known by its name; a later one of the same name replaces it."""
    _REGISTERED[metric.name] = metric
    return metric


def list_metrics() -> list[str]:
    """The names that `analyze` and the command line know."""
    _built_in()
    return sorted({*_REGISTERED, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def get_metric(name: str) -> Metric:
    """A metric by name: a registered one, or one that an installed package provides.

    Raises:
        OptionError: No such metric, or one whose package cannot be loaded.
    """
    if name not in _REGISTERED:
        _built_in()
    if name not in _REGISTERED:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            _load(point)
    if name not in _REGISTERED:
        raise OptionError(
            f"no metric is named {name!r}; {close_matches(name, list_metrics(), what='metric')}"
        )
    return _REGISTERED[name]


def resolve(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Metrics from names, configured objects, classes and decorated functions.

    Raises:
        OptionError: Something that is no metric, none at all, or two of one name.
    """
    asked = metrics if isinstance(metrics, list | tuple) else [metrics]
    found = [_metric(one) for one in asked]
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"metrics must be one or more different ones, not {names}")
    return found


@cache
def _built_in() -> frozenset[str]:
    """The names of probekit's own metrics, which register when their modules are imported."""
    before = {*_REGISTERED}
    path, prefix = probekit.metrics.__path__, f"{probekit.metrics.__name__}."
    for module in pkgutil.walk_packages(path, prefix):
        import_module(module.name)
    return frozenset(
        name
        for name, metric in _REGISTERED.items()
        if name not in before or _module_of(metric).startswith(prefix)
    )


def _module_of(metric: Metric) -> str:
    made = metric.function if isinstance(metric, FunctionMetric) else type(metric)
    return str(made.__module__)


def _metric(asked: Any) -> Metric:
    if isinstance(asked, str):
        return get_metric(asked)
    made = asked() if isinstance(asked, type) else configured(asked) or asked
    if not isinstance(made, Metric):
        raise OptionError(
            "a metric is a name, an object whose class derives from pk.Metric, or a function under "
            f"unit_metric or layer_metric, not {asked!r}"
        )
    return made


def _load(point: EntryPoint) -> None:
    """Registers what an entry point of another package leads to."""
    package = point.dist.name if point.dist else "unknown"
    try:
        loaded = point.load()
    except Exception as error:
        raise OptionError(
            f"metric {point.name!r} of the package {package!r} cannot be loaded from "
            f"{point.value!r}: {type(error).__name__}: {error}; mend or uninstall the package"
        ) from error
    loaded = loaded() if isinstance(loaded, type) else configured(loaded) or loaded
    if isinstance(loaded, Metric):
        register(loaded)
    if point.name not in _REGISTERED:
        raise OptionError(
            f"entry point {point.value!r} of the package {package!r} promises the metric "
            f"{point.name!r} and gives none of that name; decorate its function with unit_metric or "
            "layer_metric, and give both the same name"
        )


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric made of one pure function.

    Attributes:
        called: Its name.
        statistics: The statistics whose `to_xarray()` the function is called with.
        function: Gives one number (or a few) a unit, or a layer.
        level: Which of the two.
        options: Keyword arguments of the function.
    """

    called: str
    statistics: tuple[Any, ...]
    function: Callable[..., Any]
    level: Level
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name in results and on the command line."""
        return self.called

    @property
    def needs(self) -> tuple[Any, ...]:
        """The statistics."""
        return self.statistics

    def describe(self, layers: Sequence[Any]) -> dict[str, Any]:
        """The options that the function is called with."""
        known = list(signature(self.function).parameters.values())[len(self.statistics) :]
        defaults = {one.name: one.default for one in known if one.default is not one.empty}
        return defaults | dict(self.options)

    def evaluate(self, *statistics: Any) -> tuple[xr.Dataset, xr.Dataset]:
        """Calls the function for one layer.

        Raises:
            OptionError: The function fails, or returns something else than it promised.
        """
        try:
            found = self.function(*statistics, **self.options)
        except ProbekitError:
            raise
        except Exception as error:
            raise OptionError(
                f"metric {self.name!r} failed with {type(error).__name__}: {error}"
            ) from error
        table = self._table(found)
        if self.level == "layer":
            return xr.Dataset(), table
        self._check_units(table, statistics)
        return table, xr.Dataset()

    def _table(self, found: Any) -> xr.Dataset:
        if self.level == "layer" and not isinstance(found, xr.Dataset):
            try:
                found = found if isinstance(found, xr.DataArray) else xr.DataArray(float(found))
            except (TypeError, ValueError):
                raise OptionError(self._must("a number or xarray", type(found).__name__)) from None
        if not isinstance(found, xr.DataArray | xr.Dataset):
            raise OptionError(self._must("xarray", type(found).__name__))
        # Coordinates that came along would clash with those of other metrics' numbers.
        found = found.drop_vars([name for name in found.coords if name not in found.dims])
        table = found.to_dataset(name=self.name) if isinstance(found, xr.DataArray) else found
        for name, values in table.data_vars.items():
            if (self.level == "unit") != ("unit" in values.dims):
                raise OptionError(
                    self._must(
                        f"numbers {'with' if self.level == 'unit' else 'without'} the dimension 'unit'",
                        f"{name!r} of the dimensions {values.dims}",
                    )
                    + f"; for one number a {'layer' if self.level == 'unit' else 'unit'} use "
                    + f"{'layer' if self.level == 'unit' else 'unit'}_metric"
                )
        return table

    def _check_units(self, table: xr.Dataset, statistics: tuple[Any, ...]) -> None:
        sizes = {given.sizes["unit"] for given in statistics if "unit" in given.dims}
        if sizes and table.sizes["unit"] not in sizes:
            given = " or ".join(map(str, sorted(sizes)))
            raise OptionError(
                self._must(f"as many units as it is given ({given})", table.sizes["unit"])
            )

    def _must(self, wanted: str, found: Any) -> str:
        return f"{self.level} metric {self.name!r} must return {wanted}, not {found}"


def unit_metric(*, needs: Any, name: str | None = None) -> Callable[[Function], Function]:
    """Registers a function from statistics to one number a unit.

    The function is called with the `to_xarray()` of each statistic, for one layer at a time, and
    returns an array with the dimension `unit`, or a dataset of several. It stays an ordinary
    function, which also takes a recording in the place of its statistics. Its further arguments are
    options: `functools.partial(function, option=value)` is a metric too.

    Args:
        needs: A statistic, or a sequence of them (classes or configured ones); `Recorded` for the
            activations themselves.
        name: What to call it; the function's name otherwise.

    Raises:
        OptionError: `needs` holds something that is no statistic, or the name is taken or bad.

    Example:
        >>> from probekit.metrics.metric import list_metrics
        >>> from probekit.statistics.class_means import ClassMeans
        >>> @unit_metric(needs=ClassMeans)
        ... def highest_class_mean(class_mean):
        ...     return class_mean.max("class")
        >>> "highest_class_mean" in list_metrics()
        True
    """
    return _registrar(needs, name, "unit")


def layer_metric(*, needs: Any, name: str | None = None) -> Callable[[Function], Function]:
    """Registers a function from statistics to one number (or a few) a layer, as `unit_metric`.

    Example:
        >>> from probekit.statistics.covariance import Covariance
        >>> @layer_metric(needs=Covariance)
        ... def total_variance(covariance):
        ...     return float(covariance["covariance"].values.trace())
        >>> total_variance.metric.level
        'layer'
    """
    return _registrar(needs, name, "layer")


def configured(given: Any) -> FunctionMetric | None:
    """The metric that a decorated function became, with the options of a `functools.partial`.

    Raises:
        OptionError: An option that the function does not have.
    """
    options: dict[str, Any] = {}
    while isinstance(given, partial):
        options = {**given.keywords, **options}
        given = given.func
    metric = getattr(given, "metric", None)
    if not isinstance(metric, FunctionMetric):
        return None
    known = list(signature(metric.function).parameters)[len(metric.needs) :]
    for option in options:
        if option not in known:
            raise OptionError(
                f"metric {metric.name!r} has no option {option!r}; it has "
                f"{', '.join(known) or 'none'}"
            )
    return replace(metric, options=options) if options else metric


def _registrar(needs: Any, name: str | None, level: Level) -> Callable[[Function], Function]:
    wanted = _statistics(needs if isinstance(needs, list | tuple) else (needs,))

    def wrap(function: Function) -> Function:
        called = name or str(getattr(function, "__name__", ""))
        if not called.replace(".", "_").isidentifier():
            raise OptionError(f"a metric's name is made of letters, digits and _, not {called!r}")
        if not function.__module__.startswith("probekit.") and called in _built_in():
            raise OptionError(f"the metric {called!r} is built in; choose another name")

        @wraps(function)
        def on_recordings_too(*given: Any, **options: Any) -> Any:
            if len(given) == 1 and _is_recording(given[0]) and not _is_recorded(wanted):
                given = tuple(feed(given[0], statistic.fresh()) for statistic in wanted)
            return function(*given, **options)

        metric = FunctionMetric(called, wanted, function, level)
        register(metric)
        on_recordings_too.metric = metric  # type: ignore[attr-defined]
        return cast(Function, on_recordings_too)

    return wrap


def _statistics(needs: Any) -> tuple[Any, ...]:
    """Statistics as configured objects, made from classes where they are given as classes."""
    made = tuple(need() if isinstance(need, type) else need for need in needs)
    for statistic in made:
        if not isinstance(statistic, StatisticLike):
            raise OptionError(
                f"a metric needs statistics, and {statistic!r} is none: it must have fresh, update, "
                "merge and to_xarray"
            )
    if not made:
        raise OptionError("a metric needs at least one statistic")
    return made


def _is_recording(given: Any) -> bool:
    return isinstance(given, xr.Dataset) and "activation" in given


def _is_recorded(wanted: tuple[Any, ...]) -> bool:
    from probekit.statistics.recorded import Recorded

    return isinstance(wanted[0], Recorded)

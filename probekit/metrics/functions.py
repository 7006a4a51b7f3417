"""Metrics that are one pure function, registered in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from inspect import signature
from typing import Any, Literal, TypeAlias, TypeVar, cast

import xarray as xr

from probekit.errors import OptionError, ProbekitError
from probekit.metrics.metric import BUILT_IN, register
from probekit.statistics.base import StatisticLike
from probekit.statistics.feeding import feed

__all__ = ["FunctionMetric", "configured", "layer_metric", "unit_metric"]

Level: TypeAlias = Literal["unit", "layer"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class FunctionMetric:
    """A metric made of one pure function.

    Attributes:
        name: What results and the command line call it.
        needs: The statistics whose `to_xarray()` the function is called with.
        function: Gives one number (or a few) a unit, or a layer.
        level: Which of the two.
        options: Keyword arguments of the function.
    """

    name: str
    needs: tuple[Any, ...]
    function: Callable[..., Any]
    level: Level
    options: Mapping[str, Any] = field(default_factory=dict)

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

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Nothing to say."""
        return []

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
        if called in BUILT_IN and not function.__module__.startswith("probekit."):
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

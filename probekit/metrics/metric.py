"""The metric interface, and the registry of metric names for `analyze` and the command line."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import getdoc, signature
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, Unpack, cast

import xarray as xr

import probekit.metrics
from probekit.capture.layers import Layer
from probekit.errors import OptionError, ProbekitError, close_matches
from probekit.models.identity import options_of, own_code
from probekit.models.image_model import Model
from probekit.results.labels import Attributes, attributes
from probekit.statistics.base import StatisticLike
from probekit.statistics.feeding import feed
from probekit.statistics.recorded import Recorded

ENTRY_POINTS = "probekit.metrics"

Level: TypeAlias = Literal["unit", "layer"]
Function = TypeVar("Function", bound=Callable[..., Any])


class About(TypedDict, total=False):
    """The description of a variable, as keyword arguments of `probekit.results.labels.attributes`."""

    long_name: str
    description: str
    short_name: str
    units: str
    share: bool


class Metric(ABC):
    """Base class of all metrics, with default implementations of the optional methods.

    A metric is usually a frozen dataclass whose fields are its options. `unit_metric` and
    `layer_metric` create a metric from a function.

    Attributes:
        variables: The attributes (`long_name`, `units`, `description`) of the returned variables.
            Figures, terminal tables and HTML reports use them as labels.

    Example:
        >>> from dataclasses import dataclass
        >>> from probekit.statistics.class_means import ClassMeans
        >>> @dataclass(frozen=True)
        ... class HighestMean(Metric):
        ...     name = "highest_mean"
        ...     needs = (ClassMeans(),)
        ...     variables = {"highest_mean": {"long_name": "highest class mean"}}
        ...
        ...     def evaluate(self, class_mean):
        ...         return xr.Dataset({"highest_mean": class_mean.max("class")}), xr.Dataset()
        >>> HighestMean().review(xr.Dataset(), xr.Dataset())
        []
    """

    variables: Mapping[str, Attributes] = MappingProxyType({})

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in results and on the command line."""

    @property
    @abstractmethod
    def needs(self) -> Sequence[StatisticLike]:
        """The statistics that the metric is computed from."""

    @abstractmethod
    def evaluate(self, *statistics: Any) -> tuple[xr.Dataset, xr.Dataset]:
        """Computes the values of one layer from the `to_xarray()` of its statistics.

        Returns:
            A dataset with the dimension `unit`, and a dataset of values for the whole layer.
        """

    def fitted(
        self, model: Model, images: Any, layers: Sequence[Layer], **options: Any
    ) -> tuple[Metric, str]:
        """Adapts the metric to a model, given a few images; also returns a warning or `""`."""
        return self, ""

    def describe(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """Additional facts for the provenance: how these layers are measured."""
        return {}

    def conclude(
        self, units: xr.Dataset, layers: xr.Dataset
    ) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
        """Computes values of units, layers and the network that need the tables of all layers."""
        return xr.Dataset(), xr.Dataset(), xr.Dataset()

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Returns messages about the whole result, which are issued as warnings."""
        return []

    def with_attributes(self, table: xr.Dataset) -> xr.Dataset:
        """Adds the attributes of each variable, including `metric`, the name of this metric."""
        table = table.copy()
        for name in table.data_vars:
            variable = table.variables[name]
            given = self.variables.get(str(name), {})
            variable.attrs = {**given, **variable.attrs, "metric": self.name}
        return table


_REGISTERED: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Registers a metric under its name; it replaces a metric of the same name."""
    _REGISTERED[metric.name] = metric
    return metric


def list_metrics() -> list[str]:
    """The metric names that `analyze` and the command line accept.

    Example:
        >>> "selectivity" in list_metrics()
        True
    """
    _built_in()
    return sorted({*_REGISTERED, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def get_metric(name: str) -> Metric:
    """Returns a metric by name, either registered or provided by an installed package."""
    if name not in _REGISTERED:
        _built_in()
    if name not in _REGISTERED:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            _load(point)
    if name not in _REGISTERED:
        near = close_matches(name, list_metrics(), what="metric")
        if metric := metric_of(name):
            near = f"the metric {metric!r} computes it"
        elif "," in name:
            near = f"give several as a list, {name.split(',')}"
        raise OptionError(f"no metric is named {name!r}; {near}")
    return _REGISTERED[name]


def metric_of(variable: str) -> str | None:
    """The registered metric of a variable, or of the variable whose mean or quartiles it holds."""
    _built_in()
    names = {variable, variable.removesuffix("_mean"), variable.removesuffix("_quartiles")}
    found = (name for name, metric in _REGISTERED.items() if names & {name, *metric.variables})
    return next(found, None)


def resolve(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Returns metrics from names, configured objects, classes and decorated functions."""
    asked = metrics if isinstance(metrics, list | tuple) else [metrics]
    found = [get_metric(one) if isinstance(one, str) else _from_object(one) for one in asked]
    for given, metric in zip(asked, found, strict=True):
        if not isinstance(metric, Metric):
            raise OptionError(
                "a metric must be a name, an object whose class derives from pk.Metric, or a function "
                f"decorated with unit_metric or layer_metric, not {given!r}"
            )
        if not isinstance(metric.needs, tuple | list):
            raise OptionError(
                f"needs of the metric {metric.name!r} must be a tuple of statistics, such as "
                f"(pk.ClassMeans(),), not {metric.needs!r}"
            )
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"metrics must be one or more different ones, not {names}")
    return found


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric made from a pure function of the `to_xarray()` output of its statistics."""

    called: str
    statistics: tuple[StatisticLike, ...]
    function: Callable[..., Any]
    level: Level
    variables: Mapping[str, Attributes] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.called

    @property
    def needs(self) -> tuple[StatisticLike, ...]:
        return self.statistics

    def describe(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """The options that the function is called with."""
        known = list(signature(self.function).parameters.values())[len(self.statistics) :]
        defaults = {one.name: one.default for one in known if one.default is not one.empty}
        return defaults | dict(self.options)

    def evaluate(self, *statistics: Any) -> tuple[xr.Dataset, xr.Dataset]:
        try:
            returned = self.function(*statistics, **self.options)
        except ProbekitError:
            raise
        except Exception as error:
            raise OptionError(
                f"metric {self.name!r} failed with {type(error).__name__}: {error}"
            ) from error
        table = self._table(returned)
        if self.level == "layer":
            return xr.Dataset(), table
        sizes = {given.sizes["unit"] for given in statistics if "unit" in given.dims}
        if sizes and table.sizes["unit"] not in sizes:
            given = " or ".join(map(str, sorted(sizes)))
            raise OptionError(
                self._must(f"as many units as it is given ({given})", table.sizes["unit"])
            )
        return table, xr.Dataset()

    def _table(self, returned: Any) -> xr.Dataset:
        kind, of_units = type(returned).__name__, self.level == "unit"
        if not isinstance(returned, xr.DataArray | xr.Dataset):
            if of_units:
                wanted = "xarray, as in xr.DataArray(values, dims='unit')"
                raise OptionError(self._must(wanted, kind))
            try:
                returned = xr.DataArray(float(returned))
            except (TypeError, ValueError):
                raise OptionError(self._must("a number or xarray", kind)) from None
        # Other coordinates could conflict with those of variables of other metrics.
        values = returned.drop_vars([name for name in returned.coords if name not in returned.dims])
        table = values.to_dataset(name=self.name) if isinstance(values, xr.DataArray) else values
        for name, array in table.data_vars.items():
            if of_units != ("unit" in array.dims):
                wanted = f"numbers {'with' if of_units else 'without'} the dimension 'unit'"
                found = f"{name!r} of the dimensions {array.dims}"
                other = "layer" if of_units else "unit"
                advice = f"; for one number per {other} use {other}_metric"
                raise OptionError(self._must(wanted, found) + advice)
        return table

    def _must(self, wanted: str, found: object) -> str:
        return f"{self.level} metric {self.name!r} must return {wanted}, not {found}"


def unit_metric(
    *, needs: Any, name: str | None = None, **about: Unpack[About]
) -> Callable[[Function], Function]:
    """Registers a function from statistics to one value per unit.

    The function is called once per layer with the `to_xarray()` output of each statistic. It returns
    an array with the dimension `unit`, or a dataset of such arrays. The decorated function can still
    be called directly, also with a recording instead of the statistics. Its other arguments are
    options: `functools.partial(function, option=value)` is a metric too.

    Args:
        needs: A statistic or a sequence of statistics (classes or configured objects); `Recorded` for
            the activations themselves.
        name: The name of the metric and of its variable; by default the function's name.
        **about: Attributes of the variable, used as labels: `long_name`, `units`, `description` (by
            default the first sentence of the docstring), `short_name` for column headings, and
            `share=True` for fractions in [0, 1].

    Raises:
        OptionError: `needs` contains something that is not a statistic, or the name is built in or
            not valid.

    Example:
        >>> from probekit.metrics.metric import list_metrics
        >>> from probekit.statistics.class_means import ClassMeans
        >>> @unit_metric(needs=ClassMeans, long_name="highest class mean")
        ... def highest_class_mean(class_mean):
        ...     return class_mean.max("class")
        >>> "highest_class_mean" in list_metrics()
        True
    """
    return _registrar(needs, name, "unit", about)


def layer_metric(
    *, needs: Any, name: str | None = None, **about: Unpack[About]
) -> Callable[[Function], Function]:
    """Registers a function from statistics to one or more values per layer, like `unit_metric`.

    Example:
        >>> from probekit.statistics.covariance import Covariance
        >>> @layer_metric(needs=Covariance)
        ... def total_variance(covariance):
        ...     return float(covariance["covariance"].values.trace())
        >>> total_variance.metric.level
        'layer'
    """
    return _registrar(needs, name, "layer", about)


def metric_options(metric: Metric) -> dict[str, Any]:
    """The options of a metric and, for one of the user's own, the hash of its code.

    >>> metric_options(get_metric("selectivity"))["negative"]
    'clip'
    """
    options = dict(metric.options) if isinstance(metric, FunctionMetric) else options_of(metric)
    code = own_code(metric.function if isinstance(metric, FunctionMetric) else metric)
    return options | ({"code": code} if code else {})


def configured(given: object) -> FunctionMetric | None:
    """The metric of a decorated function, with the options of a `functools.partial`."""
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


@cache
def _built_in() -> frozenset[str]:
    """The names of the built-in metrics, which are registered when their modules are imported."""
    path, prefix = probekit.metrics.__path__, f"{probekit.metrics.__name__}."
    for module in pkgutil.walk_packages(path, prefix):
        import_module(module.name)
    sources = {
        name: metric.function if isinstance(metric, FunctionMetric) else type(metric)
        for name, metric in _REGISTERED.items()
    }
    return frozenset(name for name in sources if sources[name].__module__.startswith(prefix))


def _from_object(given: object) -> Any:
    """An instance of a class, the metric of a decorated function, or the object itself."""
    return given() if isinstance(given, type) else configured(given) or given


def _load(point: EntryPoint) -> None:
    """Registers the metric of an entry point of another package."""
    package = point.dist.name if point.dist else "unknown"
    try:
        loaded = point.load()
    except Exception as error:
        raise OptionError(
            f"metric {point.name!r} of the package {package!r} cannot be loaded from "
            f"{point.value!r}: {type(error).__name__}: {error}; fix or uninstall the package"
        ) from error
    metric = _from_object(loaded)
    if isinstance(metric, Metric):
        register(metric)
    if point.name not in _REGISTERED:
        raise OptionError(
            f"entry point {point.value!r} of the package {package!r} declares the metric "
            f"{point.name!r} and provides none of that name; decorate its function with unit_metric "
            "or layer_metric, and use the same name for both"
        )


def _registrar(
    needs: Any, name: str | None, level: Level, about: About
) -> Callable[[Function], Function]:
    wanted = _statistics(needs if isinstance(needs, list | tuple) else (needs,))

    def wrap(function: Function) -> Function:
        called = name or str(getattr(function, "__name__", ""))
        if not called.replace(".", "_").isidentifier():
            raise OptionError(
                f"a metric's name must consist of letters, digits and _, not {called!r}"
            )
        if not function.__module__.startswith("probekit.") and called in _built_in():
            raise OptionError(f"the metric {called!r} is built in; choose another name")

        @wraps(function)
        def on_recordings_too(*values: Any, **options: Any) -> Any:
            recording = len(values) == 1 and isinstance(values[0], xr.Dataset)
            if recording and "activation" in values[0] and not isinstance(wanted[0], Recorded):
                values = tuple(feed(values[0], statistic.fresh()) for statistic in wanted)
            return function(*values, **options)

        summary = " ".join((getdoc(function) or "").split("\n\n")[0].split())
        given: Any = {"long_name": called.replace("_", " "), "description": summary, **about}
        metric = FunctionMetric(called, wanted, function, level, {called: attributes(**given)})
        register(metric)
        on_recordings_too.metric = metric  # type: ignore[attr-defined]  # functions take attributes
        return cast(Function, on_recordings_too)

    return wrap


def _statistics(needs: Any) -> tuple[StatisticLike, ...]:
    """Statistics as configured objects; classes are instantiated."""
    made = tuple(need() if isinstance(need, type) else need for need in needs)
    for statistic in made:
        if not isinstance(statistic, StatisticLike):
            raise OptionError(
                f"a metric needs statistics, and {statistic!r} is not one: it must have fresh, update, "
                "merge and to_xarray"
            )
    if not made:
        raise OptionError("a metric needs at least one statistic")
    return made

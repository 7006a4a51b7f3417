"""What a metric is, and the names by which `analyze` and the command line know metrics."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

import xarray as xr

from probekit.errors import OptionError, close_matches

__all__ = ["BUILT_IN", "Metric", "get_metric", "list_metrics", "register", "resolve"]

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


# Each built-in metric and the module here that registers it.
BUILT_IN = {
    "class_information": "unit_metrics",
    "class_rank": "unit_metrics",
    "dimensionality": "dimensionality",
    "eta_squared": "class_separation",
    "gradient_variability": "gradient_variability",
    "lifetime_sparsity": "unit_metrics",
    "precision_selectivity": "unit_metrics",
    "preferred_class_auc": "class_separation",
    "selectivity": "selectivity.selectivity",
    "selectivity_chance": "selectivity.chance",
    "selectivity_interval": "selectivity.interval",
    "selectivity_offset_free": "selectivity.variants",
    "selectivity_per_element": "selectivity.variants",
    "selectivity_split_half": "selectivity.split_half",
    "silent_fraction": "unit_metrics",
    "top_images": "top_images",
}

_REGISTERED: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Makes a metric known by its name; a later one of the same name replaces it."""
    _REGISTERED[metric.name] = metric
    return metric


def list_metrics() -> list[str]:
    """The names that `analyze` and the command line know."""
    return sorted(
        {*BUILT_IN, *_REGISTERED, *(point.name for point in entry_points(group=ENTRY_POINTS))}
    )


def get_metric(name: str) -> Metric:
    """A metric by name: a registered one, or one that an installed package provides.

    Raises:
        OptionError: No such metric, or one whose package cannot be loaded.
    """
    if name not in _REGISTERED and name in BUILT_IN:
        import_module(f"probekit.metrics.{BUILT_IN[name]}")
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


def _metric(asked: Any) -> Metric:
    from probekit.metrics.functions import configured

    if isinstance(asked, str):
        return get_metric(asked)
    made = asked() if isinstance(asked, type) else configured(asked) or asked
    if not isinstance(made, Metric):
        raise OptionError(
            f"a metric is a name, a metric object or a function under unit_metric or layer_metric, "
            f"not {asked!r}"
        )
    return made


def _load(point: EntryPoint) -> None:
    """Registers what an entry point of another package leads to."""
    from probekit.metrics.functions import configured

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

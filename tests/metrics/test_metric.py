"""Names of metrics, and metrics of other packages."""

from __future__ import annotations

from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import xarray as xr

from probekit.errors import OptionError
from probekit.metrics import metric as registry
from probekit.metrics.dimensionality import Dimensionality
from probekit.metrics.metric import Metric, get_metric, list_metrics, resolve
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.metrics.unit_metrics import class_information, class_rank

BUILT_IN = [
    "class_information",
    "class_rank",
    "dimensionality",
    "eta_squared",
    "gradient_variability",
    "lifetime_sparsity",
    "precision_selectivity",
    "preferred_class_auc",
    "selectivity",
    "selectivity_chance",
    "selectivity_interval",
    "selectivity_offset_free",
    "selectivity_per_element",
    "selectivity_split_half",
    "silent_fraction",
    "top_images",
]


def test_default_options_of_a_metric_are_not_stored() -> None:
    metric = class_rank.metric  # type: ignore[attr-defined]  # set by the decorator
    empty = xr.Dataset()
    assert metric.review(empty, empty) == []
    assert [dict(table) for table in metric.conclude(empty, empty)] == [{}, {}, {}]
    assert metric.fitted(None, None, []) == (metric, "")


def test_options_of_functions_are_described() -> None:
    metric = resolve(partial(class_information, bins=5))[0]
    assert metric.describe([]) == {"bins": 5, "corrected": True}


def test_an_object_of_another_class_must_derive_from_metric() -> None:
    class Alone:
        name = "alone"
        needs = ()

        def evaluate(self) -> None: ...

    with pytest.raises(OptionError, match=r"derives from pk\.Metric"):
        resolve([Alone()])  # type: ignore[list-item]  # wrong on purpose


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_metrics_are_found_by_name(name: str) -> None:
    metric = get_metric(name)
    assert metric.name == name
    assert isinstance(metric, Metric)
    assert name in list_metrics()


def test_names_objects_classes_and_functions_are_accepted_as_metrics() -> None:
    found = resolve(["selectivity", Dimensionality, class_rank])
    assert [metric.name for metric in found] == ["selectivity", "dimensionality", "class_rank"]
    configured = Selectivity(eps=0)
    assert resolve(configured) == [configured]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("selectvity", "no metric is named 'selectvity'; close matches: selectivity"),
        ([], "one or more"),
        (["selectivity", Selectivity(eps=0)], "different ones"),
        (42, "not 42"),
        (len, "unit_metric or layer_metric"),
    ],
)
def test_invalid_metrics_are_refused(asked: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        resolve(asked)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:metric", "cannot be loaded from .*No module named .*fix or uninstall"),
        ("json:nothing", "cannot be loaded .*AttributeError"),
        ("json:loads", "declares the metric 'other' and provides none"),
        ("probekit.metrics.selectivity.selectivity:Selectivity", "declares the metric 'other'"),
    ],
)
def test_broken_entry_points_are_reported(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    def entry_points(group: str, name: str = "other") -> list[EntryPoint]:
        assert group == "probekit.metrics"
        return [EntryPoint("other", value, group)] if name == "other" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "other" in list_metrics()
    with pytest.raises(OptionError, match=words):
        get_metric("other")

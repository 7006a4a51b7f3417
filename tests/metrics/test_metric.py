"""Names of metrics, and metrics of other packages."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from probekit.errors import OptionError
from probekit.metrics import metric as registry
from probekit.metrics.dimensionality import Dimensionality
from probekit.metrics.metric import BUILT_IN, Metric, get_metric, list_metrics, resolve
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.metrics.unit_metrics import class_rank


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_metrics_are_found_where_the_table_says(name: str) -> None:
    importlib.import_module(f"probekit.metrics.{BUILT_IN[name]}")
    metric = get_metric(name)
    assert metric.name == name
    assert isinstance(metric, Metric)
    assert name in list_metrics()


def test_names_objects_classes_and_functions_are_metrics() -> None:
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
def test_what_is_no_metric_is_refused(asked: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        resolve(asked)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:metric", "cannot be loaded from .*No module named .*mend or uninstall"),
        ("json:nothing", "cannot be loaded .*AttributeError"),
        ("json:loads", "promises the metric 'other' and gives none"),
        ("probekit.metrics.selectivity.selectivity:Selectivity", "promises the metric 'other'"),
    ],
)
def test_broken_entry_points_are_told(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    def entry_points(group: str, name: str = "other") -> list[EntryPoint]:
        assert group == "probekit.metrics"
        return [EntryPoint("other", value, group)] if name == "other" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "other" in list_metrics()
    with pytest.raises(OptionError, match=words):
        get_metric("other")

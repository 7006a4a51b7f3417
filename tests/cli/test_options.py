"""Parsing of command-line option values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.cli.options import class_mapping, metric_list
from probekit.errors import OptionError
from probekit.metrics.metric import get_metric


def test_metrics_with_and_without_options() -> None:
    first, second = metric_list("selectivity( negative = shift , eps=1e-3 ), dimensionality")
    assert first == pk.Selectivity(negative="shift", eps=1e-3)
    assert second == get_metric("dimensionality")
    (top,) = metric_list("top_images(top=4,)")
    assert top == pk.TopImages(top=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selectivty", "close matches: selectivity"),
        ("selectivity(negativ=shift)", "has no option 'negativ'; close matches: negative"),
        ("selectivity(negative=shift", "lacks a closing parenthesis"),
        (
            "selectivity(eps=small)",
            "option 'eps' of metric 'selectivity' must be a float, not 'small'",
        ),
        ("selectivity(negative=sideways)", "sideways"),
        ("selectivity(eps=__import__('os').getcwd())", "must be a float, not"),
        ("selectivity,selectivity(eps=1)", "different ones"),
        ("", "one or more"),
    ],
)
def test_invalid_metrics_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        metric_list(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("index", "index"),
        ("cat=2, golden retriever=0", {"cat": 2, "golden retriever": 0}),
        ("0=tabby cat,1=3", {"0": "tabby cat", "1": 3}),
    ],
)
def test_class_maps(text: str | None, found: Any) -> None:
    assert class_mapping(text) == found


def test_a_class_map_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"cat": 2}')
    assert class_mapping(str(tmp_path / "map.json")) == {"cat": 2}


@pytest.mark.parametrize("text", ["indx", "cat:2", "none.json"])
def test_invalid_class_maps_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--class-map"):
        class_mapping(text)


def test_function_metrics_receive_their_options() -> None:
    (metric,) = metric_list("class_information(bins=5)")
    assert metric.describe([]) == {"bins": 5, "corrected": True}
    with pytest.raises(OptionError, match="no option 'called'"):
        metric_list("class_information(called=other)")


def test_lists_are_separated_by_commas_or_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def stop(*_: Any, **options: Any) -> None:
        given.update(options)
        raise OptionError("enough")

    monkeypatch.setattr("probekit.capture.plan.plan", lambda *rest, **_: stop(layers=rest[2]))
    names = ["--layers", "a,b.[cd]", "--layers", "!e"]
    CliRunner().invoke(app, ["layers", "probekit:resnet20-fashion-mnist", *names])
    assert given["layers"] == ["a", "b.[cd]", "!e"]
    assert [metric.name for metric in metric_list(["selectivity", "eta_squared,top_images"])] == [
        "selectivity", "eta_squared", "top_images",
    ]  # fmt: skip

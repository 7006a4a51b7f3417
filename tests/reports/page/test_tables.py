"""Sections of a page for comparisons and surveys, alone and together with the results of models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import probekit as pk
from probekit.reports.page.svg import Line, line_chart


def survey_of(names: list[str]) -> xr.DataTree:
    count = len(names)
    text = np.array(names, dtype=object)
    models = xr.Dataset(
        {
            "accuracy": ("model", np.r_[np.linspace(0.5, 0.9, count - 1), np.nan]),
            "selectivity_mean": ("model", np.r_[np.linspace(0.1, 0.3, count - 1), np.nan]),
            "failure": ("model", np.array([""] * (count - 1) + ["no <weights>"], dtype=object)),
            "notes": ("model", np.array(["few samples"] * (count - 1) + [""], dtype=object)),
        },
        {"model": text},
    )
    known = np.array([["relu"] * 2] * (count - 1) + [[""] * 2], dtype=object)
    values = np.where(known == "", np.nan, np.linspace(0, 1, 2 * count).reshape(count, 2))
    layers = xr.Dataset(
        {
            "selectivity_mean": (("model", "layer"), values),
            "depth": (("model", "layer"), np.where(known == "", np.nan, [0.0, 1.0])),
            "layer_name": (("model", "layer"), known),
        },
        {"model": text},
    )
    tree = xr.DataTree.from_dict({"/": models, "layers": layers})
    tree.attrs["provenance"] = json.dumps({"survey": {}})
    return tree


def test_a_survey_has_a_page_of_its_own(tmp_path: Path) -> None:
    page = pk.report(survey_of(["a", "<b>", "c"]), tmp_path / "report.html").read_text()
    assert page.count('<section id="survey">') == 1
    assert page.count("<circle") == 6  # two models with two layers, and a dot each
    assert "<td>0.900</td>" in page
    assert "<bdi>&lt;b&gt;</bdi>" in page
    assert "<td>no &lt;weights&gt;</td>" in page
    assert page.count("a, &lt;b&gt;: few samples") == 1
    assert "<script" not in page
    assert 'id="units"' not in page


def test_a_section_is_added_to_the_results_of_models(result: xr.DataTree, tmp_path: Path) -> None:
    file = tmp_path / "survey.nc"
    pk.save_result(survey_of(["a", "b"]), file)
    for number, given in enumerate(([result, file], {"toy": result, "all": str(file)})):
        page = pk.report(given, tmp_path / f"{number}.html").read_text()
        assert page.count('<section id="survey">') == 1
        assert 'id="units"' in page
        assert 'href="#survey"' in page


def test_the_band_of_a_chart_omits_layers_without_an_interval() -> None:
    lines = [Line("a", [1.0, 2.0, 3.0], [0.2, 0.5, 0.8], 0, [0.1, np.nan, 0.7], [0.3, np.nan, 1])]
    chart = line_chart(lines, x_label="layer", y_label="value", title="values", share=True)
    (band,) = re.findall(r'class="band m0" d="([^"]*)"', chart)
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", band), float)
    bottom, top, left, right = 230, 12, 46, 546
    heights = bottom - np.array([0.3, 1, 0.7, 0.1]) * (bottom - top)
    np.testing.assert_allclose(points[:, 1], heights, atol=0.01)
    np.testing.assert_allclose(points[:, 0], [left, right, right, left])


def test_values_below_zero_keep_their_distance_to_zero() -> None:
    line = Line("a", [1.0, 2.0], [-0.5, -1.0])
    chart = line_chart([line], x_label="layer", y_label="value", title="values")
    heights = np.array(re.findall(r'cy="([\d.]+)"', chart), float)
    np.testing.assert_allclose(heights, [12 + 0.5 * 218, 230], atol=0.01)


def test_paired_units_are_listed_by_their_difference(tmp_path: Path, make_result: Any) -> None:
    one, other = make_result(), make_result(seed=1)
    page = pk.report(pk.compare(one, other, paired=True), tmp_path / "report.html").read_text()
    units = [tree["units"].to_dataset() for tree in (one, other)]
    differences = units[1]["selectivity"].values - units[0]["selectivity"].values
    at = int(np.abs(differences).argmax())
    layer, channel = (str(units[0][name].values[at]) for name in ("layer", "channel"))
    shown = f"{differences[at]:.3f}".replace("-", "\N{MINUS SIGN}")
    row = f"<bdi>{layer}</bdi></th><td>{channel}</td><td>{shown}</td>"
    assert row in page
    assert page.index(row) == page.index("<bdi>", page.index("Units with the largest difference"))


def test_a_paired_comparison_may_have_no_numbers_of_units(tmp_path: Path, make_result: Any) -> None:
    found = pk.compare(make_result(), make_result(seed=1), paired=True)
    found["units"] = xr.DataTree(found["units"].to_dataset()[[]])
    page = pk.report(found, tmp_path / "report.html").read_text()
    assert '<section id="differences">' in page
    assert "Units with the largest difference" not in page

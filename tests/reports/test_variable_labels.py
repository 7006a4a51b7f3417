"""The label, units and description of a variable: set by its metric, shown everywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from rich.console import Console
from torch import nn

import probekit as pk
from probekit.metrics import metric as registry
from probekit.reports.terminal import print_result
from probekit.results.labels import label


@dataclass(frozen=True)
class Contrast(pk.Metric):
    """A metric of another package: its class names its variables and describes them."""

    name = "contrast"
    needs = (pk.ClassMeans(),)
    variables = {  # noqa: RUF012  # a constant of the class, not a field
        "contrast": {
            "long_name": "contrast of the class means",
            "units": "mV",
            "description": "Highest minus lowest class mean.",
        },
        "layer_contrast": {"long_name": "contrast of the layer", "units": "mV"},
    }

    def evaluate(self, class_mean: xr.DataArray) -> tuple[xr.Dataset, xr.Dataset]:
        contrast = class_mean.max("class") - class_mean.min("class")
        return xr.Dataset({"contrast": contrast}), xr.Dataset({"layer_contrast": contrast.max()})


@pytest.fixture(scope="module")
def result() -> Any:
    @pk.unit_metric(needs=pk.ClassMeans, long_name="highest class mean", units="mV")
    def peak(class_mean: xr.DataArray) -> xr.DataArray:
        """The highest class mean of a unit.

        A second paragraph, which is not part of the description.
        """
        return class_mean.max("class")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = (torch.rand(12, 3), torch.arange(12) % 2)
    yield pk.analyze(model, [batch], metrics=["selectivity", Contrast(), peak], progress=False)
    registry._REGISTERED.pop("peak")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def printed(result: xr.DataTree) -> str:
    to = Console(file=io.StringIO(), width=160)
    print_result(result, to)
    return to.file.getvalue()  # type: ignore[attr-defined, no-any-return]  # it is a StringIO


def payload(page: Path) -> Any:
    text = page.read_text().partition('id="payload">')[2].partition("</script>")[0]
    return json.loads(text)


def test_the_terminal_shows_the_labels_and_units(result: xr.DataTree) -> None:
    headings = [line for line in printed(result).splitlines() if line.startswith("layer ")]
    assert any("mean contrast of the class means [mV]" in line for line in headings)
    assert any("contrast of the layer [mV]" in line for line in headings)
    assert any("mean highest class mean [mV]" in line for line in headings)
    assert not any("peak" in line for line in headings)


def test_plots_show_the_labels_and_units(result: xr.DataTree) -> None:
    assert pk.plot.unit_distribution(result, "contrast").get_ylabel() == (
        "contrast of the class means [mV]"
    )
    assert pk.plot.layer_profile(result, "peak").get_ylabel() == "mean highest class mean [mV]"
    assert pk.plot.layer_profile(result, "layer_contrast").get_ylabel() == (
        "contrast of the layer [mV]"
    )
    scatter = pk.plot.unit_scatter(result, "selectivity", "peak")
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == (
        "class selectivity index",
        "highest class mean [mV]",
    )


def test_plots_of_xarray_show_the_same_label(result: xr.DataTree) -> None:
    (line,) = result["units"]["peak"].plot()
    assert line.axes.get_ylabel() == "highest class mean [mV]"


def test_the_page_shows_labels_and_descriptions(result: xr.DataTree, tmp_path: Path) -> None:
    page = pk.report(result, tmp_path / "report.html")
    columns = {one["name"]: one for one in payload(page)["models"][0]["columns"]}
    assert columns["contrast"]["label"] == "contrast of the class means [mV]"
    assert columns["contrast"]["about"] == "Highest minus lowest class mean."
    assert columns["peak"]["about"] == "The highest class mean of a unit."
    assert columns["contrast"]["shown"]
    assert not columns["dead"]["shown"]
    assert "mean contrast of the class means [mV]" in page.read_text()


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_files_keep_the_attributes(result: xr.DataTree, kind: str, tmp_path: Path) -> None:
    again = pk.open_result(pk.save_result(result, tmp_path / f"result.{kind}"))
    for table in ("/", "units", "layers"):
        for name, values in result[table].data_vars.items():
            found = again[table][name].attrs
            assert found.keys() == values.attrs.keys()
            for attribute, value in values.attrs.items():
                assert np.array_equal(found[attribute], value)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_every_variable_of_built_in_metrics_has_a_label() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    batch = (torch.rand(40, 1, 8, 8), torch.arange(40) % 2)
    names = [name for name in pk.list_metrics() if name in registry._built_in()]
    result = pk.analyze(model, [batch], metrics=names, progress=False)
    internal = {"selectivity_mean_floor", "selectivity_mean_ceiling", "selectivity_mean_replicate"}
    for table in ("units", "layers"):
        for name, values in result[table].data_vars.items():
            assert values.attrs.get("long_name") or name in internal, name


def test_a_file_without_attributes_shows_variable_names(
    result: xr.DataTree, tmp_path: Path
) -> None:
    old = result.map_over_datasets(
        lambda table: table.assign({name: v.drop_attrs() for name, v in table.data_vars.items()})
    )
    assert label(old["units"]["peak"]) == "peak"
    assert pk.plot.unit_distribution(old, "contrast").get_ylabel() == "contrast"
    assert "contrast mean" in printed(old)
    columns = payload(pk.report(old, tmp_path / "report.html"))["models"][0]["columns"]
    values = {one["name"]: base64.b64decode(one["values"]) for one in columns}
    assert np.allclose(np.frombuffer(values["peak"], "<f4"), result["units"]["peak"])
    assert {one["name"]: one["label"] for one in columns}["contrast"] == "contrast"

"""The number of dead units is the same in every table, file and report."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from rich.console import Console
from torch import nn

import probekit as pk
from probekit.data.images import TensorImages
from probekit.reports.model_results import model_results
from probekit.reports.page.payload import unit_table
from probekit.reports.page.sections import key_numbers
from probekit.reports.rows import result_json
from probekit.reports.saving import save_tables
from probekit.reports.terminal import print_result

DEAD = {"1": [0, 3], "3": [], "6": [2, 4, 5]}

pytestmark = pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")


def network() -> nn.Module:
    """Three layers whose dead units are known: their weights and bias are zero."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3, stride=4), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=4), nn.GELU(),
        nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    for weighted, layer in (("0", "1"), ("2", "3"), ("5", "6")):
        module: Any = net.get_submodule(weighted)
        nn.init.ones_(module.bias)
        for unit in DEAD[layer]:
            nn.init.zeros_(module.weight[unit])
            nn.init.zeros_(module.bias[unit])
    return net.eval()


@pytest.fixture(scope="module")
def subject() -> tuple[pk.ImageModel, TensorImages]:
    images = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    data = TensorImages(images, torch.arange(24) % 3, ["cat", "none", "owl"])
    return pk.ImageModel(network(), (0.0,), (1.0,), (1, 32, 32)), data


@pytest.fixture(scope="module")
def result(subject: Any) -> xr.DataTree:
    return pk.analyze(*subject, progress=False)


def assert_dead(table: pd.DataFrame) -> None:
    """Whether a table of units has exactly the dead units, and no preferred class for them."""
    dead = table[table["dead"]]
    for layer, units in DEAD.items():
        assert dead.loc[dead["layer"].astype(str) == layer, "channel"].tolist() == units
    assert (table["preferred_label"].isna() == table["dead"]).all()
    assert (table["preferred_class"].isna() == table["dead"]).all()
    assert (table["selectivity"][table["dead"]] == 0).all()


def test_tables_of_units_and_layers(result: xr.DataTree) -> None:
    assert_dead(pk.units_table(result))
    layers = pk.layers_table(result)
    assert dict(zip(layers["layer"], layers["dead_units"], strict=True)) == {
        layer: len(units) for layer, units in DEAD.items()
    }
    assert int(result["units"]["dead"].sum()) == int(result["layers"]["dead_units"].sum()) == 5


def test_files(result: xr.DataTree, tmp_path: Path) -> None:
    save_tables(result, tmp_path / "all")
    # pandas would read the class "none" as missing
    assert_dead(pd.read_csv(tmp_path / "all.units.csv", keep_default_na=False, na_values=[""]))
    assert pd.read_csv(tmp_path / "all.layers.csv")["dead_units"].tolist() == [2, 0, 3]
    pk.save_result(result, tmp_path / "result.nc")
    assert_dead(pk.units_table(pk.open_result(tmp_path / "result.nc")))


def test_parquet(result: xr.DataTree, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    save_tables(result, tmp_path / "all", kinds=["parquet"])
    assert_dead(pd.read_parquet(tmp_path / "all.units.parquet"))
    layers = pd.read_parquet(tmp_path / "all.layers.parquet")
    assert layers["dead_units"].tolist() == [2, 0, 3]


def test_terminal_and_json(result: xr.DataTree) -> None:
    text = io.StringIO()
    print_result(result, Console(file=text, width=200))
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    heading = next(line for line in lines if " dead" in line)
    end = heading.index(" dead") + 5
    rows = [line for line in lines[lines.index(heading) + 1 :] if line.split()[0] in DEAD][:3]
    assert [int(row[:end].split()[-1]) for row in rows] == [2, 0, 3]
    assert [row["dead_units"] for row in json.loads(result_json(result))["layers"]] == [2, 0, 3]


def test_page(result: xr.DataTree) -> None:
    (model,) = model_results(result)
    assert any(fact.detail.endswith("5 dead") for fact in key_numbers(model))
    (column,) = (one for one in unit_table(model)["columns"] if one["name"] == "dead")
    values = np.frombuffer(base64.b64decode(column["values"]), dtype="<f4")
    assert np.flatnonzero(values).tolist() == np.flatnonzero(result["units"]["dead"]).tolist()


def test_robustness(result: xr.DataTree, subject: Any) -> None:
    model, data = subject
    found = pk.robustness(model, data, "contrast", 5, table=32, progress=False)
    assert_dead(pk.units_table(found))
    assert found["layers"]["dead_units"].values.tolist() == [2, 0, 3]


def test_attributes(subject: Any) -> None:
    model, data = subject
    labels = torch.stack([data.labels, torch.arange(24) % 2], 1)
    found = pk.analyze(model, (data.images, labels), attributes=["animal", "side"], progress=False)
    for attribute in ("animal", "side"):
        one = found.sel(attribute=attribute)
        assert one["layers"]["dead_units"].values.tolist() == [2, 0, 3]
        assert int(one["units"]["dead"].sum()) == 5
        assert pk.units_table(found)[f"dead[{attribute}]"].sum() == 5
    pages = model_results(found)
    assert [page.name for page in pages] == ["animal", "side"]
    for page in pages:
        expected = found["units"]["class_mean"].sel(attribute=page.name).values
        np.testing.assert_array_equal(page.units["class_mean"].values, expected)
        assert unit_table(page)["columns"]
    assert [page.name for page in model_results([found, found], ["a", "b"])][1] == "a: side"

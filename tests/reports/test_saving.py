"""Figures and tables as files that other programs can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import probekit as pk
from probekit.errors import OptionError, OutputError


def drawn() -> plt.Figure:
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1], [0, 1], label="selectivity")
    ax.legend()
    return figure


def test_a_figure_is_written_in_both_formats_and_closed(tmp_path: Path) -> None:
    before = plt.get_fignums()
    files = pk.save_figure(drawn(), tmp_path / "new" / "figure")
    assert [file.name for file in files] == ["figure.png", "figure.svg"]
    with Image.open(files[0]) as image:
        assert min(image.size) > 50
    assert "selectivity" in files[1].read_text()
    assert plt.get_fignums() == before


def test_a_known_suffix_is_a_single_file(tmp_path: Path) -> None:
    assert pk.save_figure(drawn(), tmp_path / "fig.png") == [tmp_path / "fig.png"]
    assert (tmp_path / "fig.png").read_bytes()[1:4] == b"PNG"
    names = [path.name for path in pk.save_figure(drawn(), tmp_path / "alpha_0.5")]
    assert names == ["alpha_0.5.png", "alpha_0.5.svg"]


def test_the_same_figure_gives_the_same_file(tmp_path: Path) -> None:
    texts = [pk.save_figure(drawn(), tmp_path / name)[1].read_bytes() for name in ("a", "b")]
    assert texts[0] == texts[1]


def test_tables_are_read_back_from_both_formats(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    table = xr.Dataset(
        {
            "accuracy": (("alpha", "seed"), draws.random((2, 3))),
            "selectivity": (("alpha", "seed", "layer"), draws.random((2, 3, 2))),
            "highest": ("alpha", [1.0, 2.0]),
            "total": 6.5,
        },
        {"alpha": [-1.0, 0.0], "layer": np.array(["a", "b"], dtype=object)},
    )
    files = pk.save_tables(table, tmp_path / "new" / "sweep", images=500)
    assert {file.name for file in files} == {
        "sweep.nc", "sweep.alpha_seed.csv", "sweep.alpha_seed_layer.csv", "sweep.alpha.csv",
        "sweep.numbers.csv",
    }  # fmt: skip
    again = xr.load_dataset(tmp_path / "new" / "sweep.nc", engine="h5netcdf")
    xr.testing.assert_allclose(again, table)
    told = json.loads(again.attrs["provenance"])
    assert told["images"] == 500
    assert {"versions", "command"} <= set(told)
    assert not table.attrs
    rows = pd.read_csv(tmp_path / "new" / "sweep.alpha_seed_layer.csv")
    assert rows.columns.tolist() == ["alpha", "seed", "layer", "selectivity"]
    found = rows.set_index(["alpha", "seed", "layer"])["selectivity"].to_xarray()
    np.testing.assert_allclose(found, table["selectivity"])
    assert pd.read_csv(tmp_path / "new" / "sweep.numbers.csv")["total"].tolist() == [6.5]


def test_unwritable_paths_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for save in (pk.save_figure, pk.save_tables):
        given = drawn() if save is pk.save_figure else xr.Dataset({"a": 1.0})
        with pytest.raises(OutputError, match="cannot be written"):
            save(given, tmp_path / "file" / "stem")


@pytest.mark.parametrize("stored", ['{"seed": 3, "command": "first"}', "by hand", 7])
def test_the_provenance_of_a_table_is_preserved(stored: str | int, tmp_path: Path) -> None:
    table = xr.Dataset({"total": 1.0}, attrs={"provenance": stored})
    pk.save_tables(table, tmp_path / "table", images=500)
    again = xr.load_dataset(tmp_path / "table.nc", engine="h5netcdf").attrs["provenance"]
    found = json.loads(again)
    assert found["images"] == 500
    if stored == '{"seed": 3, "command": "first"}':
        assert (found["seed"], found["command"]) == (3, "first")
    else:
        assert found["stored"] == stored


def test_parquet_opens_in_polars_and_pandas_with_equal_values(
    make_result: Any, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    polars = pytest.importorskip("polars", reason="polars is not installed")
    result = make_result()
    files = pk.save_tables(result, tmp_path / "toy", kinds=("csv", "parquet"))
    assert {"toy.units.parquet", "toy.layers.parquet"} <= {file.name for file in files}
    units = result["units"].to_dataset()
    for read in (pd.read_parquet, polars.read_parquet):
        table = read(tmp_path / "toy.units.parquet")
        assert list(table["layer"]) == units["layer"].values.tolist()
        for name in ("channel", "selectivity", "dead", "gradient_norm_cv"):
            np.testing.assert_array_equal(table[name].to_numpy(), units[name].values)
        layers = read(tmp_path / "toy.layers.parquet")
        expected = result["layers"]["selectivity_mean"].values
        np.testing.assert_array_equal(layers["selectivity_mean"].to_numpy(), expected)


def test_other_formats_of_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="csv or parquet, not xlsx"):
        pk.save_tables(xr.Dataset({"a": 1.0}), tmp_path / "a", kinds=["xlsx"])


def test_one_kind_is_text_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    assert [file.name for file in pk.save_figure(drawn(), tmp_path / "a", kinds="pdf")] == ["a.pdf"]
    with pytest.raises(OptionError, match="kind of figure 'doc'"):
        pk.save_figure(drawn(), tmp_path / "a", kinds="doc")
    table = xr.Dataset({"x": ("unit", [1.0])})
    assert len(pk.save_tables(table, tmp_path / "b", kinds="csv")) == 2

"""Tables with one row per unit and per layer, as data frames and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from torch import nn

import probekit as pk
from probekit.data.images import TensorImages
from probekit.errors import DataError, OptionError, ProbekitError

NAMES = ["ant", "bee", "cat"]


class Half(nn.Module):
    """Units that respond to the mean brightness; the second half of the six units is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.head = nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gains = torch.tensor([1.0, 2.0, -1.0, 0.0, 0.0, -5.0])
        shifts = torch.tensor([0.0, 0.0, 1.0, 0.0, -1.0, 0.0])
        return self.head(self.act(x.mean((1, 2, 3))[:, None] * gains + shifts))


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    labels = torch.arange(90) % 3
    images = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2
    images += 0.3 * labels[:, None, None, None]
    metrics = ["selectivity", "selectivity_interval", "top_images", "dimensionality"]
    return pk.analyze(
        Half().eval(), TensorImages(images, labels, NAMES), metrics=metrics, progress=False
    )


def test_tables_have_one_row_per_unit_with_class_names_and_none_for_dead_units(
    result: xr.DataTree,
) -> None:
    table = pk.units_table(result)
    assert len(table) == result["units"].sizes["unit"] == 6
    assert table["layer"].tolist() == ["act"] * 6
    assert table["channel"].tolist() == list(range(6))
    assert table["preferred_class"].dropna().tolist() == ["cat", "cat", "ant"]
    assert table["preferred_class"].isna().tolist() == [False] * 3 + [True] * 3
    assert table["preferred_label"].tolist()[:3] == [2, 2, 0]
    assert table["preferred_label"].isna().tolist() == table["dead"].tolist()
    np.testing.assert_array_equal(table["selectivity"], result["units"]["selectivity"])
    assert {"class_mean", "top_sample"} <= set(table.attrs["left_out"])
    mean = table.groupby("layer").selectivity.mean()
    assert mean["act"] == pytest.approx(float(result["layers"]["selectivity_mean"][0]))


def test_the_number_of_dead_units_is_the_same_in_every_table(
    result: xr.DataTree, tmp_path: Path
) -> None:
    files = {path.name: path for path in pk.save_tables(result, tmp_path / "r")}
    units, layers = (pd.read_csv(files[f"r.{name}.csv"]) for name in ("units", "layers"))
    counts = {
        "units": int(pk.units_table(result)["dead"].sum()),
        "without a preferred class": int(pk.units_table(result)["preferred_class"].isna().sum()),
        "labels below zero": int((result["units"]["preferred_class"] < 0).sum()),
        "layers": int(pk.layers_table(result)["dead_units"].sum()),
        "units.csv": int(units["dead"].sum()),
        "units.csv without a class": int(units["preferred_class"].isna().sum()),
        "layers.csv": int(layers["dead_units"].sum()),
    }
    assert counts == dict.fromkeys(counts, 3)


def test_additional_dimensions_become_columns_on_request(result: xr.DataTree) -> None:
    table = pk.units_table(result, widen=["class_mean", "top_sample"])
    means = result["units"]["class_mean"]
    np.testing.assert_array_equal(table["class_mean[bee]"], means.sel({"class": 1}))
    first = result["units"]["top_sample"].isel(rank=0)
    np.testing.assert_array_equal(table["top_sample[1]"], first)
    assert len(table) == 6
    with pytest.raises(OptionError, match="close matches: class_mean"):
        pk.units_table(result, widen="class_meen")


def test_files_have_the_same_rows_as_the_tables(result: xr.DataTree, tmp_path: Path) -> None:
    files = pk.save_tables(result, tmp_path / "new" / "r", study="ants")
    assert [path.name for path in files] == [
        "r.nc", "r.units.csv", "r.layers.csv", "r.samples.csv",
    ]  # fmt: skip
    units = pd.read_csv(files[1], index_col="unit", keep_default_na=True)
    pd.testing.assert_frame_equal(
        units, pk.units_table(result), check_dtype=False, check_names=False
    )
    assert len(pd.read_csv(files[2])) == 1
    assert len(pd.read_csv(files[3])) == 90
    again = pk.open_result(files[0])
    assert '"study": "ants"' in again.attrs["provenance"]
    assert "study" not in result.attrs["provenance"]
    pd.testing.assert_frame_equal(pk.units_table(again), pk.units_table(result))


def test_classes_without_names_use_their_labels() -> None:
    data = [(torch.rand(60, 1, 4, 4), torch.arange(60) % 3)]
    table = pk.units_table(pk.analyze(Half().eval(), data, progress=False))
    assert set(table["preferred_class"].dropna()) <= {"0", "1", "2"}


def test_quantiles_of_layers_are_columns(result: xr.DataTree) -> None:
    table = pk.layers_table(result)
    quartiles = result["layers"]["selectivity_quartiles"].values
    np.testing.assert_array_equal(table["selectivity_quartiles[0.25]"], quartiles[:, 0])
    assert table["layer"].tolist() == ["act"]


@pytest.mark.parametrize("given", [3, xr.Dataset(), xr.DataTree()])
def test_a_result_without_units_is_refused(given: object) -> None:
    with pytest.raises(DataError, match="a table of units is made of a result"):
        pk.units_table(given)
    with pytest.raises(ProbekitError):
        pk.layers_table(given)


def test_the_file_of_a_result_gives_the_same_as_the_result(
    result: xr.DataTree, tmp_path: Path
) -> None:
    file = pk.save_result(result, tmp_path / "result.nc")
    pd.testing.assert_frame_equal(pk.units_table(str(file)), pk.units_table(result))
    pd.testing.assert_frame_equal(pk.layers_table(file), pk.layers_table(result))
    drawn = [pk.plot.layer_profile(one).lines[0].get_ydata() for one in (file, result)]
    plt.close("all")
    np.testing.assert_array_equal(*drawn)


def test_classes_of_the_same_name_keep_a_column_each() -> None:
    units = xr.Dataset(
        {
            "preferred_class": ("unit", [2, 0]),
            "class_mean": (("unit", "class"), [[0.0, 1.0, 2.0], [5.0, 4.0, 3.0]]),
        },
        {
            "layer": ("unit", ["relu"] * 2), "channel": ("unit", [0, 1]), "class": [0, 1, 2],
            "class_name": ("class", ["crane", "dog", "crane"]),
        },
    )  # fmt: skip
    table = pk.units_table(units, "class_mean")
    assert table["preferred_class"].tolist() == ["crane (2)", "crane (0)"]
    assert table["class_mean[crane (0)]"].tolist() == [0, 5]
    assert table["class_mean[crane (2)]"].tolist() == [2, 3]


def test_classes_named_like_another_with_its_label_are_told_apart() -> None:
    coords = {"layer": ("unit", ["relu"]), "channel": ("unit", [0]), "class": [0, 1, 2]}
    units = xr.Dataset(
        {"class_mean": (("unit", "class"), [[5.0, 6.0, 7.0]])},
        coords | {"class_name": ("class", ["crane", "crane", "crane (0)"])},
    )
    table = pk.units_table(units, widen="class_mean")
    assert table.filter(like="class_mean").iloc[0].to_dict() == {
        "class_mean[crane (0)]": 5.0,
        "class_mean[crane (1)]": 6.0,
        "class_mean[crane (0) (2)]": 7.0,
    }

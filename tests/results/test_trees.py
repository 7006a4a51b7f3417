"""Files of results are written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

import probekit as pk
from children import Child
from probekit.errors import OutputError, ProbekitWarning
from probekit.results.files import whole
from probekit.results.trees import check_output


@pytest.fixture
def tree() -> xr.DataTree:
    units = xr.Dataset(
        {"selectivity": ("unit", np.linspace(0, 1, 5)), "dead": ("unit", np.zeros(5, bool))},
        coords={"layer": ("unit", np.array(["a.b"] * 5, dtype=object))},
    )
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"provenance": "{}"}), "units": units})


@pytest.mark.parametrize("name", ["r.nc", "r.zarr"])
def test_results_are_saved_reopened_and_overwritten(
    name: str, tree: xr.DataTree, tmp_path: Path
) -> None:
    pk.save_result(tree, tmp_path / name)
    xr.testing.assert_identical(pk.open_result(tmp_path / name), tree)
    with pytest.raises(OutputError, match="exists already"):
        pk.save_result(tree, tmp_path / name)
    tree["units"]["selectivity"] *= 2
    pk.save_result(tree, tmp_path / name, overwrite=True)
    xr.testing.assert_identical(pk.open_result(tmp_path / name), tree)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["r.nc", "r.zarr"])
def test_tables_and_their_columns_keep_their_order(
    name: str, tree: xr.DataTree, tmp_path: Path
) -> None:
    names = [f"{letter}{number}" for number in range(3) for letter in "xbtadk"]
    tree["units"] = tree["units"].to_dataset().assign(dict.fromkeys(names, ("unit", np.arange(5))))
    for node in "zmc":
        tree[node] = tree["units"].to_dataset().rename(unit=f"{node}_unit")
    found = pk.open_result(pk.save_result(tree, tmp_path / name))
    assert list(found.children) == ["units", "z", "m", "c"]
    for node in found.children:
        assert list(found[node].variables) == list(tree[node].variables)
    columns = list(pk.units_table(found).columns)
    assert columns == ["layer", "selectivity", "dead", *names]


@pytest.mark.parametrize("name", ["r.nc", "r.zarr"])
def test_units_of_time_leave_numbers_and_dates_stay_dates(
    name: str, tree: xr.DataTree, tmp_path: Path
) -> None:
    for units in ("milliseconds", "days"):
        values = np.linspace(0, 1, 5)
        tree["units"][f"latency_{units}"] = xr.DataArray(
            values, dims="unit", attrs={"units": units}
        )
    day = np.arange("2026-01-01", "2026-01-06", dtype="datetime64[D]").astype("datetime64[ns]")
    tree["units"]["date"] = xr.DataArray(day, dims="unit")
    tree["units"]["age"] = xr.DataArray(day - day[0], dims="unit")
    pk.save_result(tree, tmp_path / name)
    xr.testing.assert_identical(pk.open_result(tmp_path / name), tree)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("scale_factor", 0.5),
        ("missing_value", 1.0),
        ("units", "days since 2026-01-01"),
        ("higher_is_better", True),
        ("threshold", None),
        ("options", {"a": 1}),
        ("rows", [[1], [1, 2]]),
        ("file", Path("a")),
        ("text", "a\0b"),
        ("name", "\udcff"),
        ("factor", 1j),
        (3, "c"),
    ],
)
def test_attributes_that_files_cannot_hold_or_that_change_values_are_left_out(
    attribute: Any, value: object, tree: xr.DataTree, tmp_path: Path
) -> None:
    right, node = np.linspace(0, 1, 5), tree["units"]
    node["selectivity"].attrs |= {attribute: value, "range": [0.0, 1.0], "names": ["low", "high"]}
    for file in (tmp_path / "r.nc", tmp_path / "r.zarr"):
        with pytest.warns(ProbekitWarning, match=f"left out.*: {attribute!r} of selectivity;"):
            pk.save_result(tree, file)
        found = pk.open_result(file)["units"]["selectivity"]
        np.testing.assert_array_equal(found.values, right)
        assert {name: list(one) for name, one in found.attrs.items()} == {
            "range": [0.0, 1.0], "names": ["low", "high"],
        }  # fmt: skip
    with pytest.warns(ProbekitWarning, match=f"left out.*: {attribute!r} of selectivity;"):
        pk.save_tables(node.to_dataset(), tmp_path / "t")
    found = xr.load_dataset(tmp_path / "t.nc", engine="h5netcdf")["selectivity"]
    np.testing.assert_array_equal(found.values, right)
    assert node["selectivity"].attrs[attribute] is value
    tree.attrs[attribute] = value
    with pytest.warns(ProbekitWarning, match=f"left out.*: {attribute!r} of the result"):
        pk.save_result(tree, tmp_path / "r.nc", overwrite=True)
    assert pk.open_result(tmp_path / "r.nc").attrs == {"provenance": "{}"}


@pytest.mark.parametrize("name", ["r.nc", "r.zarr"])
def test_a_failed_write_keeps_the_existing_file(
    name: str, tree: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pk.save_result(tree, tmp_path / name)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        pk.save_result(tree, tmp_path / name, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    xr.testing.assert_identical(pk.open_result(tmp_path / name), tree)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.zarr").mkdir()
    (tmp_path / "r.zarr" / "old").touch()
    replace = os.replace

    def fails_for_the_draft(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise error
        replace(source, target)

    def write() -> None:
        with whole(tmp_path / "r.zarr") as draft:
            draft.mkdir()
            (draft / "new").touch()

    monkeypatch.setattr(os, "replace", fails_for_the_draft)
    with pytest.raises(
        (OutputError, KeyboardInterrupt), match=r"cannot be written: No space left|^$"
    ):
        write()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "r.zarr",
        "r.zarr/old",
    ]


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, start: Callable[..., Child]) -> None:
    code = (
        "import numpy as np, xarray as xr, probekit as pk, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "tree = xr.DataTree.from_dict({'a': xr.Dataset({'x': ('i', np.random.rand(100_000))})})\n"
        "try:\n    pk.save_result(tree, 'r.nc')\n"
        "except pk.ProbekitError as error:\n    print('told', error)\n"
    )
    _, printed, errors = start(code=code, limit=50_000).wait()
    assert printed.startswith("told 'r.nc' cannot be written"), errors
    assert not list(tmp_path.iterdir())


def test_unwritable_paths_are_reported(tmp_path: Path) -> None:
    for path, message in (
        ("r.csv", "to a .nc or .zarr file, .*; tables: pk.save_tables"),
        ("r.png", "; figures: pk.save_figure, or -o of probekit compare and cka"),
        ("r.html", "; pages: pk.report, or probekit report"),
        ("r.NC", "to a .nc or .zarr file"),
        ("no/folder/r.nc", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / path)
    (tmp_path / "d.nc").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "d.nc", overwrite=True)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89HDF\r\n\x1a\n but not really"])
def test_files_that_are_not_results_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.nc").write_bytes(content)
    with pytest.raises(OutputError, match="is not a result of probekit"):
        pk.open_result(tmp_path / "r.nc")
    (tmp_path / "r.zarr").mkdir()
    with pytest.raises(OutputError, match="is not a result of probekit"):
        pk.open_result(tmp_path / "r.zarr")
    with pytest.raises(OutputError, match="there is no result"):
        pk.open_result(tmp_path / "absent.nc")


@pytest.mark.parametrize(("before", "after"), [("a.nc", "b.zarr"), ("a.zarr", "b.nc")])
def test_text_of_any_length_can_be_saved_in_the_other_format(
    before: str, after: str, tree: xr.DataTree, tmp_path: Path
) -> None:
    pk.save_result(tree, tmp_path / before)
    pk.save_result(pk.open_result(tmp_path / before), tmp_path / after)
    again = pk.open_result(tmp_path / after)
    xr.testing.assert_identical(again, tree)
    layers = again["units"].to_dataset()["layer"].values
    layers[0] = "a.much.longer.name"
    assert layers[0] == "a.much.longer.name"
    if after.endswith(".nc"):
        with h5py.File(tmp_path / after) as file:
            assert h5py.check_string_dtype(file["units/layer"].dtype).length is None
    else:
        stored = zarr.open_array(tmp_path / after / "units" / "layer", mode="r")
        assert isinstance(stored.dtype, np.dtypes.StringDType)

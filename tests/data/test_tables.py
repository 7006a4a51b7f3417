"""Tables of paths and labels: pandas, polars, CSV, TSV and Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.errors import DataError, OptionError, ProbekitWarning

NAMES = ("NA", "cat", "NA", "dog", "cat")
LABELS = [0, 1, 0, 2, 1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images whose brightness is ten times their number."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.new("L", (4, 4), 10 * number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


PATHS = [f"images/{number}.png" for number in range(5)]


def columns(**more: Any) -> dict[str, Any]:
    return {"path": PATHS, "label": list(NAMES), **more}


def check(data: Any) -> None:
    assert [round(float(data[number][0].mean()) * 25.5) for number in range(5)] == [0, 1, 2, 3, 4]
    assert data.labels.tolist() == LABELS
    assert data.classes == ("NA", "cat", "dog")


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_table_of_paths_and_labels(package: str, root: Path) -> None:
    frames = pytest.importorskip(package)
    check(pk.load_data(frames.DataFrame(columns()), root=root))
    absolute = [str(root / path) for path in PATHS]
    check(pk.load_data(frames.DataFrame({"class": list(NAMES), "filename": absolute})))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_file_with_a_table(kind: str, root: Path) -> None:
    file, table = root / f"list.{kind}", pd.DataFrame(columns(other=[0.5] * 5))
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(file)
    else:
        table.to_csv(file, sep="," if kind == "csv" else "\t", index=False)
    check(pk.load_data(file))
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model = pk.ImageModel(net, (0.0,) * 3, (1.0,) * 3, (3, 4, 4))
    samples = pk.analyze(model, file, metrics=["selectivity"])["samples"]
    assert samples["label"].values.tolist() == LABELS


def test_numbers_as_labels_and_no_labels(root: Path) -> None:
    data = pk.load_data(pd.DataFrame({"file": PATHS, "target": [7, 0, 7, 3, 0]}), root=root)
    assert data.labels.tolist() == [7, 0, 7, 3, 0]
    # No column holds labels, also not one that is called None.
    table = pd.DataFrame({"file": PATHS, "None": [0, 1, 2, 3, 4]})
    for unlabeled in (table[["file"]], table):
        assert pk.load_data(unlabeled, root=root).labels.tolist() == [-1] * 5


def test_the_column_split_selects_rows(root: Path) -> None:
    table = pd.DataFrame(columns(split=["train", "val", "train", "val", "val"]))
    assert pk.load_data(table, root=root, split="val").labels.tolist() == [1, 2, 1]
    for split in (None, "test"):
        with pytest.raises(DataError, match="has the splits train, val, not"):
            pk.load_data(table, root=root, split=split)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"label": [1]}, "has the columns label, and none of path"),
        ({"path": [], "label": []}, "has no rows"),
        ({"path": ["images/0.png", None]}, "where a path of an image should be"),
        ({"path": ["images/0.png", "images/9.png"]}, "1 of 2 files .* do not exist: .*9.png"),
        ({"path": ["images/0.png"], "label": [None]}, "lacks the label of some images"),
        ({"path": ["images/0.png"], "label": [0.5]}, "must be non-negative integers"),
    ],
)
def test_wrong_tables_are_refused(table: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        pk.load_data(pd.DataFrame(table), root=root)


def test_files_that_are_no_tables_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"unknown kind: data are read from \.csv"):
        pk.load_data(root / "images" / "0.png")
    (root / "a.csv").write_bytes(b'a,b\n"1,2\n3,4,5')
    with pytest.raises(DataError, match="cannot be read as a table"):
        pk.load_data(root / "a.csv")


def test_the_fingerprint_depends_on_paths_labels_and_content(root: Path) -> None:
    def fingerprint(**changed: Any) -> str:
        return pk.load_data(pd.DataFrame(columns() | changed), root=root).fingerprint

    plain = fingerprint()
    assert fingerprint() == plain
    others = [fingerprint(label=["cat"] * 5), fingerprint(path=PATHS[::-1])]
    Image.new("L", (4, 4), 255).save(root / "images" / "3.png")
    assert len({plain, *others, fingerprint()}) == 4


COLORS, SHAPES = ["red", "blue", "red", "red", "blue"], [3, 1, 3, 1, 3]


def test_columns_of_labels_are_attributes(root: Path) -> None:
    frame = pd.DataFrame(columns(color=COLORS, shape=SHAPES))
    frame.to_csv(root / "photos.csv", index=False)
    data = pk.load_data(root / "photos.csv", attributes=["color", "shape"])
    assert data.labels.tolist() == [[1, 3], [0, 1], [1, 3], [1, 1], [0, 3]]
    assert data[1][1].tolist() == [0, 1]
    net = pk.ImageModel(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), mean=(0.5,), std=(0.5,), input_size=(1, 8, 8)
    )
    found = pk.analyze(
        net, str(root / "photos.csv"), metrics=["selectivity", "selectivity_chance"],
        attributes=["color", "shape"], progress=False,
    )  # fmt: skip
    images = [data[number][0] for number in range(5)]
    alone = pk.analyze(
        net,
        [(torch.stack(images)[:, :1], torch.tensor(SHAPES))],
        "1",
        ["selectivity"],
        progress=False,
    )
    units = found["units"].sel(attribute="shape")
    assert set(found["units"]["preferred_value"].sel(attribute="color").values) <= {
        "red",
        "blue",
        "",
    }
    assert units["selectivity_chance"].notnull().all()
    assert alone["units"].sizes["unit"] == units.sizes["unit"]
    with pytest.raises(DataError, match="no column 'size' for an attribute; its columns are path"):
        pk.load_data(root / "photos.csv", attributes=["size"])
    with pytest.raises(OptionError, match=r"attributes \(color\) are label columns of a table"):
        pk.load_data("fashion-mnist", attributes=["color"])


def test_the_command_line_takes_attributes(root: Path) -> None:
    pd.DataFrame(columns(color=COLORS, shape=SHAPES)).to_csv(root / "photos.csv", index=False)
    command = ["analyze", "probekit:resnet20-fashion-mnist", str(root / "photos.csv")]
    out, page = str(root / "r.nc"), root / "page.html"
    options = ["--layers", "layer3.2.relu2", "--attributes", "color,shape", "-o", out]
    done = CliRunner().invoke(app, [*command, *options, "--report", str(page)])
    assert done.exit_code == 0, done.output
    result = pk.open_result(out)
    mean = result["selectivity_mean"].sel(attribute="shape").item()
    assert f"network (shape): mean class selectivity index {mean:.4f}" in done.stdout
    assert "<bdi>color</bdi>" in page.read_text()
    done = CliRunner().invoke(app, [*command, *options[:-2], "--json"])
    assert json.loads(done.stdout)["network"]["selectivity_mean"][1] == pytest.approx(mean)
    units = pk.open_result(out)["units"].to_dataset()
    assert units["attribute"].values.tolist() == ["color", "shape"]
    assert units["count"].sel(attribute="color").values.tolist()[:2] == [2, 3]


def test_categories_keep_their_order(root: Path) -> None:
    sizes = pd.Categorical(["low", "high", "mid", "low", "mid"], ["low", "mid", "high", "huge"])
    data = pk.load_data(pd.DataFrame({"path": PATHS, "label": sizes}), root=root)
    assert data.labels.tolist() == sizes.codes.tolist() == [0, 2, 1, 0, 1]
    assert data.classes == ("low", "mid", "high", "huge")


def test_a_split_file_numbers_its_classes_as_the_training_file(root: Path) -> None:
    for split, names in (("train", "cabdc"), ("val", "dccda"), ("test", "dxada")):
        pd.DataFrame({"path": PATHS, "label": list(names)}).to_csv(root / f"{split}.csv")
    data = pk.load_data(root / "val.csv")
    assert data.classes == ("a", "b", "c", "d")
    assert data.labels.tolist() == [3, 2, 2, 3, 0]
    with pytest.warns(ProbekitWarning, match="not in the training split .* after its 4 classes: x"):
        data = pk.load_data(root / "test.csv")
    assert data.classes == ("a", "b", "c", "d", "x")
    assert data.labels.tolist() == [3, 4, 0, 3, 0]
    (root / "train.csv").write_bytes(b'a,b\n"1,2\n3,4,5')
    with pytest.warns(ProbekitWarning, match="train.csv' cannot be read .* numbered without it"):
        data = pk.load_data(root / "val.csv")
    assert (data.classes, len(data.notes)) == (("a", "c", "d"), 1)


@pytest.mark.parametrize(("first", "second"), [("01", "1"), (" 1", "1"), ("+1", "1")])
def test_a_number_written_in_two_ways_is_refused(first: str, second: str, root: Path) -> None:
    written = [first, second, "2", "2", "3"]
    rows = [f"{path},{label},{label}" for path, label in zip(PATHS, written, strict=True)]
    for heading, options in (("label,id", {}), ("id,shape", {"attributes": ["shape"]})):
        (root / "list.csv").write_text("\n".join([f"path,{heading}", *rows]))
        column = options.get("attributes", ["label"])[0]
        with pytest.raises(DataError, match=f"column '{column}' of .* has the number 1 as"):
            pk.load_data(root / "list.csv", **options)
    padded = ["001", "001", "002", "002", "010"]
    rows = [f"{path},{label},{at}" for path, label, at in zip(PATHS, padded, written, strict=True)]
    (root / "list.csv").write_text("\n".join(["path,label,id", *rows]))
    assert pk.load_data(root / "list.csv").labels.tolist() == [1, 1, 2, 2, 10]

"""Surveys: one result per model, resumed after an interruption, joined into one table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import probekit as pk
from children import Child
from probekit.analysis import survey as surveying
from probekit.cli.app import app
from probekit.cli.models import _survey_figure
from probekit.errors import DataError, ModelError, OptionError, OutputError, ProbekitWarning

# Six networks of different widths with random weights; the one called `slow` waits for a file.
OWN = """
import os, time, torch, probekit as pk

def net(width, depth=1):
    layers = []
    for at in range(depth):
        layers += [torch.nn.Conv2d(width if at else 1, width, 3), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10)]
    return pk.ImageModel(torch.nn.Sequential(*layers), mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))

def a(): return net(4)
def b(): return net(6, 2)
def c(): return net(8, 3)
def d(): return net(4, 2)

def slow():
    while not os.path.exists("go"):
        time.sleep(0.02)
    return net(5)

def broken(): raise RuntimeError("no weights today")
"""
NAMES = [f"survey_nets:{name}" for name in ("a", "b", "slow", "c", "d", "broken")]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the networks."""
    (tmp_path / "survey_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("survey_nets", None)
    return tmp_path


def run(names: list[str], out: str = "s", **options: Any) -> xr.DataTree:
    return pk.survey(names, "fashion-mnist", out, **{"limit": 60, "progress": False, **options})


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_a_killed_survey_resumes_and_names_the_model_that_fails(
    place: Path, start: Callable[..., Child]
) -> None:
    command = ["survey", *NAMES, "fashion-mnist", "-o", "s", "--limit", "60"]
    child = start(command)
    while len(list(place.glob("s/results/*.nc"))) < 2 and child.process.is_alive():
        time.sleep(0.05)
    assert child.kill()  # while the third model is loaded
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("s/results/*.nc")}
    assert len(before) == 2
    Path("go").touch()
    done = CliRunner().invoke(app, [*command, "--no-progress"])
    assert done.exit_code == 0, done.output
    assert "RuntimeError: no weights today" in done.output or "no weights today" in done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in place.glob("s/results/*.nc")}
    assert len(after) == 5
    assert before.items() <= after.items()
    table = xr.open_datatree("s/survey.nc", engine="h5netcdf").load()
    assert table["model"].values.tolist() == sorted(NAMES)
    assert [name for name in NAMES if table["failure"].sel(model=name)] == ["survey_nets:broken"]
    assert Path("s/survey.png").stat().st_size > 1000
    page = Path("s/report.html").read_text()
    assert "no weights today" in page
    assert page.count("<circle") >= 5
    assert "6 models on the same data" in page
    assert "<h2>6 models" not in page


def test_results_that_are_being_written_are_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, save = place / "s" / "results" / ".draft-0.nc", surveying.save_result

    def save_beside_another(*given: Any, **options: Any) -> Path:
        cut.write_bytes(b"\x89HDF")  # as another worker, or a killed process, leaves it
        return save(*given, **options)

    monkeypatch.setattr(surveying, "save_result", save_beside_another)
    table = run(["survey_nets:a"], layers="1")
    assert table["model"].values.tolist() == ["survey_nets:a"]
    assert cut.exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    run(["survey_nets:a"], layers="1")
    assert not cut.exists()


def test_a_model_without_accuracy_is_named_in_figure_and_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = xr.Dataset(
        {
            "accuracy": ("model", [0.5, np.nan]),
            "selectivity_mean": ("model", [0.2, 0.3]),
            "n_layers": ("model", [1.0, 1.0]),
            "failure": ("model", ["", ""]),
        },
        {"model": ["known", "unknown"]},
        {"provenance": json.dumps({"survey": {}})},
    )
    layers = xr.Dataset(
        {
            "depth": (("model", "layer"), [[0.0], [0.0]]),
            "selectivity_mean": (("model", "layer"), [[0.2], [0.3]]),
            "layer_name": (("model", "layer"), [["a"], ["b"]]),
        },
        {"model": ["known", "unknown"]},
    )
    table = xr.DataTree.from_dict({"/": models, "layers": layers})
    drawn = []
    monkeypatch.setattr("probekit.reports.saving.save_figure", lambda one, _: drawn.append(one))
    _survey_figure(table, tmp_path / "a.png")
    keys = [ax.get_legend() for ax in drawn[0].axes if ax.get_legend()]
    assert [[text.get_text() for text in key.get_texts()] for key in keys] == [["known", "unknown"]]
    plt.close(drawn[0])  # as save_figure does
    page = pk.report(table, tmp_path / "a.html").read_text()
    assert "<td>1</td>" in page


def test_the_table_has_the_numbers_of_single_analyses() -> None:
    with pytest.warns(ProbekitWarning, match="2 of 2 models have warnings; survey_nets:a: "):
        table = run(["survey_nets:a", "survey_nets:c"], seed=3, layers="*[135]")
    for name in ("a", "c"):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = pk.load_model(f"survey_nets:{name}")
        with pytest.warns(ProbekitWarning) as said:
            alone = pk.analyze(model, "fashion-mnist", "*[135]", limit=60, seed=3, progress=False)
        row = table.sel(model=f"survey_nets:{name}")
        layers = row["layers"].to_dataset()
        count = alone["layers"].sizes["layer"]
        assert int(row["n_layers"]) == count
        assert int(row["parameters"]) == sum(one.numel() for one in model.module.parameters())
        assert float(row["selectivity_mean"]) == float(alone["selectivity_mean"])
        assert float(row["accuracy"]) == float(alone["accuracy"])
        assert row["notes"].item().splitlines() == [str(one.message) for one in said]
        assert (
            layers["layer_name"].values[:count].tolist() == alone["layers"]["layer"].values.tolist()
        )
        assert np.array_equal(
            layers["selectivity_mean"].values[:count], alone["layers"]["selectivity_mean"].values
        )
        assert layers["selectivity_mean"].isnull().values[count:].all()
        assert (
            layers["depth"].values[:count].tolist()
            == np.linspace(0, 1, max(count, 2))[:count].tolist()
        )


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_stored_results_are_used_unless_the_weights_changed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["survey_nets:a", "survey_nets:b"])
    measured = []
    measure = surveying._measure
    monkeypatch.setattr(surveying, "_measure", lambda *x: measured.append(x[0]) or measure(*x))
    table = run(["survey_nets:a", "survey_nets:d"])
    assert measured == ["survey_nets:d"]
    assert table.sizes["model"] == 3
    (place / "survey_nets.py").write_text(OWN.replace("net(4)", "net(9)"))
    sys.modules.pop("survey_nets")
    table = run(["survey_nets:a", "survey_nets:d"])
    assert measured == ["survey_nets:d", "survey_nets:a"]
    assert int(table.sel(model="survey_nets:a")["n_units"]) == 9
    (place / "survey_nets.py").write_text("def a(): raise ValueError('lost')")
    sys.modules.pop("survey_nets")
    table = run(["survey_nets:a"])
    assert "lost" in table["failure"].sel(model="survey_nets:a").item()
    assert table["n_units"].sel(model="survey_nets:a").isnull()


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_a_cluster_gives_the_same_table() -> None:
    from distributed import Client

    here = run(NAMES[:2])
    with Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
    ) as client:
        there = run(NAMES[:2], "there", scheduler=client)
    assert there.equals(here)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_another_survey_is_refused() -> None:
    run(["survey_nets:a"])
    with pytest.raises(OutputError, match=r"holds another survey: data\.limit was 60 and is 50"):
        run(["survey_nets:a"], limit=50)
    with pytest.raises(
        OutputError, match=r'metrics\.selectivity\.negative was "clip" and is "shift"'
    ):
        run(["survey_nets:a"], metrics=pk.Selectivity(negative="shift"))
    assert json.loads(Path("s/survey.json").read_text())["options"] == {"limit": 60, "seed": 0}


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_all_models_are_measured_on_the_test_split() -> None:
    pk.survey("survey_nets:a", "digits", "s", progress=False)
    (file,) = Path("s/results").glob("*.nc")
    data = json.loads(pk.open_result(file).attrs["provenance"])["data"]
    assert (data["split"], data["samples"]) == ("test", 360)


def test_mistakes_are_found_before_any_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "_load", lambda *_: pytest.fail("loaded a model"))
    for error, message, options in (
        (OptionError, "no option 'limits'; close matches: limit", {"limits": 3}),
        (OptionError, "no metric is named", {"metrics": "selectivit"}),
        (OptionError, "layers of a survey must be names or globs", {"layers": [torch.nn.ReLU]}),
    ):
        with pytest.raises(error, match=message):
            run(["survey_nets:a"], **options)
    with pytest.raises(ModelError, match="no model matches"):
        run(["probekit:none*"])
    with pytest.raises(DataError, match="neither a data set nor a folder"):
        pk.survey("survey_nets:a", "fashion-mnis", "s")
    several = torch.rand(4, 1, 28, 28), {"color": torch.arange(4), "shape": torch.arange(4) % 2}
    with pytest.raises(OptionError, match=r"several labels per image \(color, shape\)"):
        pk.survey("survey_nets:a", several, "s")
    with pytest.raises(OptionError, match="split, root and skip_bad are for data given by name"):
        pk.survey("survey_nets:a", several, "s", split="test")
    with pytest.raises(OptionError, match="can be read only once"):
        pk.survey(
            "survey_nets:a", (pair for pair in [(torch.rand(4, 1, 28, 28), torch.arange(4))]), "s"
        )
    assert not Path("s").exists()


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_a_survey_of_models_that_all_fail_has_a_page() -> None:
    arguments = ["survey", "survey_nets:broken", "fashion-mnist", "-o", "s", "--no-progress"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "no weights today" in Path("s/report.html").read_text()


def test_images_that_are_not_arrays_are_surveyed() -> None:
    from PIL import Image

    rows = [{"image": Image.new("L", (30, 20), 8 * at), "label": at % 2} for at in range(20)]
    found = pk.survey(["survey_nets:a"], rows, "s", progress=False)
    assert found["failure"].values.tolist() == [""]


class Above(pk.Metric):
    """The number of classes whose mean is above a threshold, which is no field."""

    name = "above"
    needs = (pk.ClassMeans(),)

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def evaluate(self, class_mean: Any) -> tuple[xr.Dataset, xr.Dataset]:
        above = (class_mean > self.threshold).sum("class").astype(float)
        return xr.Dataset({"above": above}), xr.Dataset()


class AtLeast(Above):
    def evaluate(self, class_mean: Any) -> tuple[xr.Dataset, xr.Dataset]:
        above = (class_mean >= self.threshold).sum("class").astype(float)
        return xr.Dataset({"above": above}), xr.Dataset()


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_other_options_or_code_of_a_metric_of_ones_own_are_refused() -> None:
    run(["survey_nets:a"], metrics=Above(0.0))
    run(["survey_nets:a"], metrics=Above(0.0))
    with pytest.raises(OutputError, match=r"metrics\.above\.threshold was 0\.0 and is 0\.4"):
        run(["survey_nets:a"], metrics=Above(0.4))
    with pytest.raises(OutputError, match=r"metrics\.above\.code differs"):
        run(["survey_nets:a"], metrics=AtLeast(0.0))


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_a_model_of_the_same_weights_and_other_functions_is_measured_again(place: Path) -> None:
    before = run(["survey_nets:a"])
    (place / "survey_nets.py").write_text(OWN.replace("torch.nn.ReLU", "torch.nn.Softplus"))
    sys.modules.pop("survey_nets")
    after = run(["survey_nets:a"])
    assert float(before["selectivity_mean"][0]) != float(after["selectivity_mean"][0])


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_other_weights_and_other_versions_of_a_library_are_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["probekit:resnet20-fashion-mnist", "resnet10t"]

    def measured() -> list[int]:
        pk.survey(names, "fashion-mnist", "s", "layer*1", limit=4, pretrained=False, progress=False)
        files = Path("s/results").glob("*.nc")
        return [file.stat().st_mtime_ns for file in sorted(files)]

    first = measured()
    assert measured() == first
    monkeypatch.setattr(surveying, "version", lambda library: "0.0")
    second = measured()
    assert [one == two for one, two in zip(first, second, strict=True)] == [True, False]
    load = surveying._load
    monkeypatch.setattr(surveying, "_load", lambda source, *_: load(source, False, 1))
    third = measured()
    assert [one == two for one, two in zip(second, third, strict=True)] == [False, False]


def test_an_outdated_result_is_kept_and_not_shown_until_the_new_one_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["survey_nets:a", "survey_nets:b"]
    with pytest.warns(ProbekitWarning):
        before = run(names)
    files = {file: file.read_bytes() for file in Path("s/results").glob("*.nc")}
    with monkeypatch.context() as cut:
        cut.setattr(surveying, "_load", lambda *_: pk.load_model("survey_nets:d"))
        cut.setattr(surveying, "_measure", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(names)
    assert {file: file.read_bytes() for file in Path("s/results").glob("*.nc")} == files
    shown = surveying.survey_table("s")
    assert "n_units" not in shown
    assert "other weights" in shown["failure"].values[0]
    with pytest.warns(ProbekitWarning):
        again = run(names)
    assert (again["failure"] == "").all()
    assert again["n_units"].equals(before["n_units"])

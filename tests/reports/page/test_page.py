"""The page as a file: its contents, how it is written, what is omitted for size, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.data.images import TensorImages
from probekit.errors import DataError, OptionError, OutputError
from report_pages import Tags, columns_of, payload, unpacked, written

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028&amp;\udcff"


def test_contains_the_numbers_of_every_unit(result: xr.DataTree, tmp_path: Path) -> None:
    units = result["units"].to_dataset()
    (table,) = payload(written(result, tmp_path))["models"]
    assert table["layers"] == ["stem.relu", "block1.relu", "block2.relu"]
    layer = np.array(table["layers"], dtype=object)[unpacked(table["layer"], "<i4")]
    np.testing.assert_array_equal(layer, units["layer"].values)
    np.testing.assert_array_equal(unpacked(table["channel"], "<i4"), units["channel"].values)
    columns = columns_of(table)
    for name in ("selectivity", "preferred_class", "dead", "gradient_norm_cv"):
        np.testing.assert_allclose(columns[name], units[name].values.astype(float), rtol=1e-6)
    np.testing.assert_allclose(
        columns["mean_activation"], units["class_mean"].mean("class"), rtol=1e-6
    )
    tuning = table["tuning"]
    means = unpacked(tuning["mean"], "<f4").reshape(60, 4)
    labels = np.array(tuning["labels"])[unpacked(tuning["place"], "<i4")].reshape(60, 4)
    np.testing.assert_allclose(means, -np.sort(-units["class_mean"].values, 1), rtol=1e-6)
    again = np.take_along_axis(units["class_mean"].values, labels.astype(int), 1)
    np.testing.assert_allclose(means, again, rtol=1e-6)


def test_the_highest_of_many_classes_are_stored_and_the_others_averaged(
    make_result: Any, tmp_path: Path
) -> None:
    many = make_result(classes=[f"class {number}" for number in range(90)])
    (table,) = payload(written(many, tmp_path))["models"]
    means = -np.sort(-many["units"]["class_mean"].values, 1)
    tuning = table["tuning"]
    assert (tuning["count"], tuning["others"]) == (40, 50)
    np.testing.assert_allclose(
        unpacked(tuning["mean"], "<f4").reshape(60, 40), means[:, :40], rtol=1e-6
    )
    np.testing.assert_allclose(unpacked(tuning["rest"], "<f4"), means[:, 40:].mean(1), rtol=1e-5)


def test_labels_of_any_size_are_exact(tmp_path: Path) -> None:
    labels = 7_000_000_001 + torch.arange(12) % 3
    table = torch.eye(3)[torch.arange(12) % 3] + torch.rand(12, 3) / 2
    result = pk.analyze(
        torch.nn.Sequential(torch.nn.ReLU()), (table, labels), "0", ["selectivity", "top_images"]
    )
    (found,) = payload(written(result, tmp_path))["models"]
    expected = [7_000_000_001, 7_000_000_002, 7_000_000_003]
    assert columns_of(found)["preferred_class"].tolist() == expected
    tuning = found["tuning"]
    assert np.array(tuning["labels"])[unpacked(tuning["place"], "<i4")].tolist()[::3] == expected
    assert unpacked(found["top"]["label"], "<f8").tolist()[::9] == expected


def test_large_counts_are_exact(make_result: Any, tmp_path: Path) -> None:
    result = make_result()
    counts = 2**24 + 1 + np.arange(result["units"].sizes["unit"])
    result["units"]["spikes"] = xr.DataArray(counts, dims="unit")
    (table,) = payload(written(result, tmp_path))["models"]
    np.testing.assert_array_equal(columns_of(table)["spikes"], counts)


def test_names_cannot_close_elements_and_need_not_be_text(make_result: Any, tmp_path: Path) -> None:
    valid = HOSTILE.removesuffix("\udcff")  # pandas with pyarrow holds no other text
    bad = make_result(layers=(valid, "b"), classes=(valid, "y", "z"), name=HOSTILE)
    page = written({HOSTILE: bad, "other": make_result()}, tmp_path, title=HOSTILE)
    tags = Tags(page)
    assert tags.count("img") == 0
    assert tags.count("script") == 2
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert payload(page)["models"][0]["layers"][0] == valid
    assert "\u2028" not in page.split("<script", 1)[1]


def test_makes_no_network_requests(
    result: xr.DataTree, images: TensorImages, tmp_path: Path
) -> None:
    page = written(result, tmp_path, data=images)
    for tag, attributes in Tags(page).found:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"} or tag == "form"
        address = attributes.get("href") or attributes.get("src") or "#"
        assert address.startswith("#"), address
        assert attributes.get("style") is None
    assert "url(" not in page
    assert "@import" not in page
    (policy,) = [a["content"] for tag, a in Tags(page).found if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_reports_its_size_and_provenance(result: xr.DataTree, tmp_path: Path) -> None:
    path = pk.report(result, tmp_path / "r.html")
    text = path.read_text("utf-8")
    assert f"This file has {path.stat().st_size / 2**20:.1f} MiB, with a limit of 16.0 MiB" in text
    assert "toy data" in text
    assert "sha256:toy0" in text


def test_images_are_omitted_first_and_the_page_reports_it(make_result: Any, tmp_path: Path) -> None:
    """Images of noise, which no encoding compresses."""
    random = torch.Generator().manual_seed(0)
    data = TensorImages(torch.rand(40, 3, 96, 96, generator=random), torch.arange(40) % 4)
    result = make_result(600, top=9)
    whole = written(result, tmp_path, data=data)
    assert len(payload(whole)["images"]) == 40
    assert "with all 40 images" in whole
    large = make_result(12_000)
    bare = len(written(large, tmp_path, overwrite=True))
    budget = bare + 2**17
    cut = written(large, tmp_path, data=data, budget=budget, overwrite=True)
    kept = payload(cut)["images"]
    assert 0 < len(kept) < 40
    assert len(cut.encode()) <= budget
    assert f"{len(kept)} of 40 images" in cut
    index = large["units"]["selectivity"].values
    best = large["units"]["top_sample"].values[np.argsort(-index, kind="stable"), 0]
    assert list(kept) == [str(one) for one in dict.fromkeys(best.tolist())][: len(kept)]


def test_class_means_are_omitted_next_before_the_report_is_refused(
    make_result: Any, tmp_path: Path
) -> None:
    large = make_result(12_000)
    bare = len(written(large, tmp_path))
    page = written(large, tmp_path, budget=bare - 2**17, overwrite=True)
    assert "tuning" not in payload(page)["models"][0]
    assert "class means and random samples are left out" in page
    with pytest.raises(OutputError, match=r"analyze fewer layers, or raise budget"):
        written(large, tmp_path, budget=2**20, overwrite=True)


@pytest.mark.parametrize("budget", [0, 1000, 2.5])
def test_an_invalid_budget_is_refused(result: xr.DataTree, tmp_path: Path, budget: Any) -> None:
    with pytest.raises(OptionError, match="budget must be a number of bytes"):
        pk.report(result, tmp_path / "r.html", budget=budget)


def test_output_is_checked_before_results_are_read(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    cases = {
        "there.html": "exists already",
        "folder.html": "is a folder",
        "page.txt": r"\.html or \.htm file",
        "no/such/folder/r.html": "cannot be written",
        "zero\0.html": "cannot be written",
    }
    for name, words in cases.items():
        with pytest.raises(OutputError, match=words):
            pk.report("no such result.nc", tmp_path / name)
    assert (tmp_path / "there.html").read_text() == "mine"


def test_the_page_is_written_completely_or_not_at_all(
    result: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pk.report(result, tmp_path / "r.html")
    before = path.read_bytes()

    def fail(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        pk.report(result, path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r.html"]


def test_data_that_does_not_match_is_refused(
    result: xr.DataTree, images: TensorImages, tmp_path: Path
) -> None:
    other = TensorImages(images.images, (images.labels + 1) % 4, images.classes)
    with pytest.raises(DataError, match="the data is not that of the result: sample"):
        pk.report(result, tmp_path / "r.html", data=other)
    with pytest.raises(DataError, match="tensors has 3 samples"):
        pk.report(result, tmp_path / "r.html", data=(images.images[:3], images.labels[:3]))
    assert not list(tmp_path.iterdir())


def test_results_of_different_data_cannot_share_images(
    make_result: Any, images: TensorImages, tmp_path: Path
) -> None:
    other = make_result(seed=1)
    other["units"]["top_label"][:] = 0
    with pytest.raises(DataError, match="of different data"):
        pk.report([make_result(), other], tmp_path / "r.html", data=images)


@pytest.mark.parametrize(
    ("results", "options", "error", "words"),
    [
        ([], {}, OptionError, "at least one result"),
        (3, {}, OptionError, "a DataTree or a file, not int"),
        ("none.nc", {}, OutputError, "there is no result"),
        (xr.DataTree(), {}, DataError, "neither units nor robustness"),
    ],
)
def test_objects_that_are_not_results_are_refused(
    tmp_path: Path, results: Any, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pk.report(results, tmp_path / "r.html", **options)


def test_inconsistent_tables_are_refused(make_result: Any, tmp_path: Path) -> None:
    tree = make_result()
    tree["layers"] = xr.DataTree(tree["layers"].to_dataset().isel(layer=slice(2)))
    with pytest.raises(DataError, match=r"layers of 'toy' lacks block2.relu"):
        written(tree, tmp_path)
    tree = make_result()
    tree["units"] = xr.DataTree(tree["units"].to_dataset().drop_vars("channel"))
    with pytest.raises(DataError, match="no coordinate 'channel'"):
        written(tree, tmp_path)


def test_a_result_with_only_units_gives_a_page(make_result: Any, tmp_path: Path) -> None:
    units = xr.DataTree.from_dict({"units": make_result()["units"].to_dataset()})
    (table,) = payload(written(units, tmp_path))["models"]
    assert table["layers"] == ["stem.relu", "block1.relu", "block2.relu"]


def test_models_get_different_names(make_result: Any, tmp_path: Path) -> None:
    page = written([make_result(), make_result(seed=1), make_result(seed=2)], tmp_path)
    assert [one["name"] for one in payload(page)["models"]] == ["toy", "toy (2)", "toy (3)"]
    page = written([make_result()], tmp_path, names=["mine"], overwrite=True)
    assert [one["name"] for one in payload(page)["models"]] == ["mine"]
    with pytest.raises(OptionError, match="1 models need as many names, not 2"):
        written(make_result(), tmp_path, names=["a", "b"], overwrite=True)


def test_robustness_is_merged_with_the_analysis_of_its_model(model: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(24, 1, 8, 8, generator=generator)
    model.module.eval()
    labels = (model(pictures).argmax(1) + (torch.arange(24) % 3 == 2)) % 3
    data = TensorImages(pictures, labels)
    analysis = pk.analyze(model, data, metrics=["selectivity", "top_images"])
    run = pk.robustness(
        model, data, ["contrast"], [1, 5], ["fgsm"], [4 / 255], table=32, progress=False
    )
    pages = {
        "both": written([run, analysis], tmp_path, data=data),
        "alone": written(run, tmp_path, overwrite=True),
    }
    (table,) = payload(pages["both"])["models"]
    columns = columns_of(table)
    change = run["units"]["corruption_change_size"].mean(["corruption", "severity"])
    usual = analysis["units"]["class_mean"].mean("class")
    expected = np.where(usual > 0, change / usual, np.nan)
    np.testing.assert_allclose(columns["corruption_change_relative"], expected, rtol=1e-5)
    assert "Accuracy under corruption" in pages["both"]
    assert "Accuracy under attack" in pages["alone"]


def test_units_of_a_merged_result_without_top_images_show_none(
    partly_measured: tuple[xr.DataTree, TensorImages], tmp_path: Path
) -> None:
    result, data = partly_measured
    page = payload(written(result, tmp_path, data=data))
    (table,) = page["models"]
    units = result["units"].to_dataset()
    known = units["layer"].values == "4"
    samples = unpacked(table["top"]["sample"], "<i4").reshape(len(known), -1)
    np.testing.assert_array_equal(samples[known], units["top_sample"].values[known])
    assert (samples[~known] == -1).all()
    assert {int(name) for name in page["images"]} == set(samples[known].ravel().tolist())


def test_the_mean_under_corruption_counts_the_types_that_it_includes(
    model: Any, tmp_path: Path
) -> None:
    data = TensorImages(torch.rand(24, 1, 8, 8), torch.arange(24) % 3)
    types = ["contrast", "fog", "speckle_noise"]  # the last is none of the standard types
    run = pk.robustness(model, data, types, [1, 5], layers="4", table=32, progress=False)
    assert "mean over types (2) and severities (2)" in written(run, tmp_path)


def test_a_result_of_a_user_defined_metric_has_a_page(
    model: Any, labeled: Any, tmp_path: Path
) -> None:
    result = pk.analyze(model, labeled, metrics=["lifetime_sparsity", "dimensionality"])
    page = written(result, tmp_path)
    assert "lifetime sparsity of the units" in page
    assert "no images, as the metric top_images was not measured" in page


def test_the_command_line_writes_reports(
    result: xr.DataTree, make_result: Any, tmp_path: Path
) -> None:
    files = [tmp_path / "a.nc", tmp_path / "b.nc"]
    for path, tree in zip(files, (result, make_result(seed=1)), strict=True):
        pk.save_result(tree, path)
    out = tmp_path / "r.html"
    command = ["report", *map(str, files), "-o", str(out), "--names", "one,two", "--title", "Pair"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"report: {out}, ")
    assert [one["name"] for one in payload(out.read_text())["models"]] == ["one", "two"]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0


def test_an_analysis_writes_its_report_with_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    command = [
        "analyze",
        "test_resnet.r160_in1k",
        str(folder),
        "--random",
        "--report",
        str(out),
    ]
    done = CliRunner().invoke(app, [*command, "--no-progress", "--layers", "act1"])
    assert done.exit_code == 0, done.output
    assert f"report: {out}" in done.output
    page = payload(out.read_text())
    assert len(page["images"]) == 12
    assert page["models"][0]["top"]["count"] == 9
    out.chmod(0o444)
    assert CliRunner().invoke(app, command).exit_code == 2


def test_results_of_models_of_one_class_are_named_by_their_files(
    make_result: Any, tmp_path: Path
) -> None:
    for number in range(3):
        tree = make_result(seed=number)
        facts = {"model": {"type": "Net", "hash": f"sha256:{number}"}}
        tree.attrs["provenance"] = json.dumps(facts)
        pk.save_result(tree, tmp_path / f"run_{number}.nc")
    page = written([tmp_path / f"run_{number}.nc" for number in range(3)], tmp_path)
    assert [one["name"] for one in payload(page)["models"]] == ["run_0", "run_1", "run_2"]


def test_robustness_of_other_layers_is_merged_and_of_another_model_is_refused(
    make_result: Any, tmp_path: Path
) -> None:
    analysis = make_result()
    late = analysis["units"].to_dataset().isel(unit=analysis["units"]["layer"] == "block2.relu")
    change = (("unit", "corruption"), np.ones((late.sizes["unit"], 1)))
    late = late[["selectivity"]].assign(corruption_change_size=change, corruption=["fog"])
    outcomes = xr.Dataset({"clean_accuracy": 0.5, "n_samples": 10})
    run = xr.DataTree.from_dict({"units": late, "robustness": outcomes})
    run.attrs["provenance"] = analysis.attrs["provenance"]
    page = written([analysis, run], tmp_path, overwrite=True)
    (model,) = payload(page)["models"]
    assert model["layers"] == ["stem.relu", "block1.relu", "block2.relu"]
    assert "separate model" not in page
    run.attrs["provenance"] = json.dumps({"model": {"name": "other", "hash": "sha256:other"}})
    page = written([analysis, run], tmp_path, overwrite=True)
    assert len(payload(page)["models"]) == 2
    assert "shown as a separate model: the results are of different models" in page

"""Merging results of one model: what is preserved, in which order, and what is refused."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import probekit as pk
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.reports.terminal import console, print_result


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    sizes = ((16, 6), (6, 6), (6, 5), (5, 3))
    parts = [nn.Sequential(nn.Linear(*size), nn.ReLU()) for size in sizes]
    return nn.Sequential(nn.Flatten(), *parts)


@pytest.fixture(scope="module")
def data() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(30, 1, 4, 4, generator=generator), torch.arange(30) % 3)]


def analyze(network: nn.Module, data: Any, layers: Any, metrics: Any = ("selectivity",)) -> Any:
    return pk.analyze(network, data, layers, list(metrics), progress=False)


def test_results_of_different_layers_merge_to_the_analysis_of_all_layers(
    network: nn.Module, data: Any
) -> None:
    whole = analyze(network, data, ["1.1", "2.1", "3.1", "4.1"], ["selectivity", "dimensionality"])
    merged = pk.merge_results(
        analyze(network, data, ["2.1", "4.1"], ["selectivity", "dimensionality"]),
        analyze(network, data, ["1.1", "2.1", "3.1", "4.1"], ["selectivity", "dimensionality"]),
    )
    for node in ("units", "layers", "samples"):
        expected, found = whole[node].to_dataset(), merged[node].to_dataset()
        found = found[list(expected)]
        if node == "layers":
            assert found["layer"].values.tolist() == ["1.1", "2.1", "3.1", "4.1"]
        xr.testing.assert_allclose(found, expected, rtol=1e-12)
        assert {name: one.dtype for name, one in found.items()} == {
            name: one.dtype for name, one in expected.items()
        }
    assert merged["accuracy"] == whole["accuracy"]
    # The mean over the layers of one result is not the mean over all layers.
    assert "selectivity_mean" not in merged


def test_results_of_different_metrics_merge_to_one_analysis_with_both(
    network: nn.Module, data: Any
) -> None:
    whole = analyze(network, data, ["2.1"], ["selectivity", "dimensionality"])
    merged = pk.merge_results(
        analyze(network, data, ["2.1"]), analyze(network, data, ["2.1"], ["dimensionality"])
    )
    xr.testing.assert_allclose(
        merged["layers"].to_dataset()[list(whole["layers"])], whole["layers"].to_dataset()
    )
    assert merged["selectivity_mean"] == whole["selectivity_mean"]
    facts = json.loads(merged.attrs["provenance"])
    assert set(facts["metrics"]) == {"selectivity", "dimensionality"}
    assert set(facts["merged"][0]["metrics"]) == {"dimensionality"}


def test_unmeasured_values_are_missing(network: nn.Module, data: Any) -> None:
    merged = pk.merge_results(
        analyze(network, data, ["1.1", "2.1"]),
        analyze(network, data, ["2.1", "3.1"], ["dimensionality"]),
    )
    layers, units = merged["layers"].to_dataset(), merged["units"].to_dataset()
    assert layers["participation_ratio"].isnull().values.tolist() == [True, False, False]
    assert layers["selectivity_mean"].isnull().values.tolist() == [False, False, True]
    assert units["dead"].isnull().sum() == 5
    assert units["layer"].values.tolist() == ["1.1"] * 6 + ["2.1"] * 6 + ["3.1"] * 5


def test_merged_files_are_saved_and_reopened(network: nn.Module, data: Any, tmp_path: Path) -> None:
    pk.save_result(analyze(network, data, ["1.1"]), tmp_path / "a.nc")
    pk.save_result(analyze(network, data, ["2.1"]), tmp_path / "b.zarr")
    merged = pk.merge_results(tmp_path / "a.nc", tmp_path / "b.zarr")
    for name in ("c.nc", "c.zarr"):
        pk.save_result(merged, tmp_path / name)
        xr.testing.assert_equal(pk.open_result(tmp_path / name), merged)


def test_three_results_are_merged_and_fewer_than_two_refused(network: nn.Module, data: Any) -> None:
    one = [analyze(network, data, [layer]) for layer in ("1.1", "2.1", "3.1")]
    merged = pk.merge_results(*one)
    assert merged["layers"]["layer"].values.tolist() == ["1.1", "2.1", "3.1"]
    xr.testing.assert_equal(pk.merge_results(one), merged)
    with pytest.raises(OptionError, match="at least two"):
        pk.merge_results(one[0])


def test_incompatible_results_are_refused(network: nn.Module, data: Any) -> None:
    one = analyze(network, data, ["1.1"])
    fewer = [(data[0][0][:20], data[0][1][:20])]
    with pytest.raises(DataError, match=r"different images \(30 and 20 samples\)"):
        pk.merge_results(one, analyze(network, fewer, ["2.1"]))
    torch.manual_seed(7)
    other = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 6), nn.ReLU()))
    with pytest.raises(DataError, match="different models"):
        pk.merge_results(one, analyze(other, data, ["1.1"]))
    with pytest.raises(DataError, match="without provenance"):
        pk.merge_results(one, xr.DataTree.from_dict({"units": one["units"].to_dataset()}))
    with pytest.raises(OptionError, match="a result must be a DataTree or a file, not Dataset"):
        pk.merge_results(one, one["units"].to_dataset())


def test_models_that_differ_in_more_than_weights_are_refused(network: nn.Module, data: Any) -> None:
    one = analyze(network, data, "1.1")
    other = copy.deepcopy(network)
    other[1][1] = nn.Softplus()
    with pytest.raises(DataError, match="their weights are equal, but modules differ"):
        pk.merge_results(one, analyze(other, data, "1.1", ["dimensionality"]))
    models = [pk.ImageModel(network, (mean,), (1.0,), (1, 4, 4)) for mean in (0.0, 0.5)]
    with pytest.raises(DataError, match="but mean differ"):
        pk.merge_results(*(analyze(model, data, "1.1") for model in models))


def test_other_images_with_the_same_labels_are_refused(network: nn.Module, data: Any) -> None:
    images, labels = data[0]
    one, same, other = (
        analyze(network, TensorDataset(x, labels), "1.1") for x in (images, images, images + 1)
    )
    pk.merge_results(one, same)
    with pytest.raises(DataError, match="of different images"):
        pk.merge_results(one, other)


class Images(Dataset[Any]):
    """Images whose content has no hash."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return 30

    def __getitem__(self, number: int) -> Any:
        return self.images[number], number % 3


FORMS: dict[str, Any] = {
    "data set": Images,
    "loader": lambda images: DataLoader(Images(images), 7),
    "batches": lambda images: [
        (images[:20], torch.arange(20) % 3),
        (images[20:], torch.arange(20, 30) % 3),
    ],
    "stream": lambda images: iter([(images, torch.arange(30) % 3)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_other_image_is_noticed(form: str, network: nn.Module, data: Any) -> None:
    images = data[0][0]
    one = analyze(network, FORMS[form](images), "1.1")
    same = analyze(network, FORMS[form](images.clone()), "1.1", ["dimensionality"])
    assert "participation_ratio" in pk.merge_results(one, same)["layers"]
    for place in (1, 15, 29):
        changed = images.clone()
        changed[place] *= 0.5
        other = analyze(network, FORMS[form](changed), "1.1", ["selectivity", "dimensionality"])
        with pytest.raises(DataError, match="of different images"):
            pk.merge_results(one, other)
        with pytest.warns(ProbekitWarning, match="of different images"):
            pk.compare(one, other)


def test_other_options_and_class_names_are_noticed(network: nn.Module, data: Any) -> None:
    one = analyze(network, data, "1.1")
    other = analyze(network, data, "2.1", [pk.Selectivity(negative="shift")])
    said = 'metrics.selectivity.negative was "clip" and is "shift"'
    with pytest.warns(ProbekitWarning, match=f"so columns of both hold numbers of both: {said}"):
        merged = pk.merge_results(one, other)
    notes = merged.attrs["notes"].splitlines()
    assert {*one.attrs["notes"].splitlines(), *other.attrs["notes"].splitlines()} < {*notes}
    assert any(said in note for note in notes)
    named = [TensorDataset(*data[0]) for _ in "ab"]
    for images, classes in zip(named, ("abc", "cba"), strict=True):
        images.classes = list(classes)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="different labels along 'class'"):
        pk.merge_results(*(analyze(network, images, "1.1") for images in named))


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(20, 4), nn.Linear(4, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.middle(self.embed(input_ids))).mean(1)


def padded(samples: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pads to the longest sample of a batch."""
    tokens, labels = zip(*samples, strict=True)
    ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}, torch.tensor(labels)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_samples_padded_for_other_batches_are_the_same_and_other_tokens_are_not() -> None:
    torch.manual_seed(0)
    net = Sentences()
    tokens = [torch.arange(1, 1 + length) for length in (3, 2, 4, 9, 5, 6)]
    changed = [tokens[0].flip(0), *tokens[1:]]

    def measure(tokens: Any, size: int, metric: str) -> xr.DataTree:
        samples = [(one, number % 2) for number, one in enumerate(tokens)]
        loader = DataLoader(samples, size, collate_fn=padded)  # type: ignore[arg-type]
        return pk.analyze(net, loader, "middle", metric, progress=False)

    first = measure(tokens, 3, "selectivity")
    merged = pk.merge_results(first, measure(tokens, 4, "dimensionality"))
    assert "selectivity" in merged["units"]
    assert "participation_ratio" in merged["layers"]
    with pytest.raises(DataError, match="different images"):
        pk.merge_results(first, measure(changed, 3, "dimensionality"))


def test_numbers_of_some_layers_are_shown_and_compared_as_such(
    network: nn.Module, data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one = analyze(network, data, ["1.1", "2.1"])
    merged = pk.merge_results(one, analyze(network, data, ["3.1"], ["eta_squared"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NaN as an integer is another number on each processor
        table = pk.units_table(merged)
    absent = table["preferred_label"].isna().tolist()
    assert absent == [*pk.units_table(one)["dead"], *[True] * 5]
    print_result(merged, console())
    printed = capsys.readouterr().out
    mean = float(one["layers"]["selectivity_mean"].mean())
    assert f"network: mean class selectivity index {mean:.4f} over 2 layers" in printed
    assert "over 1 layer" in printed  # eta squared
    shown = printed.partition("most selective units")[2].partition("network")[0]
    assert "3.1" not in shown
    differences = pk.compare(merged, merged, paired=True)
    # Labels became floats, whose mean says nothing.
    for node in ("units", "layers"):
        assert not [name for name in differences[node].data_vars if "preferred" in str(name)]
    assert float(differences["layers"]["selectivity_first"][0]) == pytest.approx(
        float(one["layers"]["selectivity_mean"][0])
    )


def test_merging_merged_results_keeps_missing_values(network: nn.Module, data: Any) -> None:
    one = analyze(network, data, "1.1")
    other = pk.merge_results(
        analyze(network, data, "2.1"), analyze(network, data, "3.1", ["dimensionality"])
    )
    merged = pk.merge_results(one, other)
    units, layers = merged["units"].to_dataset(), merged["layers"].to_dataset()
    measured = units["layer"].values != "3.1"
    whole = analyze(network, data, ["1.1", "2.1"])["units"].to_dataset()
    for name in ("preferred_class", "dead", "negative_class_mean"):
        np.testing.assert_array_equal(units[name].values[measured], whole[name].values)
        assert np.isnan(units[name].values[~measured]).all()
    assert np.isnan(layers["dead_units"].values[2])
    assert pk.units_table(merged)["preferred_label"].isna().sum() == (
        5 + (whole["preferred_class"] < 0).sum()
    )


def test_three_results_fill_what_the_first_two_lack(network: nn.Module, data: Any) -> None:
    metrics = ["selectivity", "dimensionality"]
    whole = analyze(network, data, ["1.1", "2.1"], metrics)
    merged = pk.merge_results(
        analyze(network, data, "2.1"),
        analyze(network, data, ["1.1", "2.1"], ["dimensionality"]),
        analyze(network, data, "1.1"),
    )
    for node in ("units", "layers"):
        expected = whole[node].to_dataset()
        for name, values in expected.items():
            np.testing.assert_array_equal(merged[node][name].values, values.values, str(name))


def test_missing_values_of_a_measured_unit_stay_missing(network: nn.Module, data: Any) -> None:
    first = analyze(network, data, ["1.1"])
    first["units"]["selectivity"][0] = np.nan
    assert "selectivity" in first["units"]["selectivity"].attrs["metric"]
    merged = pk.merge_results(first, analyze(network, data, ["1.1", "2.1"]))
    assert merged["units"]["selectivity"].isnull().values.tolist() == [True] + [False] * 11


def test_means_over_layers_are_omitted_with_layers_of_robustness(
    network: nn.Module, data: Any
) -> None:
    options: Any = {"corruptions": "contrast", "severities": 1, "table": 32, "progress": False}
    model = pk.ImageModel(network, (0.0,), (1.0,), (1, 4, 4))
    one = analyze(model, data, "1.1")
    same, more = (pk.robustness(model, data, layers=x, **options) for x in ("1.1", ["1.1", "2.1"]))
    assert pk.merge_results(one, same)["selectivity_mean"] == one["selectivity_mean"]
    for order in ((one, more), (more, one)):
        merged = pk.merge_results(*order)
        assert "selectivity_mean" not in merged.data_vars
        assert merged["layers"]["selectivity_mean"].notnull().all()

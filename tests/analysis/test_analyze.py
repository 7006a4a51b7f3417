"""A single pass from a model and labeled images to a tree of labeled results."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probekit as pk
from probekit.errors import DataError, LayerError, ModelError, OptionError, ProbekitWarning

LAYERS = ["2", "4", "7"]


def by_hand(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float = 1e-6
) -> dict[str, Any]:
    """Class means and selectivity index of every layer, by numpy loops over units and classes."""
    kept: dict[str, np.ndarray[Any, Any]] = {}
    network.eval()
    handles = [
        network[int(name)].register_forward_hook(
            lambda m, i, out, name=name: kept.__setitem__(name, out.clone().double().numpy())
        )
        for name in LAYERS
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    found = {}
    for name, maps in kept.items():
        pooled = maps.reshape(*maps.shape[:2], -1).mean(2)
        means = np.array(
            [
                [pooled[labels.numpy() == c, u].mean() for c in range(3)]
                for u in range(pooled.shape[1])
            ]
        )
        index = []
        for row in means:
            best = int(row.argmax())
            rest = np.delete(row, best).mean()
            index.append((row[best] - rest) / (row[best] + rest + eps))
        found[name] = (means, np.array(index), means.argmax(1))
    return found


def test_result_equals_a_plain_numpy_reference(
    network: nn.Module, labeled: tuple[Tensor, Tensor]
) -> None:
    reference = by_hand(network, *labeled)
    network.train()
    result = pk.analyze(network, labeled, batch_size=7)
    units = result["units"].to_dataset()
    for name, (means, index, preferred) in reference.items():
        rows = units.isel(unit=units["layer"].values == name)
        np.testing.assert_allclose(rows["class_mean"], means, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(rows["selectivity"], index, rtol=1e-4, atol=1e-6)
        alive = ~rows["dead"].values
        np.testing.assert_array_equal(rows["preferred_class"].values[alive], preferred[alive])
        assert (rows["preferred_class"].values[~alive] == -1).all()
        np.testing.assert_array_equal(rows["channel"], np.arange(len(index)))
    layers = result["layers"].to_dataset()
    assert layers["layer"].values.tolist() == LAYERS
    expected = [np.where(np.isnan(i), 0, i).mean() for _, i, _ in reference.values()]
    np.testing.assert_allclose(layers["selectivity_mean"], expected, rtol=1e-4)
    np.testing.assert_allclose(result["selectivity_mean"], np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(
        layers["selectivity_quartiles"].sel(layer="4"),
        np.quantile(reference["4"][1], [0.25, 0.5, 0.75]),
        rtol=1e-4,
    )


def test_model_is_restored(network: nn.Module, labeled: tuple[Tensor, Tensor]) -> None:
    network.train()
    network[1].eval()
    modes = [child.training for child in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pk.analyze(network, labeled)
    assert [child.training for child in network.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in network.modules())


def test_hooks_are_removed_when_the_data_fails(
    network: nn.Module, labeled: tuple[Tensor, Tensor]
) -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield labeled
        raise RuntimeError("disk on fire")

    network.train()
    with pytest.raises(RuntimeError, match="disk on fire"):
        pk.analyze(network, broken())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in network.modules())
    assert all(child.training for child in network.modules())


@pytest.mark.parametrize("kind", ["tensors", "list", "generator", "loader", "dataset", "mappings"])
def test_all_kinds_of_sources_give_the_same_result(
    kind: str, network: nn.Module, labeled: tuple[Tensor, Tensor]
) -> None:
    images, labels = labeled
    pairs = list(zip(images.split(8), labels.split(8), strict=True))
    sources = {
        "tensors": (images, labels),
        "list": pairs,
        "generator": (pair for pair in pairs),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=8),
        "dataset": TensorDataset(images, labels),
        "mappings": [{"pixel_values": x, "labels": y} for x, y in pairs],
    }
    expected = pk.analyze(network, pairs)["units"]["selectivity"]
    found = pk.analyze(network, sources[kind], batch_size=8)
    np.testing.assert_allclose(found["units"]["selectivity"], expected, rtol=1e-5)
    assert found["samples"].sizes["sample"] == 30


def test_image_model_normalizes_and_names_classes(
    model: pk.ImageModel, labeled: tuple[Tensor, Tensor]
) -> None:
    images, labels = labeled
    result = pk.analyze(model, labeled)
    bare = pk.analyze(model.module, ((images - 0.3) / 0.5, labels))
    np.testing.assert_allclose(
        result["units"]["selectivity"], bare["units"]["selectivity"], rtol=1e-4, atol=1e-6
    )
    with torch.no_grad():
        predicted = model(images).argmax(1) if not model.module.training else None
    if predicted is not None:
        np.testing.assert_array_equal(result["samples"]["prediction"], predicted)


def test_predictions_and_accuracy(network: nn.Module, labeled: tuple[Tensor, Tensor]) -> None:
    result = pk.analyze(network, labeled)
    network.eval()
    with torch.no_grad():
        predicted = network(labeled[0]).argmax(1).numpy()
    np.testing.assert_array_equal(result["samples"]["prediction"], predicted)
    assert float(result["accuracy"]) == pytest.approx((predicted == labeled[1].numpy()).mean())


def test_provenance_records_how_the_result_was_made(
    model: pk.ImageModel, labeled: tuple[Tensor, Tensor]
) -> None:
    result = pk.analyze(model, labeled, metrics=[pk.Selectivity(eps=0.5)], seed=4)
    facts = json.loads(result.attrs["provenance"])
    assert facts["metrics"] == {"selectivity": {"eps": 0.5, "negative": "clip", "dead_below": 0.0}}
    assert facts["model"]["hash"].startswith("sha256:")
    assert facts["data"]["fingerprint"].startswith("sha256:")
    assert (facts["seed"], facts["layers"], facts["data"]["seen"]) == (4, LAYERS, 30)
    assert facts["versions"]["probekit"] == pk.__version__


def test_limit_samples_from_the_whole_data_set(network: nn.Module) -> None:
    labels = torch.arange(3).repeat_interleave(40)
    data = TensorDataset(torch.rand(120, 1, 8, 8), labels)
    result = pk.analyze(network, data, limit=30, seed=1)
    assert result["samples"].sizes["sample"] == 30
    assert set(result["samples"]["label"].values.tolist()) == {0, 1, 2}
    again = pk.analyze(network, data, limit=30, seed=1)
    other = pk.analyze(network, data, limit=30, seed=2)
    assert result["samples"].to_dataset().identical(again["samples"].to_dataset())
    assert not np.array_equal(result["samples"]["sample"], other["samples"]["sample"])


def test_limit_takes_the_first_of_an_iterable(
    network: nn.Module, labeled: tuple[Tensor, Tensor]
) -> None:
    result = pk.analyze(network, [labeled], limit=11)
    assert result["samples"]["sample"].values.tolist() == list(range(11))


def test_absent_classes_are_left_out_and_named(
    model: pk.ImageModel, labeled: tuple[Tensor, Tensor]
) -> None:
    from probekit.data.images import TensorImages

    images, labels = labeled
    data = TensorImages(images, labels, ["a", "b", "c", "unicorn"])
    with pytest.warns(ProbekitWarning) as told:
        result = pk.analyze(model, data)
    sentences = [str(one.message) for one in told]
    assert any("1 of 4 classes have no sample" in one and "unicorn" in one for one in sentences)
    assert "accuracy is left out: the data has 4 classes and the model 3 outputs" in sentences
    assert result["units"]["class"].values.tolist() == [0, 1, 2]
    assert result["units"]["class_name"].values.tolist() == ["a", "b", "c"]


def test_negative_class_means_are_named(labeled: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 3))
    with pytest.warns(ProbekitWarning, match="class means below zero, in 1; they count as zero"):
        result = pk.analyze(network, labeled)
    units = result["units"].to_dataset()
    below = (units["class_mean"] < 0).any("class")
    assert bool(below.any())
    np.testing.assert_array_equal(units["negative_class_mean"], below)
    assert float(units["selectivity"].min()) >= 0
    assert float(units["selectivity"].max()) <= 1


def test_half_precision_model_has_float64_means(labeled: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    exact = pk.analyze(network, labeled)["units"]["class_mean"]
    images, labels = labeled
    found = pk.analyze(network.bfloat16(), (images.bfloat16(), labels), batch_size=64)
    assert found["units"]["class_mean"].dtype == np.float64
    np.testing.assert_allclose(found["units"]["class_mean"], exact, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_saves_and_reopens_equal(
    suffix: str, model: pk.ImageModel, labeled: tuple[Tensor, Tensor], tmp_path: Any
) -> None:
    from probekit.data.images import TensorImages

    data = TensorImages(*labeled, ["a", "bé/☃", "c"])
    result = pk.analyze(pk.ImageModel(model.module, input_size=(1, 8, 8)), data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.save_result(result, tmp_path / f"r.{suffix}")
        again = pk.open_result(tmp_path / f"r.{suffix}")
    for group in ("/", "units", "layers", "samples"):
        xr.testing.assert_identical(again[group].to_dataset(), result[group].to_dataset())
    if suffix == "nc":
        plain = xr.open_datatree(tmp_path / "r.nc", engine="h5netcdf")
        frame = plain["units"].to_dataset().to_dataframe().groupby("layer").selectivity.mean()
        plain.close()
        assert frame.index.tolist() == sorted(LAYERS)


GOOD = (torch.rand(6, 1, 8, 8), torch.arange(6) % 3)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], DataError, "no samples"),
        (iter(()), DataError, "is empty"),
        (5, DataError, "data must be a data set"),
        (torch.utils.data.Dataset(), DataError, "Dataset has no length; define __len__"),
        ([torch.rand(3)], DataError, "selectivity needs labels, and list has none"),
        ([(torch.rand(2, 1, 8, 8), torch.tensor([0, -1]))], DataError, "label -1 is out of range"),
        ([(torch.rand(2, 1, 8, 8), torch.tensor([0.5, 1]))], DataError, "non-negative integers"),
        ([(torch.rand(2, 1, 8, 8), torch.tensor([0]))], DataError, "one label per image"),
        (
            iter([(torch.rand(2, 1, 8, 8), ["cat", "dog"])]),
            DataError,
            "'cat' is text but not the name of a class",
        ),
        ([(torch.rand(2, 1, 8, 8), torch.tensor([1, 1]))], DataError, "the data has 1"),
        (
            [(torch.full((2, 1, 8, 8), float("nan")), torch.tensor([0, 1]))],
            DataError,
            "sample 0 of list has NaN or infinity in its image",
        ),
        ("no/such/place", DataError, "neither a data set nor a folder"),
        ("fashion-mnis", DataError, "close matches: fashion-mnist"),
    ],
)
def test_invalid_data_raises_a_one_sentence_error(
    network: nn.Module, data: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as told:
        pk.analyze(network, data)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "8x"}, LayerError, "no layer is named '8x'"),
        ({"layers": "lay*"}, LayerError, r"no layer matches 'lay\*'"),
        ({"metrics": "selectivty"}, OptionError, "close matches: selectivity"),
        ({"metrics": []}, OptionError, "one or more different"),
        ({"metrics": [3]}, OptionError, "derives from pk.Metric, or a function .*, not 3"),
        ({"batch_size": 0}, OptionError, "batch_size must be an integer from 1"),
        ({"limit": -3}, OptionError, "limit must be a positive integer"),
        ({"device": "quantum"}, ModelError, "device 'quantum' cannot be used"),
        ({"tokens": "some"}, OptionError, "tokens must be 'all', 'patch' or 'class'"),
        ({"tokens": "class"}, OptionError, "the model has no class token"),
    ],
)
def test_invalid_options_raise_a_one_sentence_error(
    network: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pk.analyze(network, GOOD, **options)


def test_a_single_class_is_detected_before_the_pass(network: nn.Module) -> None:
    from probekit.data.images import TensorImages

    data = TensorImages(torch.rand(4, 1, 8, 8), torch.ones(4), ["a", "b"])
    with pytest.raises(DataError, match=r"one class only \(b\)"):
        pk.analyze(network, data)


def test_infinity_is_reported_for_the_first_layer_that_has_it(
    labeled: tuple[Tensor, Tensor],
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        network[2].weight.fill_(float("inf"))
    with pytest.raises(DataError, match="layer '3' gives NaN or infinity"):
        pk.analyze(network, labeled)


def test_batch_of_one(network: nn.Module, labeled: tuple[Tensor, Tensor]) -> None:
    one = pk.analyze(network, labeled, batch_size=1)["units"]["selectivity"]
    many = pk.analyze(network, labeled, batch_size=30)["units"]["selectivity"]
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-6)


def test_an_object_that_is_not_a_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"torch\.nn\.Module, an ImageModel or a name"):
        pk.analyze(3, GOOD)


def test_a_single_class_is_allowed_when_classes_are_not_used(network: nn.Module) -> None:
    from probekit.data.images import TensorImages

    data = TensorImages(torch.rand(20, 1, 8, 8), torch.ones(20), ["a", "b", "c"])
    result = pk.analyze(network, data, metrics="dimensionality")
    assert bool((result["layers"]["participation_ratio"] >= 0).all())


def test_labels_of_only_some_samples_are_reported(network: nn.Module) -> None:
    labels = torch.cat([torch.full((8,), -1), torch.arange(8) % 3])
    data = (torch.rand(16, 1, 8, 8), labels)
    with pytest.warns(
        ProbekitWarning, match="accuracy is left out: only 8 of 16 samples have a label"
    ):
        pk.analyze(network, data, metrics=["lifetime_sparsity"], batch_size=8, progress=False)


@pytest.mark.parametrize(
    ("class_map", "said"),
    [
        ({"a": "x", "b": 1, "c": 9}, "asks for the output 9 of 3"),
        ({"a": "x", "d": 1}, "names 'd', which the data does not have"),
        ({0: 0, 1: 1}, "has no output for 2"),
        ("name", "must be a mapping or 'index'"),
    ],
)
def test_an_invalid_class_map_is_refused_before_the_pass(class_map: Any, said: str) -> None:
    runs: list[int] = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = pk.ImageModel(net, input_size=(1, 2, 2), classes=("x", "y", "z"))
    data = TensorDataset(torch.rand(30, 1, 2, 2), torch.arange(30) % 3)
    data.classes = ["a", "b", "c"]  # type: ignore[attr-defined]  # as data sets of torchvision
    net.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    with pytest.raises(OptionError, match=said):
        pk.analyze(model, data, class_map=class_map, batch_size=10, progress=False)
    assert 10 not in runs


def test_no_threads_or_processes_remain_after_an_error(
    network: nn.Module, labeled: tuple[Tensor, Tensor]
) -> None:
    class Interrupted(nn.Module):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            if self.passes > 8:
                raise KeyboardInterrupt
            return x

    for workers in (0, 1):
        model = nn.Sequential(network, Interrupted())
        with pytest.raises(KeyboardInterrupt) as error:
            pk.analyze(
                model, TensorDataset(*labeled), batch_size=2, workers=workers, progress=False
            )
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("probekit")]
        assert not active_children()
        assert error.traceback  # which holds the frames of the pass until here


def test_a_result_of_data_whose_name_is_not_valid_text_is_saved(
    network: nn.Module, labeled: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    data = TensorDataset(*labeled)
    data.name = "photos\udcff"  # type: ignore[attr-defined]  # as Python reads such names of folders
    result = pk.analyze(network, data, progress=False)
    for file in (tmp_path / "r.nc", tmp_path / "r.zarr"):
        found = pk.open_result(pk.save_result(result, file))
        assert json.loads(found.attrs["provenance"])["data"]["name"] == "photos\udcff"

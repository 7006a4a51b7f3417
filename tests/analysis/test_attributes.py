"""Labels of any kind: none, one-hot, and several attributes of the same images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import probekit as pk
from probekit.errors import DataError, OptionError

COUNT = 90
IMAGES = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 3
COLOR = torch.randint(0, 2, (COUNT,), generator=torch.Generator().manual_seed(1))
SHAPE = torch.randint(0, 4, (COUNT,), generator=torch.Generator().manual_seed(2))
NAMES = {"color": ["blue", "red"], "shape": ["circle", "cross", "ring", "star"]}
FREE = ["dimensionality", "gradient_variability", "top_images", "lifetime_sparsity"]


class Items(Dataset[Any]):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> Any:
        image = IMAGES[number]
        color, shape = int(COLOR[number]), int(SHAPE[number])
        return {
            "bare": image,
            "one-hot": (image, torch.eye(3)[LABELS[number]]),
            "mapping": (image, {"shape": shape, "color": color}),
            "row": {"image": image, "color": color, "shape": shape},
        }[self.kind]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(6, 3)).eval()


@pytest.fixture(scope="module")
def activations(network: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        maps = network[1](network[0](IMAGES)).double()
    found: np.ndarray[Any, Any] = maps.mean((2, 3)).numpy()
    return found


def selectivity_of(
    activations: np.ndarray[Any, Any], labels: Tensor
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The selectivity index and the class means, from their definitions."""
    values = range(int(labels.max()) + 1)
    means = np.stack([activations[labels.numpy() == value].mean(0) for value in values], 1)
    highest = means.max(1)
    rest = (means.sum(1) - highest) / (len(values) - 1)
    return (highest - rest) / (highest + rest + 1e-6), means


def batches(*columns: Any) -> Iterator[Any]:
    for at in range(0, COUNT, 7):
        yield IMAGES[at : at + 7], *(column[at : at + 7] for column in columns)


WITHOUT: dict[str, Any] = {
    "tensor": IMAGES,
    "array": IMAGES.numpy(),
    "batches": [images for (images,) in batches()],
    "items": Items("bare"),
    "tensors": TensorDataset(IMAGES),
    "loader": DataLoader(TensorDataset(IMAGES), batch_size=7, shuffle=True),
    "mappings": [{"pixel_values": images} for (images,) in batches()],
    "no labels": [(images, None) for (images,) in batches()],
    "a pair with no labels": (IMAGES, None),
    "a mapping with no labels": ({"pixel_values": IMAGES}, None),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_metrics_without_labels(kind: str, network: nn.Module) -> None:
    found = pk.analyze(network, WITHOUT[kind], layers="1", metrics=FREE, progress=False)
    known = pk.analyze(network, (IMAGES, LABELS), layers="1", metrics=FREE, progress=False)
    assert "label" not in found["samples"]
    assert "accuracy" not in found
    for name in ("participation_ratio", "lifetime_sparsity_mean"):
        np.testing.assert_allclose(found["layers"][name], known["layers"][name])
    variability = "gradient_norm_cv"
    np.testing.assert_allclose(found["units"][variability], known["units"][variability])
    np.testing.assert_array_equal(found["units"]["top_sample"], known["units"]["top_sample"])


def test_selectivity_without_labels_is_refused(network: nn.Module) -> None:
    with pytest.raises(DataError, match="selectivity needs labels, and tensors has none"):
        pk.analyze(network, IMAGES, layers="1", progress=False)
    with pytest.raises(DataError, match=r"robustness compares .* tensors has no labels"):
        pk.robustness(network, IMAGES, "fog", 1, layers="1", progress=False)


def test_recordings_need_no_labels(network: nn.Module, activations: Any) -> None:
    for data in (IMAGES, (IMAGES, {"color": COLOR})):
        recording = pk.record(network, data, layers="1", progress=False)
        np.testing.assert_allclose(recording["activation"], activations, atol=1e-6)
        assert set(recording["label"].values.tolist()) == {-1}
    with pytest.raises(DataError, match="label -1 is below 0"):
        pk.class_selectivity(recording)


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, torch.eye(3)[LABELS]),
        (IMAGES, torch.eye(3)[LABELS].numpy().astype(np.uint8)),
        Items("one-hot"),
        DataLoader(Items("one-hot"), batch_size=8, num_workers=1),
        list(batches(torch.eye(3)[LABELS])),
    ],
)
def test_one_hot_labels(data: Any, network: nn.Module, activations: Any) -> None:
    result = pk.analyze(network, data, layers="1", progress=False)
    index, _ = selectivity_of(activations, LABELS)
    np.testing.assert_allclose(result["units"]["selectivity"], index, atol=1e-5)
    assert result["samples"].to_dataset()["label"].values.tolist() == LABELS.tolist()
    with torch.no_grad():
        right = (network(IMAGES).argmax(1) == LABELS).double().mean()
    assert result["accuracy"].item() == pytest.approx(right.item())


@pytest.mark.parametrize(
    "labels", [torch.rand(COUNT, 3).softmax(1), torch.eye(3)[LABELS] * 2, torch.ones(COUNT, 3)]
)
def test_rows_that_are_not_one_hot_are_refused(labels: Tensor, network: nn.Module) -> None:
    with pytest.raises(DataError, match=r"not one-hot; name .* attributes=\[...\]"):
        pk.analyze(network, (IMAGES, labels), layers="1", progress=False)


TABLE = {name: [NAMES[name][value] for value in values] for name, values in
         (("color", COLOR.tolist()), ("shape", SHAPE.tolist()))}  # fmt: skip
SEVERAL: dict[str, tuple[Any, Any]] = {
    "rows of numbers": ((IMAGES, torch.stack([COLOR, SHAPE], 1)), NAMES),
    "columns": ((IMAGES, {"color": COLOR == 1, "shape": SHAPE}), NAMES),
    "table": ((IMAGES, pd.DataFrame(TABLE)), None),
    "items": (Items("mapping"), NAMES),
    "loader": (DataLoader(Items("mapping"), batch_size=8, num_workers=1), NAMES),
    "row items": (Items("row"), NAMES),
    "batches": ([(x, {"color": c, "shape": s}) for x, c, s in batches(COLOR, SHAPE)], NAMES),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_each_attribute_is_analyzed_as_if_it_were_the_only_one(
    kind: str, network: nn.Module, activations: Any
) -> None:
    data, attributes = SEVERAL[kind]
    result = pk.analyze(
        network, data, layers="1", metrics=["selectivity", "dimensionality"],
        attributes=attributes, progress=False,
    )  # fmt: skip
    for attribute, labels in (("color", COLOR), ("shape", SHAPE)):
        index, means = selectivity_of(activations, labels)
        one = result["units"].to_dataset().sel(attribute=attribute)
        np.testing.assert_allclose(one["selectivity"], index, atol=1e-5)
        np.testing.assert_allclose(one["class_mean"].dropna("class"), means, atol=1e-6)
        names = [NAMES[attribute][value] for value in means.argmax(1)]
        assert one["preferred_value"].values.tolist() == names
        counts = np.bincount(labels, minlength=4)
        assert one["count"].values.tolist() == counts.tolist()
        table = pk.units_table(result)
        assert table[f"preferred_value[{attribute}]"].tolist() == names
        own = pk.units_table(result.sel(attribute=attribute))
        assert own["preferred_class"].tolist() == names
    assert result["layers"]["participation_ratio"].dims == ("layer",)
    assert result["samples"].to_dataset()["label"].values[:, 1].tolist() == SHAPE.tolist()
    assert "accuracy" not in result


def test_chance_and_interval_equal_those_of_each_attribute_alone(
    network: nn.Module, tmp_path: Any
) -> None:
    metrics = ["selectivity", "selectivity_chance", "selectivity_interval"]
    labels = {"color": COLOR, "shape": SHAPE}
    result = pk.analyze(network, (IMAGES, labels), layers="1", metrics=metrics, progress=False)
    for attribute, values in labels.items():
        alone = pk.analyze(network, (IMAGES, values), layers="1", metrics=metrics, progress=False)
        one = result["units"].sel(attribute=attribute)
        for name in ("selectivity", "selectivity_chance", "selectivity_p", "selectivity_low"):
            np.testing.assert_allclose(one[name], alone["units"][name], err_msg=name)
    path = pk.save_result(result, tmp_path / "attributes.nc")
    again = pk.open_result(path)["units"].to_dataset()
    assert again.equals(result["units"].to_dataset())


def test_chance_of_labels_that_are_not_declared_is_that_of_declared_ones(
    network: nn.Module,
) -> None:
    options: Any = {"layers": "1", "metrics": "selectivity_chance", "progress": False}
    labels = {"color": COLOR, "shape": SHAPE}
    known = pk.analyze(network, (IMAGES, labels), **options)["units"].to_dataset()
    read = pk.analyze(network, Items("mapping"), **options)["units"].to_dataset()
    for name in ("selectivity_chance", "selectivity_p"):
        np.testing.assert_allclose(read[name], known[name], atol=1e-12)
    rows = [(IMAGES[i : i + 9], {"color": COLOR[i : i + 9]}) for i in range(0, len(IMAGES), 9)]
    with pytest.raises(DataError, match="the chance level of attributes needs their labels before"):
        pk.analyze(network, iter(rows), **options)


def test_planted_attributes_are_recovered() -> None:
    """Three of the channels each encode an attribute; the others are noise."""
    random = torch.Generator().manual_seed(3)
    planted = {name: torch.randint(0, 2, (600,), generator=random) for name in "abc"}
    images = torch.rand(600, 12, 4, 4, generator=random)
    for channel, values in enumerate(planted.values()):
        images[:, channel] += 2 * values[:, None, None]
    result = pk.analyze(
        nn.Sequential(nn.ReLU()), (images, planted), metrics=["selectivity", "selectivity_chance"],
        layers="0", progress=False,
    )  # fmt: skip
    units = result["units"].to_dataset()
    truth = np.eye(12)[:3]
    for name, shown in zip("abc", truth, strict=True):
        one = units.sel(attribute=name)
        assert roc_auc_score(shown, one["selectivity"]) >= 0.99
        assert (one["selectivity_p_corrected"].values < 0.05).tolist() == shown.astype(
            bool
        ).tolist()
        assert one["preferred_value"].values[shown.argmax()] == "1"


@pytest.mark.parametrize(
    ("data", "attributes", "message"),
    [
        ((IMAGES, torch.stack([COLOR, SHAPE], 1)), ["a", "b", "c"], r"labels \(samples, 3\), not"),
        (Items("mapping"), ["color", "size"], "has no attribute 'size'"),
        ((IMAGES, {"color": COLOR + 0.5}), None, "attribute 'color'"),
        ((IMAGES, {"color": COLOR - 1}), None, "label -1 is out of range"),
    ],
)
def test_invalid_attributes_are_refused(
    data: Any, attributes: Any, message: str, network: nn.Module
) -> None:
    with pytest.raises((DataError, OptionError), match=message):
        pk.analyze(network, data, layers="1", attributes=attributes, progress=False)


@pytest.mark.parametrize("kind", ["tensor", "float", "bool", "array", "list", "tuple"])
@pytest.mark.parametrize("form", ["samples", "mappings", "arrays", "batches", "stream"])
def test_one_hot_labels_are_classes_in_any_form(kind: str, form: str) -> None:
    labels = torch.arange(12) % 4
    rows = torch.eye(4, dtype=torch.int64)[labels]
    images = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    hot: Any = {
        "tensor": rows,
        "float": rows.float(),
        "bool": rows.bool(),
        "array": rows.numpy(),
        "list": rows.double().tolist(),
        "tuple": [tuple(row) for row in rows.tolist()],
    }[kind]
    pairs = [(images[i], hot[i]) for i in range(12)]
    data: Any = {
        "samples": pairs,
        "mappings": [{"image": image, "label": label} for image, label in pairs],
        "arrays": (images, hot),
        "batches": [(images[:8], hot[:8]), (images[8:], hot[8:])],
        "stream": iter(pairs),
    }[form]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    found = pk.analyze(net, data, progress=False)
    assert found["samples"]["label"].values.tolist() == labels.tolist()


def test_one_hot_samples_that_may_be_batches_are_refused() -> None:
    pairs = [(torch.rand(3, 6, 6), torch.eye(3)[i % 3]) for i in range(6)]
    with pytest.raises(DataError, match="one-hot labels, or batches of 3; give the labels as int"):
        pk.analyze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), pairs, progress=False)
    batches = [(torch.rand(2, 5, 6), torch.tensor([0, 1])), (torch.rand(2, 5, 6), torch.arange(2))]
    found = pk.analyze(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), batches, progress=False)
    assert found["samples"]["label"].values.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["columns", "table"])
def test_columns_are_chosen_by_name_in_any_order(kind: str, network: nn.Module) -> None:
    data, _ = SEVERAL[kind]
    options: Any = {"layers": "1", "progress": False}
    expected = pk.analyze(network, data, attributes=["color", "shape"], **options)["units"]
    found = pk.analyze(network, data, attributes=["shape", "color"], **options)["units"]
    one = pk.analyze(network, data, attributes=["shape"], **options)["units"]
    for name, result in (("color", found), ("shape", found), ("shape", one)):
        values = result["selectivity"].sel(attribute=name)
        np.testing.assert_array_equal(values, expected["selectivity"].sel(attribute=name))


def test_names_of_values_number_labels_that_are_text(network: nn.Module) -> None:
    text = np.array(["red", "blue"])[COLOR]
    named = {"color": ["red", "blue"]}
    result = pk.analyze(
        network, (IMAGES, {"color": text}), layers="1", attributes=named, progress=False
    )
    by_number = pk.analyze(
        network, (IMAGES, {"color": COLOR}), layers="1", attributes=named, progress=False
    )
    assert result["units"].to_dataset().equals(by_number["units"].to_dataset())


def test_another_order_than_that_of_the_data_is_refused(network: nn.Module) -> None:
    data = Items("row")
    data.attr_names = ["color", "shape"]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="order shape, color, and the data has them in the order"):
        pk.analyze(network, data, layers="1", attributes=["shape", "color"], progress=False)

"""Labels of any type, and the class names that belong to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split

import probekit as pk
from probekit.data.batches import Batches
from probekit.data.labels import class_names, label_numbers
from probekit.errors import DataError

NAMES = {0: "a", 1: "b", 2: "c"}


class Named(Dataset[Any]):
    def __init__(self, classes: Any, labels: Any = (0, 1, 2, 0)) -> None:
        self.classes = classes
        self.labels_given = labels

    def __len__(self) -> int:
        return len(self.labels_given)

    def __getitem__(self, number: int) -> Any:
        return torch.rand(1, 4, 4), self.labels_given[number]


@pytest.mark.parametrize(
    "classes",
    [
        ["a", "b", "c"],
        ("a", "b", "c"),
        np.array(["a", "b", "c"]),
        pd.Index(["a", "b", "c"]),
        pd.Series(["a", "b", "c"]),
        pd.Series(["c", "a", "b"], index=[2, 0, 1]),
        [("a", "first"), ("b", "second"), ("c",)],
        [b"a", b"b", b"c"],
        {"c": 2, "a": 0, "b": 1},
        {2: "c", 0: "a", 1: "b"},
        {np.int64(2): "c", np.int64(0): "a", np.int64(1): "b"},
    ],
)
def test_class_names_belong_to_their_labels(classes: Any) -> None:
    assert class_names(Named(classes)) == NAMES
    assert Batches(Named(classes)).classes == ("a", "b", "c")


@pytest.mark.parametrize("classes", [None, 3, "abc", [], [3, 7], {"n01": "dog"}, {"b", "a"}])
def test_invalid_label_names_are_refused(classes: Any) -> None:
    assert class_names(Named(classes)) == {}


def test_subsets_keep_their_names() -> None:
    data = Named(list("abc"))
    parts = random_split(data, [2, 2])
    for part in (*parts, Subset(Subset(data, [0, 1]), [1]), ConcatDataset(parts)):
        assert Batches(part).classes == ("a", "b", "c")


def test_names_of_sparse_labels_reach_the_result(network: Any) -> None:
    data = Named({7: "cat", 10**9: "dog"}, [7, 10**9] * 8)
    data.__class__.__getitem__ = lambda self, i: (torch.rand(1, 8, 8), self.labels_given[i])  # type: ignore[method-assign]
    units = pk.analyze(network, data)["units"]
    assert units["class"].values.tolist() == [7, 10**9]
    assert units["class_name"].values.tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 2],
        (1, 0, 2),
        np.array([1, 0, 2], np.uint16),
        np.array([[1], [0], [2]]),
        torch.tensor([1, 0, 2], dtype=torch.uint8),
        [torch.tensor(1), torch.tensor(0), torch.tensor([2])],
        [np.int32(1), np.array(0), np.array([2])],
        pd.Series([1, 0, 2], index=[5, 6, 7]),
        ["b", "a", "c"],
        np.array(["b", "a", "c"]),
        pd.Series(["b", "a", "c"]),
    ],
)
def test_labels_of_every_type_are_accepted(labels: Any) -> None:
    assert label_numbers(labels, NAMES).tolist() == [1, 0, 2]
    images = torch.rand(3, 1, 4, 4)
    batch = next(iter(Batches((images, labels))))
    assert batch.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize("labels", [[0.5, 1.0], [True, False], torch.rand(2, 3)])
def test_invalid_labels_are_refused(labels: Any) -> None:
    with pytest.raises(DataError, match="integers"):
        label_numbers(labels, {})


def test_text_labels_without_names_use_the_names_of_the_data() -> None:
    data = Named(None, ["dog", "cat", "dog", "ant"])
    data.targets = data.labels_given  # type: ignore[attr-defined]
    batches = Batches(data)
    assert batches.classes == ("ant", "cat", "dog")
    assert next(iter(batches)).labels.tolist() == [2, 1, 2, 0]
    with pytest.raises(DataError, match="'dog' is text but not the name of a class"):
        list(Batches(iter([(torch.rand(1, 1), ["dog"])])))
    with pytest.raises(
        DataError, match="'fox' is text but not the name of a class: the classes are a, b, c"
    ):
        label_numbers(["a", "fox"], NAMES)


def test_a_large_label_needs_no_extra_memory(network: Any) -> None:
    images = torch.rand(6, 1, 8, 8)
    labels = torch.tensor([2 * 10**9, 5, 5, 2 * 10**9, 7, 7])
    large = pk.analyze(
        network, (images, labels), metrics=["selectivity", "selectivity_split_half"]
    )["units"]
    small = pk.analyze(
        network,
        (images, torch.tensor([2, 0, 0, 2, 1, 1])),
        metrics=["selectivity", "selectivity_split_half"],
    )["units"]
    np.testing.assert_array_equal(large["selectivity"], small["selectivity"])
    assert large["class"].values.tolist() == [5, 7, 2 * 10**9]


def test_negative_labels_are_refused() -> None:
    with pytest.raises(DataError, match="label -1 is out of range"):
        list(Batches((torch.rand(2, 1, 4, 4), torch.tensor([-1, 1]))))


def test_parts_of_a_concatenation_must_name_their_labels_alike() -> None:
    parts = [Named(names) for names in (["a", "b"], ["a", "b", "c"], ["a", "c"])]
    assert class_names(ConcatDataset(parts[:2])) == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(DataError, match=r"label 1 is 'b' in one part .* and 'c' in another"):
        class_names(ConcatDataset(parts))


def test_class_to_idx_takes_precedence_over_the_order_of_the_same_classes() -> None:
    """As in ImageNetV2, whose folders 0, 1, 10, 2, ... have the labels of their names."""
    names = sorted(map(str, range(12)))
    data = Named(names)
    data.class_to_idx = {name: int(name) for name in names}  # type: ignore[attr-defined]
    assert class_names(data) == {label: str(label) for label in range(12)}
    cranes = Named(["crane", "dog", "crane"])
    cranes.class_to_idx = {"crane": 2, "dog": 1}  # type: ignore[attr-defined]  # as in torchvision's ImageNet
    assert class_names(cranes) == {0: "crane", 1: "dog", 2: "crane"}


def test_text_that_names_several_classes_is_refused() -> None:
    assert label_numbers(["dog"], {0: "crane", 1: "dog", 2: "crane"}).tolist() == [1]
    with pytest.raises(DataError, match="'crane' is the name of 2 classes"):
        label_numbers(["dog", "crane"], {0: "crane", 1: "dog", 2: "crane"})


@pytest.mark.parametrize("given", [len, 3, {"a": 0}, "text", {0, 1}])
def test_attributes_that_are_no_column_of_labels_are_ignored(given: Any) -> None:
    data = Named(["a", "b", "c"])
    data.labels = given  # type: ignore[attr-defined]
    for kind in (data, Subset(data, [0, 1])):
        assert Batches(kind).known_labels() is None
    data.targets = [0, 1, 2, 0]  # type: ignore[attr-defined]
    known = Batches(data).known_labels()
    assert known is not None
    assert known[0].tolist() == [0, 1, 2, 0]


def test_a_column_of_pandas_is_read_by_position() -> None:
    data = Named(["a", "b", "c"])
    data.targets = pd.Series([0, 1, 2, 0], index=[7, 0, 1, 2])  # type: ignore[attr-defined]
    known = Batches(Subset(data, [2, 3])).known_labels()
    assert known is not None
    assert known[0].tolist() == [2, 0]


def test_text_has_the_same_number_in_every_split() -> None:
    class Text(Dataset[Any]):
        def __init__(self, targets: str) -> None:
            self.targets = list(targets)

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, number: int) -> Any:
            return torch.rand(1, 4, 4), self.targets[number]

    data = pk.load_data({"train": Text("abcd"), "val": Text("dca")}, split="val")
    assert data.classes == ("a", "b", "c", "d")
    assert [label for _, label in (data[number] for number in range(3))] == [3, 2, 0]


def test_categories_of_pandas_are_numbered_by_their_codes() -> None:
    sizes = pd.Series(pd.Categorical(["low", "high", "low"], ["low", "mid", "high"]), [7, 8, 9])
    images = torch.rand(3, 1, 4, 4)
    (batch,) = Batches((images, sizes))
    assert batch.labels.tolist() == [0, 2, 0]
    data = Named(None, [0, 2, 0])
    data.targets = sizes  # type: ignore[attr-defined]
    assert Batches(data).names == {0: "low", 1: "mid", 2: "high"}


@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_columns_with_another_index_and_sparse_labels(form: str) -> None:
    images, numbers = torch.rand(6, 1, 4, 4), [2, 0, 1, 1, 0, 2]
    column = pd.Series(numbers, index=[5, 3, 1, 0, 4, 2])
    for labels in (column, torch.tensor(numbers).to_sparse()):
        data: Any = (images, labels) if form == "arrays" else [(images, labels)]
        assert torch.cat([batch.labels for batch in Batches(data)]).tolist() == numbers


@pytest.mark.parametrize(
    "labels",
    [
        [None, 1],
        ["a", float("nan")],  # as text, `nan` would be the class of that name
        pd.Series(pd.Categorical(["nan", None])),
        pd.Series([1, None], dtype="Int64"),
        pd.Series(["a", None], dtype="string"),
        pd.Series(pd.to_datetime(["2026-01-01", None])),
        np.array([0.0, np.nan]),
        torch.tensor([0.0, float("nan")]),
    ],
)
def test_missing_labels_are_refused(labels: Any) -> None:
    with pytest.raises(DataError, match="some labels are missing or masked"):
        label_numbers(labels, {0: "a", 1: "nan"})
    with pytest.raises(DataError, match="some labels are missing or masked"):
        list(Batches((torch.rand(2, 1, 4, 4), labels)))


def test_a_one_hot_row_of_nan_is_a_missing_label() -> None:
    rows = torch.tensor([[1, 0], [float("nan"), float("nan")]])
    with pytest.raises(DataError, match="some labels are missing or masked"):
        list(Batches((torch.rand(2, 1, 4, 4), rows)))


@pytest.mark.parametrize("form", [list, np.array, lambda words: np.array(words, dtype=object)])
def test_bytes_are_text(form: Any) -> None:
    data = Batches((torch.rand(4, 1, 4, 4), form([b"dog", b"caf\xe9", b"dog", b"caf\xea"])))
    assert torch.cat([batch.labels for batch in data]).tolist() == [2, 0, 2, 1]
    assert data.classes == ("caf\\xe9", "caf\\xea", "dog")


def test_masked_values_are_refused() -> None:
    images = np.random.default_rng(0).random((4, 1, 4, 4))
    with pytest.raises(DataError, match="some labels are missing or masked"):
        list(Batches((images, np.ma.array([0, 1, 0, 1], mask=[0, 0, 1, 0]))))
    with pytest.raises(DataError, match="masked pixels"):
        list(Batches((np.ma.array(images, mask=images > 0.9), [0, 1, 0, 1])))
    (batch,) = Batches((np.ma.array(images), np.ma.array([0, 1, 0, 1])))
    assert batch.labels.tolist() == [0, 1, 0, 1]


class Texts(Dataset[Any]):
    """Labels as text beside items whose labels are numbers or text."""

    def __init__(self, labels: Any, items: Any) -> None:
        self.labels, self.items = labels, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return torch.rand(1, 4, 4), self.items[number]


ANIMALS = ["zebra", "cat", "dog"]


@pytest.mark.parametrize("labels", [ANIMALS, ANIMALS * 4, pd.Series(ANIMALS * 4, dtype="category")])
def test_text_that_items_number_in_another_order_names_no_class(labels: Any) -> None:
    with pytest.warns(pk.ProbekitWarning, match="classes have no names: .*give it `classes`"):
        assert Batches(Texts(labels, [0, 1, 2] * 4)).names == {}


@pytest.mark.parametrize("items", [[2, 0, 1] * 4, ANIMALS * 4])
def test_text_names_the_labels_of_items_that_follow_its_order(items: Any) -> None:
    data = Texts(ANIMALS * 4, items)
    names = {0: "cat", 1: "dog", 2: "zebra"}
    assert Batches(data).names == names
    some = Subset(data, [0, 2, 3, 5])  # no cat
    batches = Batches(some)
    assert batches.names == names
    assert next(iter(batches)).labels.tolist() == [2, 1, 2, 1]


def test_names_are_those_of_the_column_of_labels() -> None:
    class Rows(Named):
        features: ClassVar = {"label": int, "fine_label": SimpleNamespace(names=["x", "y", "z"])}

    assert class_names(Rows(None)) == {}


def test_a_mask_of_a_subset_is_refused() -> None:
    data = Named(list("abc"))
    for mask in ([True, False, False, True], torch.tensor([True, False, False, True])):
        with pytest.raises(DataError, match=r"mask of booleans .* mask\.nonzero"):
            Batches(Subset(Subset(data, range(4)), mask))  # type: ignore[arg-type]

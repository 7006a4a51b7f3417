"""Labels as integers, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from probekit.errors import DataError, some_of

ClassNames = dict[int, str]
NO_LABEL = -1
_CHECKED_CLASSES = 32
_CHECKED_PLACES = 8
# Keys of mappings and columns of tables that hold labels.
LABEL_KEYS = ("label", "labels", "target", "targets", "fine_label", "cls", "class")


def class_names(data: Any) -> ClassNames:
    """The name of each label that a data set has a name for.

    Names come from `classes`, `class_to_idx` or the label feature of a Hugging Face data set. A
    sequence names the labels 0, 1, 2, ...; a mapping goes from label to name or from name to label.
    `Subset` and `ConcatDataset` use the names of their underlying data sets, which must not differ.
    """
    if isinstance(data, Subset):
        return class_names(data.dataset)
    if isinstance(data, ConcatDataset):
        return _joined_names([class_names(part) for part in data.datasets])
    names, numbered = (_named(getattr(data, name, None)) for name in ("classes", "class_to_idx"))
    # Where both give each label one name, labels follow `class_to_idx`.
    if numbered and sorted(numbered.values()) == sorted(names.values()):
        return numbered
    if names or numbered:
        return names or numbered
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        column = next((name for name in LABEL_KEYS if name in features), None)
        return _named(getattr(features.get(column), "names", None))
    return {}


def _joined_names(parts: list[ClassNames]) -> ClassNames:
    """The names of all parts; none if a part has none."""
    joined: ClassNames = {}
    for part in parts:
        for label, name in part.items():
            if joined.setdefault(label, name) != name:
                raise DataError(
                    f"label {label} is {joined[label]!r} in one part of the ConcatDataset and {name!r} in "
                    "another; give all parts the same classes, for example with target_transform"
                )
    return joined if all(parts) else {}


def _named(classes: Any) -> ClassNames:
    if hasattr(classes, "to_dict"):  # a series of pandas names the labels in its index
        classes = classes.to_dict()
    if isinstance(classes, Mapping):
        if classes and all(_is_integer(key) for key in classes):
            return {int(key): _name(value) for key, value in classes.items()}
        if classes and all(_is_integer(value) for value in classes.values()):
            return {int(value): _name(key) for key, value in classes.items()}
        return {}
    # Sets and types have no order that could name labels.
    if isinstance(classes, str | bytes | set | frozenset | type) or not isinstance(
        classes, Iterable
    ):
        return {}
    found = list(classes)
    # Numbers may be labels or names of labels, which cannot be distinguished.
    if all(isinstance(name, int | float | np.number | Tensor) for name in found):
        return {}
    return {label: _name(name) for label, name in enumerate(found)}


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _name(name: object) -> str:
    """A name as text; the first of several synonyms, as in torchvision's ImageNet."""
    first = name[0] if isinstance(name, list | tuple) and name else name
    return first.decode("utf-8", "backslashreplace") if isinstance(first, bytes) else str(first)


def dense_names(names: ClassNames) -> tuple[str, ...]:
    """The names in label order if the labels are 0, 1, 2, ...; otherwise empty.

    >>> dense_names({1: "b", 0: "a"}), dense_names({7: "g"})
    (('a', 'b'), ())
    """
    if sorted(names) != list(range(len(names))):
        return ()
    return tuple(names[label] for label in range(len(names)))


def names_of_text(labels: Iterable[Any] | None) -> ClassNames:
    """Names for labels that are text: their distinct values in alphabetical order.

    The categories of a column of pandas keep their order, in which its codes count them.

    >>> names_of_text(["dog", "cat", "dog"]), names_of_text([3, 4])
    ({0: 'cat', 1: 'dog'}, {})
    """
    categories = getattr(getattr(labels, "dtype", None), "categories", None)
    if isinstance(categories, Iterable):
        named = dict(enumerate(categories))
        return named if all(isinstance(name, str) for name in named.values()) else {}
    values = [] if labels is None or isinstance(labels, Tensor) else list(labels)
    if not values or not all(isinstance(value, str | bytes) for value in values):
        return {}
    return dict(enumerate(sorted({_name(value) for value in values})))


def declared_text(data: Any, beside: Iterable[Any]) -> ClassNames:
    """The distinct declared labels of a data set by number, if they are text.

    Text has the same number in all splits: `beside` are the other splits of the data.
    """
    parts = [names_of_text(_declared(one)) for one in (data, *beside)]
    if all(part == parts[0] for part in parts):
        return parts[0]
    return names_of_text([name for part in parts for name in part.values()]) if parts[0] else {}


def declared_labels(data: Any, names: ClassNames) -> Tensor | None:
    """The labels that a map-style data set declares separately from its items, by index, or None.

    They come from `labels`, `targets` or the label column of a table, with `target_transform` applied.
    The labels in the items may differ if a data set transforms its labels in another way.
    """
    declared = _declared(data)
    try:
        labels = None if declared is None else label_numbers(declared, names)
    except DataError:
        return None
    whole = labels is not None and labels.ndim == 1 and len(labels) == len(data)
    return labels if whole else None


def _declared(data: Any) -> Any:
    """The declared labels, unconverted: tensor, array, column or list of numbers or text; or None."""
    if isinstance(data, IterableDataset):
        return None
    if isinstance(data, Subset):
        labels = _declared(data.dataset)
        inner: Any = data.dataset
        whole = labels is not None and len(labels) == len(inner)
        return [labels[int(number)] for number in data.indices] if whole else None
    if isinstance(data, ConcatDataset):
        parts = [_declared(part) for part in data.datasets]
        return None if any(part is None for part in parts) else [x for part in parts for x in part]
    if isinstance(data, TensorDataset):
        return data.tensors[1] if len(data.tensors) > 1 else None
    known = (getattr(data, name, None) for name in ("labels", "targets"))
    columns = (x for x in known if isinstance(x, list | tuple) or hasattr(x, "__array__"))
    labels = next(columns, None)
    if hasattr(labels, "__array__") and not isinstance(labels, Tensor):
        # A column of pandas may have an index of its own.
        values = getattr(labels, "array", None)
        labels = np.asarray(labels) if values is None else values
    if labels is None:
        return _label_column(data)
    transform = getattr(data, "target_transform", None)
    try:
        return [transform(label) for label in labels] if callable(transform) else labels
    except Exception:  # the user's transform does not accept the declared labels
        return None


def _label_column(table: Any) -> list[Any] | None:
    """The column of labels of a table, as of Hugging Face; None if data is no table or has none."""
    names = getattr(table, "column_names", None)
    there = [name for name in LABEL_KEYS if isinstance(names, list) and name in names]
    try:
        return list(table[there[0]]) if there else None
    except Exception:  # a transform of whole rows does not accept one column
        return None


def some_places(labels: Tensor) -> list[int]:
    """Positions of the first sample of some labels, and some evenly spaced ones including the last."""
    count = len(labels)
    if not count:
        return []
    even = torch.linspace(0, count - 1, min(_CHECKED_PLACES, count)).long()
    _, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), count)
    first.scatter_reduce_(0, inverse, torch.arange(count), "amin")
    return sorted({*even.tolist(), *first[:_CHECKED_CLASSES].tolist()})


def label_numbers(labels: object, names: ClassNames) -> Tensor:
    """Converts one column of labels to int64 (samples,); text becomes the number of its class."""
    if np.ma.is_masked(labels) or _has_missing(labels):
        raise DataError("some labels are missing or masked; leave out the samples without a label")
    if isinstance(labels, Tensor):
        found = labels.detach()
        if found.is_meta:
            raise DataError("labels are on the meta device, which holds no values")
        found = found.to_dense()
    else:
        try:
            array = np.asarray(
                [*map(_plain, labels)] if isinstance(labels, list | tuple) else labels
            )
            if array.dtype == object:
                array = np.asarray([_plain(value) for value in array.ravel()])
            if array.dtype.kind in "US":
                return _numbers_of_text(array.ravel(), names)
            found = torch.as_tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"labels must be integers, not {type(labels).__name__}") from None
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise DataError(
            f"labels must be non-negative integers, not {found.dtype}; convert them, as in labels.astype(int)"
        )
    return found.long()


def label_table(
    labels: object, count: int, names: ClassNames, attributes: Mapping[str, ClassNames]
) -> Tensor:
    """Converts the labels of some samples: one per sample, none, or one per attribute.

    They are labels as for `label_numbers`, one-hot rows, or None (also a list of None); with attributes, a
    mapping of columns, a list of mappings, or rows with one number per attribute. The result is (samples,),
    -1 for missing labels, or (samples, attributes).

    >>> label_table([[0, 1], [1, 0]], 2, {}, {}), label_table(None, 2, {}, {})
    (tensor([1, 0]), tensor([-1, -1]))
    >>> label_table([{"red": True, "size": 3}], 1, {}, {"red": {}, "size": {}})
    tensor([[1, 3]])
    """
    if attributes:
        found = _attribute_table(labels, attributes)
    elif labels is None or (isinstance(labels, list) and all(one is None for one in labels)):
        return torch.full((count,), NO_LABEL)
    else:
        one_hot = _from_one_hot(labels)
        found = label_numbers(labels, names) if one_hot is None else one_hot
    if found.numel() and int(found.min()) < 0:
        raise DataError(f"label {int(found.min())} is out of range: expected non-negative integers")
    return found


def _from_one_hot(labels: object) -> Tensor | None:
    """The labels of one-hot rows; None if there is one number per sample."""
    rows = _rows(labels)
    if rows is None or rows.shape[1] == 1 or _has_missing(rows):
        return None
    if not bool(((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()):
        raise DataError(
            f"labels are rows of {rows.shape[1]} numbers, which are not one-hot; name what the columns "
            "are with attributes=[...], or give one label per sample"
        )
    return rows.int().argmax(1)


def _rows(labels: object) -> Tensor | None:
    """Numeric labels (samples, columns); None for other shapes or text."""
    try:
        parts = [torch.as_tensor(one) for one in labels] if isinstance(labels, list) else []
        # A column of pandas may have an index of its own.
        plain = labels if isinstance(labels, Tensor) else np.array(labels)
        rows = torch.stack(parts) if parts else torch.as_tensor(plain)
    except (TypeError, ValueError, RuntimeError):
        return None
    return rows.detach() if rows.ndim == 2 and not rows.is_meta else None


def _attribute_table(labels: object, attributes: Mapping[str, ClassNames]) -> Tensor:
    """(samples, attributes), from columns, rows or mappings."""
    wanted = ", ".join(attributes)
    if isinstance(labels, list) and labels and all(isinstance(one, Mapping) for one in labels):
        if missing := [name for name in attributes if any(name not in one for one in labels)]:
            raise DataError(f"a sample has no attribute {missing[0]!r}; each must have {wanted}")
        labels = {name: [one[name] for one in labels] for name in attributes}
    if not isinstance(labels, Mapping):
        rows = _rows(labels)
        if rows is None or rows.shape[1] != len(attributes):
            found = type(labels).__name__ if rows is None else tuple(rows.shape)
            raise DataError(
                f"the attributes {wanted} need labels (samples, {len(attributes)}), not {found}"
            )
        labels = dict(zip(attributes, rows.T, strict=True))
    if missing := [name for name in attributes if name not in labels]:
        raise DataError(f"the labels have no attribute {missing[0]!r}; they must have {wanted}")
    columns = [_values(labels[name], names, name) for name, names in attributes.items()]
    return torch.stack(columns, 1)


def _values(values: object, names: ClassNames, attribute: str) -> Tensor:
    """One attribute as integers; booleans and integer-valued floats are accepted."""
    rows = _rows([[value] for value in values]) if isinstance(values, list) else None
    found: Any = values if rows is None else rows[:, 0]
    if isinstance(found, Tensor) and (found.dtype == torch.bool or found.is_floating_point()):
        whole = found.long()
        if bool((whole == found).all()):
            found = whole
    elif isinstance(found, np.ndarray) and found.dtype == bool:
        found = found.astype(np.int64)
    try:
        return label_numbers(found, names)
    except DataError as error:
        raise DataError(f"attribute {attribute!r}: {error}") from error


def declared_attributes(data: Any, asked: Any = None) -> dict[str, ClassNames]:
    """The attributes of labels, with the names of their values.

    The data may declare them in `attributes` or `attr_names`, as names or as a mapping from each name to the
    names of its values; `asked` is the same, given by the user, and takes precedence.

    >>> declared_attributes(None, {"color": ["red", "blue"]})
    {'color': {0: 'red', 1: 'blue'}}
    """
    if asked is None:
        given = (getattr(data, name, None) for name in ("attributes", "attr_names"))
        named = (x for x in given if isinstance(x, Mapping | list | tuple) and len(x))
        asked = next(named, ())
    asked = [asked] if isinstance(asked, str) else asked
    if isinstance(asked, Mapping):
        return {str(name): _named(values) for name, values in asked.items()}
    return {str(name): {} for name in asked if str(name)}


def _plain(value: object) -> Any:
    """A label as a Python value: the element of a tensor or array with one element."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        count = value.numel() if isinstance(value, Tensor) else value.size
        return value.item() if count == 1 else value
    return value


def _has_missing(labels: object) -> bool:
    """Whether labels have None, NaN, NaT or NA. As text, NaN would be the class of the name `nan`."""
    values = [*map(_plain, labels)] if isinstance(labels, list | tuple) else labels
    try:
        if isinstance(values, Tensor):
            return values.is_floating_point() and bool(values.isnan().any())
        return bool(np.any(pd.isna(values)))
    except (TypeError, ValueError, RuntimeError):  # no column of single values
        return False


def _numbers_of_text(values: Iterable[Any], names: ClassNames) -> Tensor:
    number = {name: label for label, name in reversed(names.items())}
    words = [_name(value) for value in values]
    # As in the files of WebDataset; `01` and `1` may be different classes.
    if not names and all(word.isdecimal() and word == str(int(word)) for word in words):
        return torch.tensor([int(word) for word in words], dtype=torch.long)
    called = list(names.values())
    if several := sorted(word for word in set(words) if called.count(word) > 1):
        raise DataError(
            f"the label {several[0]!r} is the name of {called.count(several[0])} classes; give the labels "
            "as integers"
        )
    if unknown := sorted(set(words) - number.keys()):
        known = "the data has no class names; give it `classes`, the names in label order"
        if names:
            known = f"the classes are {some_of(called)}"
        raise DataError(f"the label {unknown[0]!r} is text but not the name of a class: {known}")
    return torch.tensor([number[word] for word in words], dtype=torch.long)

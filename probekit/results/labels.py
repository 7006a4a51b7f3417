"""Text labels of tables, and the attributes that describe a variable, named by the CF conventions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

Attributes: TypeAlias = dict[str, Any]


def strings(values: Iterable[object]) -> npt.NDArray[np.object_]:
    """Converts strings to variable-length text, in the type that netCDF and zarr both preserve.

    >>> strings(["relu", "layer1.0.relu1"])
    array(['relu', 'layer1.0.relu1'], dtype=object)
    """
    return np.array([str(value) for value in values], dtype=object)


def class_names(table: xr.Dataset | xr.DataArray) -> dict[int, str]:
    """The name of each label in a table with the coordinate `class`; the label itself without names.

    Classes of the same name are `crane (134)` and `crane (517)`, and all have their labels if another is
    called like this.
    """
    named = table["class_name"] if "class_name" in table.coords else table["class"]
    names = [str(name) for name in named.values.tolist()]
    labels, count = [int(label) for label in table["class"].values.tolist()], Counter(names)
    full = [f"{name} ({label})" for label, name in zip(labels, names, strict=True)]
    some = [long if count[name] > 1 else name for long, name in zip(full, names, strict=True)]
    return dict(zip(labels, some if len({*some}) == len(some) else full, strict=True))


def with_sample_names(recording: xr.Dataset) -> xr.Dataset:
    """Adds the coordinate `class_name` (sample) to a recording whose attribute `class_names` has them.

    Early recordings have a variable `class_name` (class) instead, which would repeat all rows of
    `to_dataframe()` for every class.

    >>> recording = xr.Dataset({"label": ("sample", [1, 0])}, attrs={"class_names": '{"0": "a", "1": "b"}'})
    >>> with_sample_names(recording)["class_name"].values.tolist()
    ['b', 'a']
    """
    names = json.loads(recording.attrs.get("class_names", "{}"))
    if "class_name" in recording.data_vars:
        names = {str(label): name for label, name in enumerate(recording["class_name"].values)}
        recording = recording.drop_vars("class_name")
    if not names:
        return recording
    found = strings(names.get(str(label), "") for label in recording["label"].values.tolist())
    return recording.assign_coords(class_name=("sample", found))


def with_variable_text(table: xr.Dataset) -> xr.Dataset:
    """Converts the text of a table to variable length, including fixed-length text read from a file.

    >>> with_variable_text(xr.Dataset({"layer": ("unit", ["relu"])}))["layer"].dtype
    dtype('O')
    """
    text = {
        name: xr.Variable(values.dims, values.values.astype(object), values.attrs)
        for name, values in table.variables.items()
        if values.dtype.kind in "OTU"  # a new variable, also for objects, has no type to encode
    }
    coordinates = {name: values for name, values in text.items() if name in table.coords}
    variables = {name: values for name, values in text.items() if name in table.data_vars}
    return table.assign_coords(coordinates).assign(variables)


def shorten(text: str, most: int) -> str:
    """Shortens text in its middle to a maximum number of characters.

    >>> shorten("features.denseblock3.denselayer12.relu2", 21)
    'features.d…er12.relu2'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


def attributes(
    long_name: str,
    description: str = "",
    *,
    short_name: str = "",
    units: str = "",
    share: bool = False,
) -> Attributes:
    """Attributes of a variable, used in figures, in the terminal and in HTML reports.

    `description` is one sentence on what it measures, `short_name` its column heading in summary tables. If
    some variables of a metric have one, the tables show only these; otherwise, they show all variables.
    A `share` is a value in [0, 1], which tables show with a bar (`valid_range`).
    """
    texts = {
        "long_name": long_name,
        "units": units,
        "description": description,
        "short_name": short_name,
    }
    given: Attributes = {name: text for name, text in texts.items() if text}
    return given | ({"valid_range": [0.0, 1.0]} if share else {})


def label(variable: xr.DataArray) -> str:
    """The `long_name` of a variable and its units, as on xarray's axes; its name without a `long_name`.

    >>> label(xr.DataArray(0, attrs={"long_name": "firing rate", "units": "Hz"}))
    'firing rate [Hz]'
    >>> label(xr.DataArray(0, name="my_metric"))
    'my metric'
    """
    name = _text(variable, "long_name")
    units = _text(variable, "units")
    return (f"{name} [{units}]" if units else name) or str(variable.name).replace("_", " ")


def heading(variable: xr.DataArray) -> str:
    """The column heading of a variable in tables: its `short_name`, otherwise its label."""
    return _text(variable, "short_name") or label(variable)


def is_share(variable: xr.DataArray) -> bool:
    """Whether the values of a variable are shares in [0, 1]."""
    return [float(end) for end in variable.attrs.get("valid_range", ())] == [0.0, 1.0]


def ends(table: Mapping[Any, Any], name: str) -> tuple[Any, Any] | None:
    """The ends of the interval of a variable, `NAME_low` and `NAME_high`, if a table has them."""
    low, high = table.get(f"{name}_low"), table.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def in_context(variable: xr.DataArray, context: str) -> xr.DataArray:
    """The variable with a context added to its `long_name`, such as "under corruption".

    >>> in_context(xr.DataArray(0, attrs={"long_name": "accuracy"}), "under attack").attrs
    {'long_name': 'accuracy under attack'}
    """
    long_name = _text(variable, "long_name") or str(variable.name).replace("_", " ")
    changed = variable.assign_attrs(long_name=f"{long_name} {context}")
    for attribute in ("short_name", "metric"):
        changed.attrs.pop(attribute, None)
    return changed


def _text(variable: xr.DataArray, attribute: str) -> str:
    found = variable.attrs.get(attribute)
    return found if isinstance(found, str) else ""


def summary_variables(table: xr.Dataset) -> dict[str, list[str]]:
    """The variables of each metric in summary tables: those with a `short_name`, otherwise all.

    Variables that no metric returned, and those in files of older versions, are under `""`.

    >>> table = xr.Dataset({"mean": 1.0, "error": 0.1, "n": 3})
    >>> table["mean"].attrs = {"metric": "size", "short_name": "mean size"}
    >>> table["error"].attrs = {"metric": "size"}
    >>> summary_variables(table)
    {'size': ['mean'], '': ['n']}
    """
    groups: dict[str, list[str]] = {}
    for name, values in table.data_vars.items():
        groups.setdefault(_text(values, "metric"), []).append(str(name))
    return {
        metric: [name for name in names if _text(table[name], "short_name")] or names
        for metric, names in groups.items()
    }

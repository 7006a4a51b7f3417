"""Text labels of tables."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xarray as xr


def strings(values: Iterable[object]) -> npt.NDArray[np.object_]:
    """Converts strings to variable-length text, in the type that netCDF and zarr both preserve.

    >>> strings(["relu", "layer1.0.relu1"])
    array(['relu', 'layer1.0.relu1'], dtype=object)
    """
    return np.array([str(value) for value in values], dtype=object)


def class_names(table: xr.Dataset) -> dict[int, str]:
    """The name of each label in a table with the coordinate `class`; the label itself without names."""
    named = table["class_name"] if "class_name" in table.coords else table["class"]
    pairs = zip(table["class"].values.tolist(), named.values.tolist(), strict=True)
    return {int(label): str(name) for label, name in pairs}


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

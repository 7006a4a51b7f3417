"""Results and recordings as data sets of rsatoolbox."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from probekit.errors import DataError, optional
from probekit.results.labels import with_sample_names


def to_rsatoolbox(source: xr.Dataset | xr.DataTree) -> dict[str, Any]:
    """Converts a recording or a result to data sets of rsatoolbox, for representational similarity.

    Args:
        source: A recording, whose samples become the observations, or a result with class means, whose
            classes become the observations.

    Returns:
        One `rsatoolbox.data.Dataset` per layer, in execution order. `measurements` are (observations,
        units) in activation units. Units have the descriptor `channel`, and `y` and `x` or `token` where
        elements were recorded; observations have `class` where labels are known, `sample` in a
        recording, and `class_name` where classes have names.

    Raises:
        DataError: The source has neither activations nor class means, or has several attributes.
        MissingPackageError: rsatoolbox is not installed.

    Source:
        Nili et al. 2014 (doi:10.1371/journal.pcbi.1003553).

    Example:
        >>> from probekit import analyze, load_data, load_model
        >>> model = load_model("probekit:resnet20-fashion-mnist")
        >>> data = load_data("fashion-mnist", model)
        >>> result = analyze(model, data, "layer3.2.relu2", limit=200, progress=False)
        >>> found = to_rsatoolbox(result)["layer3.2.relu2"]  # doctest: +SKIP
        >>> found.measurements.shape, found.obs_descriptors["class_name"][0]  # doctest: +SKIP
        ((10, 64), 'T-shirt/top')
    """
    with optional("rsatoolbox", "to_rsatoolbox"):
        import rsatoolbox
    table = source
    if isinstance(table, xr.DataTree):
        table = table.children.get("units", table).to_dataset()
    if "attribute" in table.dims:
        raise DataError(
            "the result has several attributes; choose one with result.sel(attribute=...)"
        )
    values = table.get("activation", table.get("class_mean"))
    if values is None or "unit" not in values.dims:
        raise DataError(
            "to_rsatoolbox takes a recording, or a result of the metric selectivity (with class_mean), "
            f"and this has {', '.join(map(str, table.data_vars)) or 'no variables'}"
        )
    (axis,) = (dim for dim in values.dims if dim != "unit")
    observations = _observations(with_sample_names(table) if axis == "sample" else table, str(axis))
    layers = table["layer"].values
    found = {}
    for layer in dict.fromkeys(layers.tolist()):
        units = np.flatnonzero(layers == layer)
        places = ("channel", "y", "x", "token")
        found[str(layer)] = rsatoolbox.data.Dataset(
            np.asarray(values.isel(unit=units).transpose(axis, "unit").values, dtype=np.float64),
            descriptors={"layer": str(layer)},
            obs_descriptors=observations,
            channel_descriptors={
                name: table[name].values[units].tolist() for name in places if name in table.coords
            },
        )
    return found


def _observations(table: xr.Dataset, axis: str) -> dict[str, list[Any]]:
    names = (
        {"class_name": table["class_name"].values.tolist()} if "class_name" in table.coords else {}
    )
    if axis == "class":
        return {"class": table["class"].values.tolist()} | names
    found = {"sample": table["sample"].values.tolist()}
    if "label" in table.variables:
        found["class"] = table["label"].values.tolist()
    return found | names

"""What the script of a page shows: units as compact columns, and thumbnails within a size budget."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import DataError
from probekit.models.image_model import Model
from probekit.reports.model_results import ModelResults
from probekit.results.labels import heading, is_share, summary_variables

# With more classes than this, a page contains only the highest means of each unit and the mean of the rest.
MOST_CLASSES = 40
_SIDE = 96
_LOSSLESS = 64
_TRIAL = 24
# Characters around an image in the page: its index, quotation marks, a colon and a comma.
_OVERHEAD = 16


def unit_table(model: ModelResults) -> dict[str, Any]:
    """A model's units for the script; numbers are base64-encoded little-endian arrays.

    Labels may have any size, and float32 holds integers only up to 2^24.
    """
    units = model.units
    count = units.sizes.get("unit", 0)
    places = {name: number for number, name in enumerate(model.layer_names)}
    table: dict[str, Any] = {
        "name": model.name,
        "layers": model.layer_names,
        "classes": [[label, name] for label, name in sorted(model.class_names.items())],
        "units": count,
        "layer": packed([places[str(name)] for name in units["layer"].values], "<i4"),
        "channel": packed(units["channel"].values, "<i4"),
        "columns": _columns(units),
    }
    if "class_mean" in units:
        table["tuning"] = _tuning(units["class_mean"].transpose("unit", "class"))
    if "top_sample" in units:
        table["top"] = _top(units)
    if "drawn_activation" in units:
        table["drawn"] = {
            "count": units.sizes["drawn"],
            "activation": packed(units["drawn_activation"].transpose("unit", ...).values, "<f4"),
        }
    perturbed = [_perturbed(units, kind) for kind in ("corruption", "attack")]
    if any(perturbed):
        table["perturbed"] = [one for one in perturbed if one]
    return table


def packed(values: npt.ArrayLike, kind: str) -> str:
    return b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode("ascii")


def _columns(units: xr.Dataset) -> list[dict[str, Any]]:
    """The variables with one number per unit; those in summary tables come first and are shown."""
    shown = [name for names in summary_variables(units).values() for name in names]
    names = [
        str(name)
        for name, values in units.data_vars.items()
        if values.dims == ("unit",) and values.dtype.kind in "fiub"
    ]
    return [
        {
            "name": name,
            "label": heading(units[name]),
            "about": units[name].attrs.get("description", ""),
            "kind": (kind := _kind(units[name])),
            "shown": name in shown,
            "values": packed(units[name].values, "<f8" if kind in ("class", "count") else "<f4"),
        }
        for name in sorted(names, key=lambda name: name not in shown)
    ]


def _kind(values: xr.DataArray) -> str:
    """How the script shows the values: as a class, flag, count, fraction with a bar, or number."""
    if values.name == "preferred_class":
        return "class"
    if values.dtype.kind != "f":
        return "flag" if values.dtype.kind == "b" else "count"
    known = values.values[np.isfinite(values.values)]
    within = len(known) and known.min() >= 0 and known.max() <= 1
    return "share" if is_share(values) and within else "number"


def _tuning(class_mean: xr.DataArray) -> dict[str, Any]:
    means: npt.NDArray[np.float64] = class_mean.values
    order = np.argsort(-means, axis=1, kind="stable")[:, :MOST_CLASSES]
    kept = order.shape[1]
    highest = np.take_along_axis(means, order, 1)
    others = means.shape[1] - kept
    rest = (means.sum(1) - highest.sum(1)) / others if others else np.full(len(means), np.nan)
    return {
        "count": kept,
        "others": others,
        "labels": class_mean["class"].values.astype(np.int64).tolist(),
        "place": packed(order, "<i4"),
        "mean": packed(highest, "<f4"),
        "rest": packed(rest, "<f4"),
    }


def _top(units: xr.Dataset) -> dict[str, Any]:
    parts = {"sample": "<i4", "label": "<f8", "activation": "<f4"}
    units = units.fillna({"top_sample": -1})  # of units that a merged result lacks
    return {
        "count": units.sizes["rank"],
        **{
            name: packed(units[f"top_{name}"].transpose("unit", "rank").values, kind)
            for name, kind in parts.items()
            if f"top_{name}" in units
        },
    }


def _perturbed(units: xr.Dataset, kind: str) -> dict[str, Any] | None:
    """The change of a unit under each corruption or attack, averaged over its levels."""
    name = f"{kind}_change_size"
    if name not in units or kind not in units[name].dims:
        return None
    change = units[name]
    change = change.mean([dim for dim in change.dims if dim not in ("unit", kind)])
    return {
        "kind": kind,
        "names": [str(one) for one in change[kind].values],
        "change": packed(change.transpose("unit", kind).values, "<f4"),
    }


def wanted_samples(model: ModelResults) -> list[int]:
    """The samples to show, the most important first.

    The top images of all units come first, sorted by the selectivity of the units; then the second
    images, and so on.
    """
    units = model.units
    if "top_sample" not in units:
        return []
    samples = units["top_sample"].transpose("rank", "unit").values
    if "selectivity" in units:
        index = np.nan_to_num(units["selectivity"].values, nan=-np.inf)
        samples = samples[:, np.argsort(-index, kind="stable")]
    return list(dict.fromkeys(samples[np.isfinite(samples)].astype(np.int64).tolist()))


def thumbnails(
    wanted: Sequence[int], labels: Mapping[int, int], data: Any, model: Model | None, room: int
) -> dict[int, str]:
    """Encodes images of samples, in order, until the available space is used."""
    first = _encode(wanted[:_TRIAL], labels, data, model)
    if not first:
        return {}
    each = sum(map(len, first.values())) / len(first) + _OVERHEAD
    chosen = wanted[: int(1.2 * room / each)]
    found = first | _encode([one for one in chosen if one not in first], labels, data, model)
    kept: dict[int, str] = {}
    for one in wanted:
        if one not in found or room < len(found[one]) + _OVERHEAD:
            break
        room -= len(found[one]) + _OVERHEAD
        kept[one] = found[one]
    return kept


def _encode(
    index: Iterable[int], labels: Mapping[int, int], data: Any, model: Model | None
) -> dict[int, str]:
    from probekit.data.lookup import find_images

    found = {}
    for number, image, label in find_images(data, index, model):
        # Without a label, or with several attributes, results store -1.
        if labels.get(number, -1) not in (-1, label):
            raise DataError(
                f"the data is not that of the result: sample {number} has the label {label} in it and "
                f"{labels[number]} in the result; give the data that was analyzed"
            )
        found[number] = encoded(image.numpy(force=True))
    return found


def in_unit_range(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image with values outside [0, 1] scaled to it."""
    low, high = min(float(image.min()), 0.0), max(float(image.max()), 1.0)
    scaled: npt.NDArray[Any] = (image - low) / (high - low)
    return scaled


def encoded(image: npt.NDArray[Any]) -> str:
    """An image as the part of a data URL after `data:image/`: PNG if it is small, otherwise JPEG."""
    from PIL import Image

    if image.ndim != 3 or not image.size:
        raise DataError(
            f"samples of the shape {image.shape} are not images (channels, height, width); make the "
            "report without data"
        )
    values = np.nan_to_num(image.astype(np.float64))
    pixels = (in_unit_range(values) * 255).round().astype(np.uint8)
    if pixels.shape[0] == 3:
        made = Image.fromarray(pixels.transpose(1, 2, 0))
    else:
        gray = pixels[0] if pixels.shape[0] == 1 else pixels.mean(0).astype(np.uint8)
        made = Image.fromarray(gray)
    made.thumbnail((_SIDE, _SIDE))
    file, small = io.BytesIO(), max(made.size) <= _LOSSLESS
    made.save(file, "PNG" if small else "JPEG", optimize=True, quality=82)
    return f"{'png' if small else 'jpeg'};base64,{b64encode(file.getvalue()).decode('ascii')}"

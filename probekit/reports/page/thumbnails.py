"""Thumbnails of the images that activate units most, within the size budget of a page."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probekit.errors import DataError
from probekit.models.image_model import Model
from probekit.reports.model_results import ModelResults

_SIDE = 96
_LOSSLESS = 64
_TRIAL = 24
# Characters around an image in the page: its index, quotation marks, a colon and a comma.
_OVERHEAD = 16


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
    return list(dict.fromkeys(samples.ravel().tolist()))


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


def encoded(image: npt.NDArray[Any]) -> str:
    """An image as the part of a data URL after `data:image/`: PNG if it is small, otherwise JPEG.

    An image outside [0, 1] is scaled to it.
    """
    from PIL import Image

    if image.ndim != 3 or not image.size:
        raise DataError(
            f"samples of the shape {image.shape} are not images (channels, height, width); make the "
            "report without data"
        )
    values = np.nan_to_num(image.astype(np.float64))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 1.0)
    pixels = ((values - low) / (high - low) * 255).round().astype(np.uint8)
    if pixels.shape[0] == 3:
        made = Image.fromarray(pixels.transpose(1, 2, 0))
    else:
        gray = pixels[0] if pixels.shape[0] == 1 else pixels.mean(0).astype(np.uint8)
        made = Image.fromarray(gray)
    made.thumbnail((_SIDE, _SIDE))
    file, small = io.BytesIO(), max(made.size) <= _LOSSLESS
    made.save(file, "PNG" if small else "JPEG", optimize=True, quality=82)
    return f"{'png' if small else 'jpeg'};base64,{b64encode(file.getvalue()).decode('ascii')}"

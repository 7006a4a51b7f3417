"""The published constants of the 19 corruption types, for 32, 64 and 224 pixel images.

`constants.toml` lists them with their source. The data sets are described in Hendrycks and Dietterich,
Benchmarking neural network robustness to common corruptions and perturbations, ICLR 2019.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any, Final

CORRUPTIONS: Final = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 standard types, in the order in which the papers list them."""

EXTRA_CORRUPTIONS: Final = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four types reserved for validation."""

SEVERITIES: Final = (1, 2, 3, 4, 5)
TABLE_SIZES: Final = (32, 64, 224)


def constants_of(corruption: str, severity: int, table: int) -> Any:
    """The published constants of a type: one number, or a tuple if there are several."""
    found = _tables()[corruption][str(table)][severity - 1]
    if corruption == "zoom_blur":
        count, step = found
        return tuple(1 + step * number for number in range(count))
    if corruption == "elastic_transform" and table == 224:
        return tuple(share * 244 / 224 for share in found)
    return tuple(found) if isinstance(found, list) else found


@cache
def _tables() -> dict[str, dict[str, list[Any]]]:
    file = resources.files("probekit.perturbations.corruptions") / "constants.toml"
    return tomllib.loads(file.read_text("utf-8"))


def nearest_table(height: int, width: int) -> int:
    """The published image size nearest to the shorter side; ties go to the larger size."""
    side = min(height, width)
    return min(TABLE_SIZES, key=lambda size: (abs(size - side), -size))

"""Colors that color-blind readers can distinguish."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, SymLogNorm, to_hex

# Okabe and Ito 2008, without yellow, which is too pale for lines on white, and without black, which
# represents alpha = 0.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")

_ALPHA = ("#35B5F5", "#0A6FB5", "#08365C", "#101010", "#6B2A06", "#C85A08", "#FF9D2E")

# Viridis without its yellow end, which is too pale for lines on white.
DEPTH = LinearSegmentedColormap.from_list("depth", colormaps["viridis"](np.linspace(0.0, 0.84, 64)))


def palette(number: int) -> list[str]:
    """Colors for unordered categories: the Okabe-Ito palette, or viridis for more than seven.

    Example:
        >>> palette(2)
        ['#0072B2', '#D55E00']
    """
    if number <= len(_OKABE_ITO):
        return list(_OKABE_ITO[:number])
    return shades(number)


def shades(number: int) -> list[str]:
    """Colors for ordered categories such as layers: viridis, dark first."""
    return [to_hex(DEPTH(at)) for at in np.linspace(0, 1, max(number, 1))]


def alpha_map() -> Colormap:
    """The diverging colormap for alpha: blue below zero, black at zero, orange above.

    Its center is dark, so that a line at zero is clearly visible on white. Lines become lighter the
    farther alpha is from zero. Blue and orange differ for all common forms of color blindness.

    Example:
        >>> alpha_map().name
        'alpha'
    """
    return LinearSegmentedColormap.from_list("alpha", _ALPHA, 257)


def alpha_norm(alphas: Sequence[float]) -> Normalize:
    """Maps alphas to [0, 1] symmetrically, with zero at 0.5; logarithmic if they span decades."""
    sizes = [abs(alpha) for alpha in alphas if alpha]
    most = max(sizes, default=1.0)
    least = min(sizes, default=1.0)
    if most > 4 * least:
        return SymLogNorm(linthresh=least, linscale=0.5, vmin=-most, vmax=most, base=10)
    return Normalize(-most, most)

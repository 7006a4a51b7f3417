"""The kernel density estimate of figures and HTML reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def density(values: Array, points: Array) -> Array:
    """A Gaussian kernel density estimate, scaled to a maximum of 1.

    If all values are equal, or it is 0 at all points, it is 1 at the nearest point and 0 elsewhere.

    Source:
        Bandwidth: Silverman 1986, Density Estimation, equation 3.30, with the factor for normal data.
    """
    from scipy.stats import gaussian_kde

    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return _nearest(values, points)
    # Silverman's rule, with the interquartile range if outliers inflate the standard deviation.
    middle = float(np.subtract(*np.percentile(values, [75, 25]))) / 1.349
    spread = min(float(values.std(ddof=1)), middle or np.inf)
    width = spread / values.std(ddof=1) * (0.75 * len(values)) ** -0.2
    heights: Array = gaussian_kde(values, width)(points)
    return heights / heights.max() if heights.any() else _nearest(values, points)


def _nearest(values: Array, points: Array) -> Array:
    apart = np.abs(points - np.median(values))
    return np.where(apart <= apart.min(), 1.0, 0.0)

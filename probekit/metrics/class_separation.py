"""Class-separation metrics that do not change when a constant is added to a unit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import rankdata

from probekit.errors import DataError
from probekit.metrics.metric import unit_metric
from probekit.statistics.class_moments import ClassMoments
from probekit.statistics.feeding import table_and_labels
from probekit.statistics.recorded import Recorded

_ROUNDING = 1e-20  # variation below this fraction of the mean square is rounding error
_BLOCK_ELEMENTS = 2**22


@unit_metric(needs=ClassMoments, long_name="eta squared", share=True)
def eta_squared(moments: xr.Dataset, corrected: bool = False) -> xr.DataArray:
    """The fraction of a unit's variance over samples that lies between classes.

    The value is 0 if all classes have the same mean, and 1 if all samples of a class have the same
    activation. Unlike the class selectivity index, it does not change when a constant is added to the
    unit or when the unit is scaled. The value of a constant unit is 0.

    Args:
        moments: The output of the statistic `ClassMoments`, or a recording.
        corrected: Return epsilon squared: subtract the value expected for a unit that is independent
            of the classes, (classes - 1) / (samples - 1). The result can be negative.

    Returns:
        The fraction of variance (unit).

    Raises:
        DataError: There are fewer than two classes.

    Source:
        Fisher 1925, Statistical Methods for Research Workers; epsilon squared: Kelley 1935 (PNAS 21).

    Example:
        >>> rows = [[0.0, 1.0], [0.0, 2.0], [4.0, 1.0], [4.0, 2.0]]
        >>> recording = xr.Dataset({"activation": (("sample", "unit"), rows)})
        >>> eta_squared(recording.assign(label=("sample", [0, 0, 1, 1]))).values
        array([1., 0.])
    """
    if not isinstance(moments, xr.Dataset):
        raise DataError(
            "eta squared needs a recording with activation (sample, unit) and label (sample), not "
            f"{type(moments).__name__}"
        )
    mean = moments["class_mean"].transpose("unit", "class").values
    count = moments["count"].values.astype(np.float64)
    if len(count) < 2:
        raise DataError(f"variance between classes needs two classes, and there is {len(count)}")
    samples = count.sum()
    grand = (mean * count).sum(1) / samples
    between = ((mean - grand[:, None]) ** 2 * count).sum(1)
    total = between + moments["squares"].transpose("unit", "class").values.sum(1)
    varies = total > _ROUNDING * samples * grand**2
    share = np.divide(between, total, out=np.zeros_like(total), where=varies)
    if corrected:
        within = np.where(varies, 1 - share, 1.0)
        spare = samples - len(count)
        share = 1 - within * (samples - 1) / spare if spare else np.full_like(share, np.nan)
        share = np.where(varies, share, 0.0)
    return xr.DataArray(share, dims="unit")


@unit_metric(needs=Recorded, long_name="AUC of the preferred class", share=True)
def preferred_class_auc(recording: xr.Dataset) -> xr.DataArray:
    """How well a unit's activation separates its preferred class from all other classes.

    This is the area under the ROC curve: the probability that a sample of the preferred class (the
    class with the highest mean) has a higher activation than a sample of another class. Ties count
    half. The value does not change when a constant is added to the unit or when the unit is scaled.
    It is 0.5 for a constant unit. With few samples, selecting the class raises it above 0.5 by chance.

    Args:
        recording: `activation` (sample, unit) and `label` (sample).

    Returns:
        The probability (unit).

    Raises:
        DataError: The input is not a recording, or there are fewer than two classes.

    Source:
        Hanley & McNeil 1982 (Radiology 143).

    Example:
        >>> rows = [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
        >>> recording = xr.Dataset({"activation": (("sample", "unit"), rows)})
        >>> preferred_class_auc(recording.assign(label=("sample", [0, 0, 1, 1]))).values
        array([1. , 0.5])
    """
    activations, labels = table_and_labels(recording)
    table = activations.values
    classes, place = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"the AUC needs samples of two classes, and there is {len(classes)}")
    step = max(1, _BLOCK_ELEMENTS // max(len(table), 1))
    blocks = [
        _area(table[:, start : start + step], place, len(classes))
        for start in range(0, table.shape[1], step)
    ]
    return xr.DataArray(np.concatenate([*blocks, np.zeros(0)]), dims="unit")


def _area(
    table: npt.NDArray[np.floating], place: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float64]:
    """Computes the AUC of each unit's preferred class from the rank sum of that class."""
    member = np.zeros((classes, len(place)))
    member[place, np.arange(len(place))] = 1
    count = member.sum(1)
    best = (member @ table.astype(np.float64) / count[:, None]).argmax(0)
    ranks = np.take_along_axis(member @ rankdata(table, axis=0), best[None], 0)[0]
    own = count[best]
    area: npt.NDArray[np.float64] = (ranks - own * (own + 1) / 2) / (own * (len(place) - own))
    return area

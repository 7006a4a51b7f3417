"""Additional unit metrics, defined by functions in the same way as user-defined metrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import rankdata

from probekit.checks import integer, positive_int
from probekit.metrics.metric import unit_metric
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.covariance import Covariance
from probekit.statistics.feeding import table_and_labels
from probekit.statistics.recorded import Recorded
from probekit.statistics.silent import SilentCounts


@unit_metric(needs=Covariance, share=True)
def lifetime_sparsity(covariance: xr.Dataset) -> xr.DataArray:
    """The lifetime sparsity of a unit: 0 if it responds equally to all samples, 1 if only to one.

    S = (1 - a) / (1 - 1/n) with a = (mean r)^2 / mean(r^2) over n samples. It is defined for
    non-negative activations. It is NaN for units that are always zero and for a single sample.

    Source:
        a: Treves & Rolls 1991 (Network 2); S: Vinje & Gallant 2000 (Science 287).
    """
    count = int(covariance["count"])
    squared_mean = covariance["mean"] ** 2
    # The variance is normalized by n - 1, the mean of squares by n.
    mean_square = covariance["variance"] * (count - 1) / count + squared_mean
    spread = 1 - squared_mean / mean_square.where(mean_square > 0)
    return spread / (1 - 1 / count) if count > 1 else spread * np.nan


@unit_metric(needs=Recorded, units="bits")
def class_information(
    recording: xr.Dataset, bins: int = 20, corrected: bool = True
) -> xr.DataArray:
    """The mutual information between the class and the activation of a unit, in bits.

    Activations are divided into bins with the same number of samples, as far as ties (such as the
    zeros of a ReLU) allow. The estimate from a finite sample is too high: for a unit that is
    independent of the classes, by about (bins - 1)(classes - 1) / (2 n ln 2) bits. This bias is
    subtracted, with the numbers of bins and classes that are not empty (Miller 1955), unless `corrected` is
    false; the result can then be negative. The default number of bins is probekit's choice.

    Source:
        Morcos et al. 2018 (arXiv 1803.06959) compare it with class selectivity.
    """
    integer("bins", bins, least=2)
    table, labels = table_and_labels(recording)
    found = [_information(column, labels, bins, corrected) for column in table.values.T]
    return xr.DataArray(np.array(found), dims="unit")


@unit_metric(needs=Recorded, long_name="precision selectivity index", share=True)
def precision_selectivity(recording: xr.Dataset, top: int = 60) -> xr.DataArray:
    """The largest fraction of one class among the samples that activate a unit most.

    Samples with the same activation as the last of the `top` samples share its rank. The lowest value
    is about 1 / classes, and higher for few samples. For a unit with the same activation for all
    samples, the value is the fraction of samples in the largest class.

    Source:
        After Zhou et al. 2015 (arXiv 1412.6856), with the classes of the data instead of concepts named
        by people.
    """
    positive_int("top", top)
    activations, labels = table_and_labels(recording)
    table = activations.values
    top = min(top, len(table))
    lowest = -np.partition(-table, top - 1, axis=0)[top - 1]
    above, equal = table > lowest, table == lowest
    weight = above + equal * (top - above.sum(0)) / equal.sum(0)
    shares = [weight[labels == label].sum(0) / top for label in np.unique(labels)]
    return xr.DataArray(np.max(shares, 0), dims="unit")


@unit_metric(needs=ClassMeans)
def class_rank(class_mean: xr.DataArray) -> xr.DataArray:
    """The rank of each class for a unit: 1 for the preferred class, the one with the highest mean.

    Classes with equal means share the mean of their ranks.
    """
    class_mean = class_mean.transpose("unit", "class")
    return class_mean.copy(data=rankdata(-class_mean.values, axis=1))


@unit_metric(needs=SilentCounts, share=True)
def silent_fraction(counts: xr.Dataset) -> xr.DataArray:
    """The share of samples for which a unit is silent: its activation is not above zero."""
    return counts["silent"] / counts["count"]


def _information(
    values: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], bins: int, corrected: bool
) -> float:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, values, side="left")
    classes = np.unique(labels, return_inverse=True)[1]
    joint = np.zeros((places.max() + 1, classes.max() + 1))
    np.add.at(joint, (places, classes), 1 / len(values))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    information = float((joint[there] * np.log2(joint[there] / apart[there])).sum())
    if corrected:
        used, classes_used = (np.count_nonzero(joint.sum(axis)) for axis in (1, 0))
        information -= (used - 1) * (classes_used - 1) / (2 * len(values) * np.log(2))
    return information

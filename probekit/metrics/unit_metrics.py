"""Additional unit metrics, most of them defined by functions in the same way as user-defined metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import entropy, rankdata
from scipy.stats.contingency import crosstab

from probekit.checks import integer, positive_int
from probekit.errors import DataError
from probekit.metrics.metric import Metric, register, unit_metric
from probekit.results.labels import attributes
from probekit.statistics.class_means import ClassMeans, ClassMoments
from probekit.statistics.covariance import Covariance
from probekit.statistics.feeding import values_and_labels
from probekit.statistics.recorded import Recorded
from probekit.statistics.silent import SilentCounts
from probekit.statistics.top_samples import TopSamples

_ROUNDING = 1e-20  # variation below this fraction of the mean square is rounding error
_BLOCK_ELEMENTS = 2**22
_TOP_IMAGES = {
    "top_sample": attributes("top image", "Index of the image in the data."),
    "top_activation": attributes("activation for the top image"),
    "top_label": attributes("label of the top image"),
    "drawn_activation": attributes("activation for a random image"),
}


@unit_metric(needs=Covariance, share=True)
def lifetime_sparsity(covariance: xr.Dataset) -> xr.DataArray:
    """The lifetime sparsity of a unit: 0 if it responds equally to all samples, 1 if only to one.

    S = (1 - a) / (1 - 1/n) with a = (mean r)^2 / mean(r^2) over n samples. It is defined for
    non-negative activations. It is NaN for units that are always zero and for a single sample.

    Source:
        a: Treves & Rolls 1991 (Network 2); S: Vinje & Gallant 2000 (Science 287).
    """
    count = int(covariance["count"])
    # The variance is normalized by n - 1, the mean of squares by n.
    mean_square = covariance["variance"] * (count - 1) / count + covariance["mean"] ** 2
    return (covariance["variance"] / mean_square).where((mean_square > 0) & (count > 1))


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
    table, labels = values_and_labels(recording)
    found = [_information(column, labels, bins, corrected) for column in table.T]
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
    table, labels = values_and_labels(recording)
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
    joint = crosstab(np.searchsorted(edges, values, side="left"), labels).count
    apart = entropy(joint.sum(0), base=2) + entropy(joint.sum(1), base=2)
    information = float(apart - entropy(joint, base=2, axis=None))
    if corrected:
        used, classes = joint.shape
        information -= (used - 1) * (classes - 1) / (2 * len(values) * np.log(2))
    return information


@unit_metric(needs=ClassMoments, long_name="eta squared", share=True)
def eta_squared(moments: xr.Dataset, corrected: bool = False) -> xr.DataArray:
    """The fraction of a unit's variance over samples that lies between classes.

    The value is 0 if all classes have the same mean, and 1 if all samples of a class have the same
    activation. Unlike the class selectivity index, it does not change when a constant is added to the
    unit or when the unit is scaled. The value of a constant unit is 0.

    Args:
        moments: The output of the statistic `ClassMoments`, or a recording.
        corrected: Return epsilon squared, (eta squared - e) / (1 - e), where e = (classes - 1) /
            (samples - 1) is expected for a unit that is independent of the classes. It can be negative.

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
    table, labels = values_and_labels(recording)
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


@dataclass(frozen=True)
class TopImages(Metric):
    """The metric `top_images`: the images that activate each unit most.

    Variables per unit and rank (1 is the highest) are `top_sample`, the index of the image in the data,
    as in `/samples`; `top_activation`, the activation pooled over positions; and `top_label`. Ties are
    broken by the lower sample index, so the top images of a dead unit are the first samples and carry
    no information. For comparison, `drawn_activation` (unit, drawn) contains the activations for random
    samples, whose indices are the coordinate `drawn`.

    `images_at` returns the images at such indices.

    Args:
        top: Number of images per unit.
        drawn: Number of random samples, the same for all units.
        seed: Seed of the random samples.

    Raises:
        OptionError: A number is below 1.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> units = pk.analyze(model, data, "layer3.2.relu2", TopImages(top=3), limit=50)["units"]
        >>> [data[index][1] for index in units["top_sample"].values[4]]  # the labels of these images
        [1, 1, 1]
    """

    name = "top_images"
    variables = _TOP_IMAGES

    top: int = 9
    drawn: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.needs  # which checks the options

    @property
    def needs(self) -> Sequence[TopSamples]:
        return (TopSamples(self.top, self.drawn, self.seed),)

    def evaluate(self, best: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        return best, xr.Dataset()


register(TopImages())

"""Dimensionality: the number of dimensions that a layer's activations use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from probekit.capture.readouts import Spatial
from probekit.checks import non_negative_int
from probekit.errors import DataError, OptionError, some_of
from probekit.metrics.metric import Metric, register
from probekit.results.labels import attributes
from probekit.statistics.base import StatisticLike
from probekit.statistics.covariance import Covariance
from probekit.statistics.decompositions import symmetric_eigenvalues
from probekit.statistics.feeding import by_layer, feed
from probekit.statistics.recorded import SampledRows

Given: TypeAlias = "xr.Dataset | xr.DataArray | np.ndarray[Any, Any]"
# Tolerance for rounding errors when explained variance is compared with a threshold.
_ROUNDING = 1e-12
_GROUPS = 20  # number of row groups that the jackknife leaves out in turn


def participation_ratio(covariance: Given) -> xr.DataArray:
    """The participation ratio of a layer: (sum of eigenvalues)^2 / sum of their squares.

    The ratio is D if the variance is spread equally over D dimensions, and 1 if all variance lies
    along one line. It is computed from the trace and the Frobenius norm, without an eigenvalue
    decomposition. With few samples the ratio is too low, because it cannot exceed the number of
    samples; see `participation_ratio_corrected`.

    Args:
        covariance: The output of the statistic `Covariance`, a covariance matrix, or a recording.

    Returns:
        A scalar, or (layer) for a recording of several layers. 0 if there is no variance.

    Raises:
        DataError: The input is none of these, or contains NaN or infinity.

    Source:
        Gao et al. 2017, A theory of multineuronal dimensionality (bioRxiv 214262).

    Example:
        >>> participation_ratio(np.diag([1.0, 1.0, 1.0, 0.0])).item()
        3.0
    """
    if _is_recording(covariance):
        return _by_layer(participation_ratio, covariance)
    return xr.DataArray(_ratio(_matrix(covariance)), name="participation_ratio")


def participation_ratio_corrected(covariance: xr.Dataset) -> xr.DataArray:
    """The participation ratio, corrected for the number of samples.

    This is the ratio of unbiased estimates of (tr C)^2 and tr(C^2), clipped to the possible range: 1
    to the number of units that vary. The two estimates assume no distribution, only independent rows.
    Positions of one image are not independent; for them the correction is too small. The ratio itself
    is not unbiased: with heavy tails or sparse units and few rows, tr(C^2) depends on a few rows, and
    the ratio is too high or reaches its limit. The metric `dimensionality` reports a jackknife
    standard error, which is large in this case.

    Args:
        covariance: The output of the statistic `Covariance`, or a recording. A covariance matrix is
            not enough, because it lacks the number of samples and their fourth moment.

    Returns:
        A scalar, or (layer) for a recording of several layers. NaN for fewer than 4 rows (2 if not
        centered); 0 if there is no variance.

    Raises:
        DataError: The input is not the output of `Covariance` or a recording.

    Source:
        Himeno & Yamada 2014, Estimations for some functions of covariance matrix in high dimension
        under non-normality (Journal of Multivariate Analysis 130).

    Example:
        >>> import probekit as pk
        >>> model, data = "probekit:resnet20-fashion-mnist", "fashion-mnist"
        >>> few, more = (pk.record(model, data, "layer3.2.relu2", limit=limit) for limit in (30, 300))
        >>> [round(pk.participation_ratio(images).item(), 1) for images in (few, more)]
        [5.3, 6.9]
        >>> round(participation_ratio_corrected(few).item(), 1)
        6.4
    """
    if _is_recording(covariance):
        return _by_layer(participation_ratio_corrected, covariance)
    if not isinstance(covariance, xr.Dataset):
        raise DataError(
            "the corrected participation ratio needs the number of samples and their fourth moment; "
            "pass the output of the statistic Covariance, not only a matrix"
        )
    matrix = _matrix(covariance)
    found = _corrected(
        int(covariance["count"]),
        float(np.trace(matrix)),
        float(np.square(matrix).sum()),
        float(covariance["fourth_moment"]),
        bool(covariance["centered" if "centered" in covariance else "centred"]),
        int((covariance["variance"].values > 0).sum()),
    )
    return xr.DataArray(found, name="participation_ratio_corrected")


def participation_ratio_unbiased(covariance: xr.Dataset) -> xr.DataArray:
    """Deprecated former name of `participation_ratio_corrected`: the ratio is not unbiased.

    Example:
        >>> import probekit as pk
        >>> model, data = "probekit:resnet20-fashion-mnist", "fashion-mnist"
        >>> images = pk.record(model, data, "layer3.2.relu2", limit=30)
        >>> bool(participation_ratio_unbiased(images) == participation_ratio_corrected(images))
        True
    """
    return participation_ratio_corrected(covariance).rename("participation_ratio_unbiased")


def eigenvalues(covariance: Given) -> xr.DataArray:
    """The variances along the principal components (component), in descending order.

    If the statistic stored the rows, only as many eigenvalues as rows are returned; the others are
    zero.
    """
    values = _spectrum(_matrix(covariance))
    return xr.DataArray(
        values, dims="component", coords={"component": np.arange(len(values))}, name="eigenvalue"
    )


def components(covariance: Given, variance: Sequence[float] = (0.9, 0.95, 0.99)) -> xr.DataArray:
    """The number of principal components that explain at least a fraction of the variance.

    Integers (variance) for fractions in (0, 1], or (layer, variance) for a recording of several layers. All
    are 0 if there is no variance.
    """
    _check_shares(variance)
    if _is_recording(covariance):
        return _by_layer(partial(components, variance=variance), covariance)
    counts = _count_components(_spectrum(_matrix(covariance)), variance)
    return xr.DataArray(
        counts, dims="variance", coords={"variance": list(variance)}, name="components"
    )


_RATIO = "Participation ratio of the covariance of the units"
_ERROR = "participation_ratio_corrected_error"
_VARIABLES = {
    "participation_ratio": attributes("participation ratio", f"{_RATIO}.", short_name="PR"),
    "participation_ratio_corrected": attributes(
        "participation ratio (corrected)",
        f"{_RATIO}, corrected for the number of samples.",
        short_name="PR corrected",
    ),
    _ERROR: attributes(
        "standard error of the corrected participation ratio",
        "Jackknife over groups of samples.",
        short_name="PR error",
    ),
    "participation_ratio_unbiased": attributes(
        "participation ratio (corrected)", "Former name of participation_ratio_corrected."
    ),
    "participation_ratio_fraction": attributes(
        "participation ratio / dimensions", f"{_RATIO} over the number of dimensions.", share=True
    ),
    "participation_ratio_corrected_fraction": attributes(
        "participation ratio (corrected) / dimensions",
        f"{_RATIO}, corrected for the number of samples, over the number of dimensions.",
        short_name="dimensions used",
        share=True,
    ),
    "participation_ratio_unbiased_fraction": attributes(
        "participation ratio (corrected) / dimensions",
        "Former name of participation_ratio_corrected_fraction.",
        share=True,
    ),
    "components": attributes(
        "principal components",
        "Number of principal components that explain a fraction of the variance.",
        short_name="PCs",
    ),
    "components_fraction": attributes(
        "principal components / dimensions", "Over the number of dimensions.", share=True
    ),
    "eigenvalue": attributes("eigenvalue of the covariance", "Highest first."),
    "n_dimensions": attributes("dimensions", "Number of dimensions.", short_name="dimensions"),
    "n_samples": attributes("samples", "Number of rows of the covariance.", short_name="samples"),
    "too_few_samples": attributes(
        "too few samples", "Not more samples than dimensions, so PR and PCs are too low."
    ),
}


@dataclass(frozen=True)
class Dimensionality(Metric):
    """The metric `dimensionality`: the number of dimensions that each layer uses.

    Variables per layer:

    - `participation_ratio`, `participation_ratio_corrected` and `components` (variance), each also
      divided by `n_dimensions` under the suffix `_fraction`
    - `n_samples`: the number of rows
    - `too_few_samples`: the rows do not outnumber the dimensions, so that the covariance does not have
      full rank
    - `eigenvalue` (component): the largest eigenvalues
    - `participation_ratio_corrected_error`: the standard error of the corrected ratio, by a jackknife
      over 20 groups of samples. It uses all samples if there are at most `jackknife`. Otherwise it uses
      a random subset of that size, and the error is scaled by the square root of the subset's fraction
      of the samples. It is NaN with `spatial="positions"`, whose rows are not independent; with
      `spatial="flatten"` if there are more rows than dimensions; and for fewer than 40 samples.
    - `participation_ratio_unbiased`: deprecated former name of `participation_ratio_corrected`

    Args:
        spatial: The dimensions: `"mean"`, units pooled over positions; `"positions"`, units with every
            position as a sample; `"flatten"`, the elements of the feature map.
        centered: Subtract the mean activation.
        variance: Fractions of the variance for `components`.
        spectrum: Maximum number of eigenvalues in the result.
        memory: Maximum number of bytes for covariances; see `Covariance`.
        jackknife: Maximum number of samples for the jackknife; 0 disables it.

    Source:
        Participation ratio: Gao et al. 2017 (bioRxiv 214262). Corrected: Himeno & Yamada 2014.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = pk.Dimensionality(variance=(0.5, 0.9))
        >>> layers = pk.analyze(model, data, "layer3.*.relu2", metrics, limit=100)["layers"]
        >>> dict(layers["components"].sizes)
        {'layer': 3, 'variance': 2}
    """

    name = "dimensionality"
    variables = _VARIABLES

    spatial: Spatial = "mean"
    centered: bool = True
    variance: Sequence[float] = (0.9, 0.95, 0.99)
    spectrum: int = 128
    memory: int = 4 * 2**30
    jackknife: int = 500

    def __post_init__(self) -> None:
        _check_shares(self.variance)
        non_negative_int("jackknife", self.jackknife)
        non_negative_int("spectrum", self.spectrum)
        Covariance(self.spatial, self.centered, self.memory)

    @property
    def needs(self) -> Sequence[StatisticLike]:
        """The covariance, and a sample of rows for the jackknife."""
        covariance = Covariance(self.spatial, self.centered, self.memory)
        if self.jackknife and self.spatial == "mean":
            return (covariance, SampledRows(self.jackknife))
        return (covariance,)

    def evaluate(
        self, covariance: xr.Dataset, sampled: xr.Dataset | None = None
    ) -> tuple[xr.Dataset, xr.Dataset]:
        spectrum = _spectrum(_matrix(covariance))
        found = self._values(covariance, spectrum)
        found[_ERROR] = self._error(covariance, sampled)
        shown = spectrum[: self.spectrum]
        return xr.Dataset(), self._table(found).assign(
            eigenvalue=("component", shown), component=np.arange(len(shown))
        ).set_coords("component")

    def over_layers(self, covariances: Iterable[xr.Dataset]) -> xr.Dataset:
        """The variables (layer, ...) of several layers, without eigenvalues and errors."""
        each = [self._values(one, _spectrum(_matrix(one))) for one in covariances]
        names = [name for name in each[0] if name != _ERROR]
        return self._table({name: [one[name] for one in each] for name in names}, "layer")

    def _values(self, covariance: xr.Dataset, spectrum: npt.NDArray[np.float64]) -> dict[str, Any]:
        """The variables of one layer as numbers and arrays."""
        dimensions, count = int(covariance["n_dimensions"]), int(covariance["count"])
        counts = _count_components(spectrum, self.variance)
        corrected = participation_ratio_corrected(covariance).item()
        ratios = {
            "participation_ratio": _ratio(_matrix(covariance)),
            "participation_ratio_corrected": corrected,
            "participation_ratio_unbiased": corrected,
        }
        return {
            "n_dimensions": dimensions,
            "n_samples": count,
            **ratios,
            _ERROR: float("nan"),
            **{f"{name}_fraction": ratio / dimensions for name, ratio in ratios.items()},
            "components": counts,
            "components_fraction": counts / dimensions,
            "too_few_samples": count <= dimensions,
        }

    def _table(self, values: Mapping[str, Any], *dims: str) -> xr.Dataset:
        """Numbers and arrays as variables; those of components have the dimension `variance`."""
        of = {"components": (*dims, "variance"), "components_fraction": (*dims, "variance")}
        variables = {name: (of.get(name, dims), value) for name, value in values.items()}
        return xr.Dataset(variables, coords={"variance": list(self.variance)})

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Reports the layers that have too few samples for their number of dimensions."""
        few = layers["layer"].values[layers["too_few_samples"].values.astype(bool)]
        if not len(few):
            return []
        shown = some_of(few)
        low = int(layers["n_samples"].min())
        least = 4 if self.centered else 2
        which = (
            "participation_ratio and components are too low there; see participation_ratio_corrected "
            "and its error"
            if low >= least
            else f"with fewer than {least}, participation_ratio_corrected is NaN too"
        )
        return [f"{low} samples are too few for the dimensions of {shown}; {which}"]

    def _error(self, covariance: xr.Dataset, sampled: xr.Dataset | None) -> float:
        """The standard error of the corrected participation ratio of one layer."""
        count = int(covariance["count"])
        varying = int((covariance["variance"].values > 0).sum())
        if sampled is not None:
            rows = sampled["activation"].values.astype(np.float64)
            rows -= rows.mean(0) if self.centered else 0.0
            gram = rows @ rows.T
        elif self.jackknife and "gram" in covariance:
            gram = covariance["gram"].values * (count - self.centered)
        else:
            return float("nan")
        return _jackknife_error(gram, self.centered, varying) * float(np.sqrt(len(gram) / count))


def _ratio(matrix: npt.NDArray[np.float64]) -> float:
    squares = float(np.square(matrix).sum())
    return float(np.trace(matrix) ** 2 / squares) if squares else 0.0


def _spectrum(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The eigenvalues in descending order; rounding errors below zero count as zero."""
    values: npt.NDArray[np.float64] = symmetric_eigenvalues(torch.tensor(matrix)).numpy()
    return values[::-1].clip(min=0)


def _count_components(
    spectrum: npt.NDArray[np.float64], variance: Sequence[float]
) -> npt.NDArray[np.int64]:
    explained = spectrum.cumsum()
    total = explained[-1]
    wanted = (np.array(variance, dtype=np.float64) - _ROUNDING) * total
    return np.searchsorted(explained, wanted) + 1 if total > 0 else np.zeros(len(wanted), int)


def _corrected(
    count: int, trace: float, norm: float, fourth: float, centered: bool, varying: int
) -> float:
    """The corrected ratio, clipped to its limits, from the trace and squared norm of a covariance.

    It is the ratio of unbiased estimates of (tr C)^2 and tr(C^2), up to a common factor. For moments
    about zero, these are sums over pairs of different samples.
    """
    if trace == 0:
        return 0.0
    if count < (4 if centered else 2):
        return float("nan")
    squared_trace = count * trace**2 - fourth
    trace_of_square = count * norm - fourth
    if centered:
        squared_trace = 2 * norm + (count**2 - 3 * count + 1) * trace**2 - count * fourth
        trace_of_square = (count - 1) * (count - 2) * norm + trace**2 - count * fourth
    if trace_of_square <= 0:  # the estimate is smaller than its error
        return float(varying)
    return float(np.clip(squared_trace / trace_of_square, 1, varying))


def _jackknife_error(gram: npt.NDArray[np.float64], centered: bool, varying: int) -> float:
    """The grouped jackknife error of the corrected ratio, from the inner products of rows."""
    if len(gram) < 2 * _GROUPS:
        return float("nan")
    group = np.random.default_rng(0).permutation(np.arange(len(gram)) % _GROUPS)
    found = []
    for left_out in range(_GROUPS):
        kept = group != left_out
        part, count = gram[np.ix_(kept, kept)], int(kept.sum())
        if centered:
            part = part - part.mean(0) - part.mean(1)[:, None] + part.mean()
        degrees = count - centered
        trace, norm = float(np.trace(part)) / degrees, float(np.square(part).sum()) / degrees**2
        fourth = float((np.diag(part) ** 2).sum() / degrees)
        found.append(_corrected(count, trace, norm, fourth, centered, varying))
    return float(np.sqrt((_GROUPS - 1) * np.var(found)))


def _matrix(given: object) -> np.ndarray[Any, Any]:
    """The matrix whose eigenvalues are the variances of the layer."""
    if isinstance(given, xr.Dataset):
        if "covariance" not in given and "gram" not in given:
            raise DataError(
                "dimensionality needs the output of the statistic Covariance, a covariance matrix or a "
                f"recording, not a dataset of {', '.join(map(str, given)) or 'nothing'}"
            )
        given = given["covariance"] if "covariance" in given else given["gram"]
    if isinstance(given, xr.DataTree):
        raise DataError("a result has the participation ratio of each layer in its table /layers")
    matrix = np.asarray(given, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise DataError(
            f"a covariance must be a square matrix, not of the shape {matrix.shape}; for a table of "
            "activations (samples, units), give numpy.cov(table.T)"
        )
    if not np.isfinite(matrix).all():
        raise DataError("the covariance contains NaN or infinity, so it has no dimensionality")
    return matrix


def _is_recording(given: object) -> bool:
    return isinstance(given, xr.Dataset) and "activation" in given


def _by_layer(function: Callable[[xr.Dataset], xr.DataArray], recording: Any) -> xr.DataArray:
    """Applies a function of a covariance to each layer of a recording, in order."""
    # The statistic stores rows while there are fewer rows than dimensions, as for whole maps.
    found = by_layer(recording, lambda part: function(feed(part, Covariance("flatten"))))
    return found.squeeze("layer", drop=True) if found.sizes.get("layer") == 1 else found


def _check_shares(variance: Sequence[float]) -> None:
    try:
        known = len(variance) > 0 and all(0 < share <= 1 for share in variance)
    except TypeError:  # a single number, or texts
        known = False
    if not known:
        raise OptionError(f"variance must be fractions above 0 and up to 1, not {variance!r}")


register(Dimensionality())

"""Class selectivity, also without offsets and without pooling over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from probekit.errors import DataError, warn
from probekit.metrics.metric import register, unit_metric
from probekit.metrics.selectivity.index import (
    IndexMetric,
    Negative,
    SelectivityIndex,
    enough_classes,
)
from probekit.results.labels import attributes
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.feeding import feed

# Below this many samples per class the bias of the index is large (docs/uncertainty.md).
_FEW_SAMPLES = 20
_VARIABLES = {
    "selectivity": attributes(
        "class selectivity index",
        "(highest class mean - mean of the other class means) / their sum. 0: the same for all "
        "classes; 1: responds to one class alone.",
        short_name="selectivity",
        share=True,
    ),
    "preferred_class": attributes(
        "preferred class",
        "The class with the highest mean activation; none for a dead unit.",
        short_name="preferred class",
    ),
    "dead": attributes("dead units", "No class mean differs from zero."),
    "negative_class_mean": attributes(
        "units with negative class means",
        "Some class mean is below zero, where the index may leave [0, 1].",
    ),
    "class_mean": attributes("class mean activation", "Mean activation for each class."),
    "dead_units": attributes(
        "dead units", "Number of units whose class means are all zero.", short_name="dead"
    ),
    "negative_units": attributes(
        "units with negative class means", "Number of units with a class mean below zero."
    ),
}
_PER_ELEMENT = {
    "selectivity_per_element": attributes(
        "selectivity index per element",
        "Mean over the elements of the map of their class selectivity index.",
        share=True,
    )
}


def class_selectivity(
    class_mean: xr.DataArray | xr.Dataset, *, eps: float = 1e-6, negative: Negative = "clip"
) -> xr.DataArray:
    """The class selectivity index of every unit.

    SI = (mu_max - mu_rest) / (mu_max + mu_rest + eps), where mu_max is the highest class mean of a
    unit and mu_rest the mean of the means of all other classes. The index is 0 if the unit responds
    equally to all classes, and 1 if it responds to a single class. The index of a dead unit is 0.

    Args:
        class_mean: Class means (unit, class), or a recording, whose class means are computed.
        eps: Keeps the quotient finite for units with very small activations.
        negative: Treatment of negative class means, which would move the index outside [0, 1].
            `"clip"` sets them to zero, `"keep"` applies the unmodified formula, `"shift"` subtracts
            the unit's lowest class mean if it is negative, `"nan"` returns NaN for units that have
            any.

    Returns:
        The index (unit), float64.

    Warns:
        ProbekitWarning: Some class means are negative; the message names the layers.

    Raises:
        DataError: There are fewer than two classes, or the means contain NaN or infinity.
        OptionError: `negative` is unknown, or `eps` is negative or infinite.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262), after Morcos et al. 2018 (arXiv 1803.06959).

    Example:
        >>> means = xr.DataArray([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dims=("unit", "class"))
        >>> class_selectivity(means, eps=0).values
        array([1., 0.])
    """
    index = SelectivityIndex(eps, negative)
    means = checked_means(class_mean)
    below = (means < 0).any("class")
    if bool(below.any()):
        layers = means["layer"].values[below.values].tolist() if "layer" in means.coords else []
        warn(index.describe_negative(int(below.sum()), list(dict.fromkeys(layers))))
    ordered = means.transpose("unit", "class")
    found = ordered.isel({"class": 0}, drop=True)
    return found.copy(data=index.at(ordered.values)).rename("selectivity")


def checked_means(given: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Class means as float64, from class means or a recording."""
    if isinstance(given, xr.Dataset):
        if "activation" not in given or "label" not in given.variables:
            raise DataError(
                "class selectivity needs class means (unit, class) or a recording with activation"
                f"(sample, unit) and label(sample), not a dataset of {', '.join(map(str, given))}"
            )
        given = feed(given, ClassMeans())
    if not isinstance(given, xr.DataArray) or "class" not in given.dims:
        found = given.dims if isinstance(given, xr.DataArray) else type(given).__name__
        raise DataError(
            "class means must be an xr.DataArray (unit, class), such as result['units']['class_mean'], not "
            f"{found}"
        )
    means: xr.DataArray = given.astype(np.float64, copy=False)
    if not np.isfinite(means.values).all():
        raise DataError("the class means contain NaN or infinity, so they have no selectivity")
    enough_classes(means.sizes["class"])
    return means


@dataclass(frozen=True, kw_only=True)
class Selectivity(IndexMetric):
    """The metric `selectivity`: the class selectivity index of every unit, and its class means.

    Variables per unit are `selectivity`; `preferred_class`, the label of the highest class mean (-1 for
    dead units); `dead`, whether no class mean exceeds `dead_below` in absolute value;
    `negative_class_mean`, whether any class mean is negative; and `class_mean`. Variables per layer
    are `dead_units` and `negative_units`, the numbers of such units.

    Args:
        eps, negative: As for `class_selectivity`.
        dead_below: The largest absolute value of the class means of a dead unit.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> units = pk.analyze(model, data, "layer3.2.relu2", pk.Selectivity(), limit=100)["units"]
        >>> best = units.isel(unit=units["selectivity"].values.argmax())
        >>> best["class_name"].values[int(best["preferred_class"])]
        'Trouser'
    """

    name = "selectivity"
    needs = (ClassMeans(),)
    variables = _VARIABLES

    dead_below: float = 0.0

    def evaluate(self, class_mean: xr.DataArray) -> tuple[xr.Dataset, xr.Dataset]:
        means = checked_means(class_mean).transpose("unit", "class")
        values, labels = means.values, means["class"].values
        index = self.formula.at(values)
        dead = np.abs(values).max(1) <= self.dead_below
        below = (values < 0).any(1)
        units = xr.Dataset(
            {
                "selectivity": ("unit", np.where(dead, 0.0, index)),
                "preferred_class": ("unit", np.where(dead, -1, labels[values.argmax(1)])),
                "dead": ("unit", dead),
                "negative_class_mean": ("unit", below),
                "class_mean": class_mean.variable,
            },
            coords=class_mean.coords,
        )
        layers = xr.Dataset({"dead_units": dead.sum(), "negative_units": below.sum()})
        return units, layers

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Reports the layers with negative class means, and classes with few samples."""
        sentences = []
        below = layers["layer"].values[layers["negative_units"].values > 0].tolist()
        if below:
            units_below = int(layers["negative_units"].sum())
            sentences.append(self.formula.describe_negative(units_below, below))
        counts = units["count"].values if "count" in units.coords else np.array([])
        if few := int((counts < _FEW_SAMPLES).sum()):
            sentences.append(
                f"{few} of {len(counts)} classes have fewer than {_FEW_SAMPLES} samples (the fewest "
                f"{counts.min()}), so noise in the class means makes the index too high; use more "
                "samples, or see selectivity_split_half, which does not have this bias"
            )
        return sentences


register(Selectivity())


@unit_metric(needs=ClassMeans, long_name="offset-free selectivity index", share=True)
def selectivity_offset_free(class_mean: xr.DataArray, eps: float = 1e-6) -> xr.DataArray:
    """The class selectivity index after the lowest class mean of the unit is subtracted from all.

    Adding a constant to a unit lowers the plain index without changing the class information of the
    unit. It does not change this index. This index is high for any unit with one class above the
    others, however small the difference. With two classes it is always 1 (or 0). Noise in the lowest of
    many class means raises it, so compare networks with the same number of samples.

    Args:
        class_mean: Class means (unit, class), or a recording.
        eps: As for `class_selectivity`.

    Returns:
        The index (unit), from 0 to 1; 0 for a unit whose class means are all equal.

    Source:
        probekit's own control for the index of Leavitt & Morcos 2020 (arXiv 2003.01262).

    Example:
        >>> means = xr.DataArray([[12.0, 10.0, 10.0], [2.0, 0.0, 0.0]], dims=("unit", "class"))
        >>> selectivity_offset_free(means, eps=0).values
        array([1., 1.])
    """
    means = checked_means(class_mean).transpose("unit", "class").values
    above = means - means.min(1, keepdims=True)
    # A difference within the rounding error of the means counts as zero.
    above = np.where(above <= 1e-12 * np.abs(means).max(1, keepdims=True), 0.0, above)
    return xr.DataArray(SelectivityIndex(eps).at(above), dims="unit")


@dataclass(frozen=True, kw_only=True)
class SelectivityPerElement(IndexMetric):
    """The metric `selectivity_per_element`: the mean of the indices of a feature map's elements.

    The papers pool each feature map over its positions before computing class means, so a unit whose
    positions prefer different classes has a low index. This metric computes class means and an index
    for every element of the map, and then the mean over the elements of a unit. The index of an element
    that is always zero is 0. For layers without positions, this is the plain index.

    Args:
        eps, negative: As for `class_selectivity`.
        memory: Maximum number of bytes for the class means of all elements of all layers:
            8 * classes * units * positions.

    Raises:
        OptionError: An option is not valid, or `memory` is too small for the layers.

    Source:
        probekit's own control for the index of Leavitt & Morcos 2020 (arXiv 2003.01262).

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = ["selectivity", SelectivityPerElement()]
        >>> layers = pk.analyze(model, data, "layer1.0.relu1", metrics, limit=500)["layers"]
        >>> [round(layers[name].item(), 1) for name in ("selectivity_mean", "selectivity_per_element_mean")]
        [0.2, 0.5]
    """

    name = "selectivity_per_element"
    variables = _PER_ELEMENT

    memory: int = 2**31

    @property
    def needs(self) -> Sequence[ClassMeans]:
        return (ClassMeans(), ClassMeans("flatten", self.memory))

    def evaluate(
        self, class_mean: xr.DataArray, element_mean: xr.DataArray
    ) -> tuple[xr.Dataset, xr.Dataset]:
        means = checked_means(element_mean).transpose("element", "class").values
        index = self.formula.at(means)
        by_unit = index.reshape(class_mean.sizes["unit"], -1).mean(1)
        return xr.Dataset({self.name: ("unit", by_unit)}), xr.Dataset()


register(SelectivityPerElement())

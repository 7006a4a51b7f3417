"""Variants of the class selectivity index: without offsets, and without pooling over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from probekit.metrics.metric import register, unit_metric
from probekit.metrics.selectivity.index import IndexMetric, Negative, SelectivityIndex
from probekit.metrics.selectivity.selectivity import checked_means
from probekit.results.labels import attributes
from probekit.statistics.class_means import ClassMeans


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


_VARIABLES = {
    "selectivity_per_element": attributes(
        "selectivity index per element",
        "Mean over the elements of the map of their class selectivity index.",
        share=True,
    )
}


@dataclass(frozen=True)
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
    variables = _VARIABLES

    eps: float = 1e-6
    negative: Negative = "clip"
    memory: int = 2**31

    @property
    def needs(self) -> Sequence[ClassMeans]:
        """The class means of units and of elements."""
        return (ClassMeans(), ClassMeans("flatten", self.memory))

    def evaluate(
        self, class_mean: xr.DataArray, element_mean: xr.DataArray
    ) -> tuple[xr.Dataset, xr.Dataset]:
        means = checked_means(element_mean).transpose("element", "class").values
        index = self.formula.at(means)
        by_unit = index.reshape(class_mean.sizes["unit"], -1).mean(1)
        return xr.Dataset({self.name: ("unit", by_unit)}), xr.Dataset()


register(SelectivityPerElement())

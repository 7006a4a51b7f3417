"""The images with the highest activation of each unit, by their index in the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from probekit.metrics.metric import Metric, register
from probekit.results.labels import attributes
from probekit.statistics.top_samples import TopSamples

_VARIABLES = {
    "top_sample": attributes("top image", "Index of the image in the data."),
    "top_activation": attributes("activation for the top image"),
    "top_label": attributes("label of the top image"),
    "drawn_activation": attributes("activation for a random image"),
}


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
    variables = _VARIABLES

    top: int = 9
    drawn: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.needs  # which checks the options

    @property
    def needs(self) -> Sequence[TopSamples]:
        """The top samples of each unit."""
        return (TopSamples(self.top, self.drawn, self.seed),)

    def evaluate(self, best: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        return best, xr.Dataset()


register(TopImages())

"""Input-unit gradient variability: how a unit's gradient with respect to the image varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from probekit.capture.gradients.norms import GradientNorms
from probekit.capture.layers import Layer
from probekit.metrics.metric import Metric, register
from probekit.results.labels import attributes
from probekit.statistics.gradient_moments import GradientMoments


def over_samples(moments: xr.Dataset) -> xr.Dataset:
    """The mean, standard deviation and coefficient of variation (CV) of each unit's gradient norms.

    Let y and q be unbiased estimates of g and g^2 for each sample. The mean of g is mean(y). Its
    variance, without the noise of the estimates, is mean(q) - mean(y)^2 + var(y) / n, which is
    unbiased. With exact gradients this is the sample variance with n - 1. A negative estimate, which noise
    can cause, is set to zero.

    `gradient_norm_sem` and `gradient_norm_cv_sem`, the standard errors of the mean and of the CV (delta
    method), include the variation between samples and the noise of the probes;
    `gradient_norm_probe_error` is the part due to the probes (0 for exact gradients). The CV of a dead
    unit is NaN, and so are all values of a unit that was not measured.

    Source:
        g and its CV over samples: our interpretation of Leavitt & Morcos 2020 (arXiv 2010.07693).
        Norm, pooling and n - 1 are probekit's choices.
    """
    names = "count norm square norm_variance norm_square_covariance square_variance"
    count, mean, square, spread, joint, wide = (
        moments[name].values.astype(np.float64) for name in names.split()
    )
    dead = (square == 0) & (count > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Differences that are negative, or within the rounding error of float64, are zero.
        variance, probe = (
            np.where(difference <= 1e-14 * square, 0.0, difference)
            for difference in (
                square - mean**2 + spread / count,
                mean**2 + spread * (count - 1) / count - square,
            )
        )
        cv = np.where(dead, np.nan, np.sqrt(variance) / mean)
        by_square, by_mean = 1 / (2 * cv * mean**2), -square / (cv * mean**3)
        cv_variance = by_mean**2 * spread + 2 * by_mean * by_square * joint + by_square**2 * wide
        columns = {
            "gradient_norm_mean": mean,
            "gradient_norm_std": np.sqrt(variance),
            "gradient_norm_cv": cv,
            "gradient_norm_sem": np.sqrt(spread / count),
            "gradient_norm_cv_sem": np.where(
                cv > 0, np.sqrt(np.maximum(cv_variance, 0) / count), np.nan
            ),
            "gradient_norm_probe_error": np.sqrt(probe / count),
            "gradient_dead": dead,
        }
    return xr.Dataset({name: ("unit", values) for name, values in columns.items()})


def across_units(units: xr.Dataset) -> xr.Dataset:
    """Summarizes the units of one layer (the output of `over_samples`), excluding and counting dead units.

    Returns:
        `gradient_norm_cv_across_units`, the standard deviation (n - 1) of the units' means, divided by
        the mean of these means; the noise of the probes is subtracted as if it were independent
        between units. `gradient_norm_cv_mean`, the mean of the units' CVs. `gradient_units`, the
        number of measured units. `gradient_dead_units`, the number of these that are dead.

    Source:
        Our interpretation of Leavitt & Morcos 2020 (arXiv 2010.07693).
    """
    names = ("norm_mean", "norm_probe_error", "norm_cv", "dead")
    mean, error, cv, dead = (units[f"gradient_{name}"].values for name in names)
    measured = ~np.isnan(mean)
    live = measured & ~dead
    spread, known = np.nan, live & ~np.isnan(cv)
    if live.sum() > 1:
        noise = np.nan_to_num(error[live] ** 2).mean()
        spread = np.sqrt(max(mean[live].var(ddof=1) - noise, 0.0)) / mean[live].mean()
    return xr.Dataset(
        {
            "gradient_units": measured.sum(),
            "gradient_norm_cv_mean": cv[known].mean() if known.any() else np.nan,
            "gradient_norm_cv_across_units": spread,
            "gradient_dead_units": dead.sum(),
        }
    )


_VARIABLES = {
    "gradient_norm_mean": attributes(
        "mean gradient norm", "Mean over samples of the norm of the gradient of the unit."
    ),
    "gradient_norm_std": attributes("standard deviation of the gradient norm", "Over samples."),
    "gradient_norm_cv": attributes(
        "gradient CV over samples",
        "Coefficient of variation, over samples, of the norm of the unit's gradient with respect to "
        "the image: how unevenly the unit depends on its input.",
        short_name="gradient CV",
    ),
    "gradient_norm_sem": attributes("standard error of the mean gradient norm"),
    "gradient_norm_cv_sem": attributes("standard error of the gradient CV"),
    "gradient_norm_probe_error": attributes(
        "probe error of the mean gradient norm", "Part of its standard error due to the probes."
    ),
    "gradient_dead": attributes(
        "units with zero gradient", "The gradient is zero for every sample."
    ),
    "gradient_samples": attributes("gradient samples", "Number of samples measured."),
    "gradient_units": attributes(
        "units with gradients", "Number of units measured.", short_name="units"
    ),
    "gradient_norm_cv_mean": attributes(
        "mean gradient CV over samples",
        "Mean over units of the coefficient of variation, over samples, of the gradient norm.",
        short_name="CV over samples",
    ),
    "gradient_norm_cv_across_units": attributes(
        "gradient CV over units",
        "Coefficient of variation, over units, of their mean gradient norms.",
        short_name="CV over units",
    ),
    "gradient_dead_units": attributes(
        "units without gradient",
        "Number of units whose gradient is always zero.",
        short_name="dead",
    ),
}


@dataclass(frozen=True)
class GradientVariability(GradientNorms, Metric):
    """The metric `gradient_variability`: the variation of input-unit gradients over samples.

    For unit u and sample x, g_u(x) = ||d activation_u / dx||_2, where the activation is pooled over
    positions. Its unit is activation per unit of the image (in [0, 1] for an `ImageModel`).

    Variables per unit are those of `over_samples` and `gradient_samples`, the number of samples
    measured. Variables per layer are those of `across_units`.

    Args:
        method: `"exact"`: one backward pass per unit, each for a whole batch of samples. `"probes"`:
            forward-mode derivatives along random directions v ~ N(0, I), for all units of all layers
            at once. (Jv)_u is N(0, g_u^2), so the mean of K squares has the expected value g_u^2, and
            its square root the expected value c_K g_u with
            c_K = sqrt(2/K) Gamma((K+1)/2) / Gamma(K/2). Dividing by c_K gives an unbiased estimate.
            `"auto"`: probes if the number of units exceeds the number of probes, otherwise exact; the
            provenance records the choice. The probes of each layer are first compared with one
            backward pass. If they differ, as after an operation without a forward-mode derivative,
            `"auto"` measures the layer exactly and reports it.
        probes: Number of directions per sample. They depend only on the seed and the sample index.
        units: Maximum number of units per layer; they are sampled at random.
        samples: Maximum number of samples. They are drawn at random if the size of the data is known;
            otherwise the first samples are used.
        layers: Names or globs of the analyzed layers to measure; None for all.
        seed: Seed for the directions and the samples.
        memory: Maximum number of bytes for intermediate results.
        exact_layers: Names of layers that are measured exactly regardless of the method.

    Raises:
        OptionError: An option is not valid.
        ModelError: Samples affect each other (batch norm without running statistics), or, with
            `method="probes"`, an operation has no forward-mode derivative.

    Source:
        Our interpretation of Leavitt & Morcos 2020 (arXiv 2010.07693); the methods are probekit's.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> result = pk.analyze(model, data, "layer3.2.relu2", GradientVariability(), limit=50)
        >>> result["layers"]["gradient_norm_cv_mean"].values.round(1)
        array([0.8])
    """

    name = "gradient_variability"
    variables = _VARIABLES

    @property
    def needs(self) -> Sequence[GradientMoments]:
        return (GradientMoments(self),)

    def describe(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """The methods used for these layers, for the provenance."""
        units = self.chosen_units(layers)
        return {
            "method_used": self.chosen_method(layers),
            "units_measured": sum(map(len, units.values())),
            "layers_measured": list(units),
            "unit_sample": {
                layer.name: units[layer.name].tolist()
                for layer in layers
                if len(units.get(layer.name, range(layer.units))) < layer.units
            },
        }

    def evaluate(self, moments: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        units = over_samples(moments)
        layers = across_units(units)
        return units.assign(gradient_samples=moments["count"]), layers

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Reports units with too few samples or with a variability below the probe noise."""
        sentences = []
        if few := int((units["gradient_samples"] == 1).sum()):
            sentences.append(
                f"{few} units have gradients of only one sample, and therefore no variability"
            )
        lost = (units["gradient_norm_cv"] == 0) & (units["gradient_norm_probe_error"] > 0)
        if count := int(lost.sum()):
            sentences.append(
                f"{count} units vary less between samples than {self.probes} probes can measure, and "
                "have a CV of 0; use more probes or samples, or method='exact'"
            )
        return sentences


register(GradientVariability())

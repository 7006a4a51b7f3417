"""What the variables of a result are called on a page, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = [
    "LAYER_COLUMNS",
    "PARTICIPATION_RATIOS",
    "UNIT_MEASURES",
    "UNKNOWN",
    "Kind",
    "Measure",
    "measure_of",
    "number",
]

UNKNOWN = "\N{EN DASH}"

Kind: TypeAlias = Literal["share", "number", "count", "flag", "class"]


@dataclass(frozen=True)
class Measure:
    """One variable, for readers.

    Attributes:
        name: Its name in the result.
        label: What it is called on the page.
        about: One sentence on what it says.
        kind: A share in [0, 1], a number, a count, a flag or a class.
        shown: Whether the table of units shows it unless asked otherwise.
    """

    name: str
    label: str
    about: str = ""
    kind: Kind = "number"
    shown: bool = False


_KNOWN = (
    Measure(
        "selectivity",
        "selectivity",
        "Class selectivity index: (highest class mean − mean of the other class means) over their "
        "sum. 0: the same for all classes; 1: responds to one class alone.",
        "share",
        True,
    ),
    Measure(
        "preferred_class",
        "preferred class",
        "The class with the highest mean activation; none for a dead unit.",
        "class",
        True,
    ),
    Measure(
        "selectivity_low",
        "selectivity, lower bound",
        "Lower end of the interval of the selectivity index.",
        "share",
    ),
    Measure(
        "selectivity_high",
        "selectivity, upper bound",
        "Upper end of the interval of the selectivity index.",
        "share",
    ),
    Measure(
        "selectivity_split_half",
        "split-half selectivity",
        "The index when one half of the samples names the preferred class and the other half "
        "measures it: free of the upward bias of a maximum.",
        "share",
    ),
    Measure(
        "selectivity_chance",
        "chance selectivity",
        "The mean index of the unit when labels are permuted.",
        "share",
    ),
    Measure(
        "gradient_norm_cv",
        "gradient CV",
        "Coefficient of variation, over images, of the norm of the unit's gradient by the image: "
        "how unevenly the unit depends on its input.",
        "number",
        True,
    ),
    Measure(
        "gradient_norm_mean",
        "gradient norm",
        "Mean over images of the norm of the unit's gradient by the image.",
    ),
    Measure(
        "corruption_change",
        "change under corruption",
        "Mean over corruptions, severities and images of |clean − corrupted| activation, in units of "
        "activation.",
    ),
    Measure(
        "corruption_change_relative",
        "sensitivity to corruption",
        "Mean |clean − corrupted| activation over the unit's mean activation on clean images: 1 means "
        "that corruptions move the unit as far as it is usually active.",
        "number",
        True,
    ),
    Measure(
        "attack_change",
        "change under attack",
        "Mean over attacks, radii and images of |clean − attacked| activation, in units of "
        "activation.",
    ),
    Measure(
        "attack_change_relative",
        "sensitivity to attack",
        "Mean |clean − attacked| activation over the unit's mean activation on clean images.",
    ),
    Measure(
        "lifetime_sparsity",
        "lifetime sparsity",
        "How few images the unit responds to: 0, all alike; 1, a single one.",
        "share",
        True,
    ),
    Measure(
        "class_information",
        "class information",
        "Mutual information between class and activation, in bits.",
    ),
    Measure(
        "precision_selectivity",
        "precision",
        "The largest share of one class among the images that excite the unit most.",
        "share",
    ),
    Measure(
        "silent_fraction",
        "silent",
        "Share of images for which the activation is not above zero.",
        "share",
    ),
    Measure(
        "mean_activation", "mean activation", "Mean over classes of the class means.", "number"
    ),
    Measure(
        "highest_activation",
        "highest activation",
        "The activation for the image that excites the unit most.",
    ),
    Measure("dead", "dead", "No class mean differs from zero.", "flag"),
    Measure(
        "negative_class_mean",
        "class mean below zero",
        "Some class mean is below zero, where the index is not simply a share.",
        "flag",
    ),
    Measure("gradient_dead", "zero gradient", "The gradient is zero for every image.", "flag"),
)

UNIT_MEASURES = {one.name: one for one in _KNOWN}

# Per layer, in the order in which a reader wants them, with the range that a bar stands for.
PARTICIPATION_RATIOS = (
    "participation_ratio_corrected_fraction",
    "participation_ratio_unbiased_fraction",
    "participation_ratio_fraction",
)
LAYER_COLUMNS = {
    "selectivity_split_half_mean": Measure(
        "selectivity_split_half_mean", "split-half selectivity", kind="share"
    ),
    **{
        name: Measure(
            name,
            "dimensions used",
            "Participation ratio of the units' covariance (corrected for the number of samples) over "
            "the number of units.",
            "share",
        )
        for name in PARTICIPATION_RATIOS[:2]
    },
    "participation_ratio_fraction": Measure(
        "participation_ratio_fraction",
        "dimensions used, plain",
        "Participation ratio of the units' covariance over the number of units.",
        "share",
    ),
    "gradient_norm_cv_mean": Measure(
        "gradient_norm_cv_mean",
        "gradient CV",
        "Mean over units of the CV, over images, of the gradient's norm.",
    ),
    "corruption_change_relative_mean": Measure(
        "corruption_change_relative_mean",
        "sensitivity to corruption",
        "Mean over units of |clean − corrupted| over the mean activation.",
    ),
    "lifetime_sparsity_mean": Measure("lifetime_sparsity_mean", "lifetime sparsity", kind="share"),
}


def measure_of(name: str, kind: Kind = "number") -> Measure:
    """The measure of that name, with a plain label where the name is not known.

    >>> measure_of("my_own_metric").label
    'my own metric'
    """
    return UNIT_MEASURES.get(name) or Measure(name, name.replace("_", " "), "", kind)


def number(value: Any, digits: int = 3) -> str:
    """A number as a page shows it.

    >>> number(0.23456), number(1234.5), number(1e-7), number(1.5e9)
    ('0.235', '1,234', '1.00e-07', '1.50e+09')
    """
    value = float(value)
    if not np.isfinite(value):
        return UNKNOWN if np.isnan(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"
    else:
        text = f"{value:.2e}"
    return text.replace("-", "\N{MINUS SIGN}") if "e" not in text else text

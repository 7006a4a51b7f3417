"""Figures of results: xarray in, matplotlib axes in and out.

Every function takes what `analyze`, `robustness`, `train` or `sweep` gave, draws on `ax` (None makes
a figure) and returns the axes; nothing is ever shown or saved, and matplotlib's settings stay as
they are. A variable is plotted by its name, those of your own metrics too. Layers stand in the order
in which they run.

Units and layers:

- `unit_distribution(result, variable="selectivity")`: of all units by layer, as violins or ridges
- `layer_profile(result, variable="selectivity")`: a number of each layer, with its interval
- `unit_scatter(result, x="selectivity", y="gradient_norm_cv")`: two numbers of every unit
- `unit_tuning(result, layer, channel)`: the class means of one unit, sorted
- `class_means(result, layer)`: heat map of units by classes
- `eigenspectrum(result)`: eigenvalues of each layer's covariance, participation ratio marked
- `gradient_cv(result)`: variability of the input-unit gradient by layer

Robustness and training:

- `corruption_accuracy(result)`: accuracy by type and severity
- `attack_accuracy(result, over="epsilon")`: accuracy under attack, over epsilon or steps
- `training_curves(run)`: what the log of a run says of each epoch
- `alpha_curve(sweep, variable="test_accuracy")`: a number over alpha
- `alpha_trade_off(sweep, x="selectivity_mean", y="test_accuracy")`: two numbers, coloured by alpha
- `alpha_profile(sweep, variable="selectivity")`: a number by layer, a line for each alpha

Comparison: in the place of a result each takes `{name: result}`, or `{name: [result, ...]}` with a
list of replicates (seeds), whose mean is drawn with a bootstrapped 95% interval. Names that are
numbers are values of alpha and get their colours: `attack_accuracy({-1.0: one, 0.0: two})`.

Colours are safe for colour-blind readers: Okabe and Ito's for what has no order, viridis for depth and
quantities, and for alpha one diverging map, `alpha_map()`: blue below zero, black at zero, orange above.
`palette(number)` gives the colours, and `style()` the settings that figures are drawn with, for panels
of your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit.plot.alpha import alpha_curve as alpha_curve
    from probekit.plot.alpha import alpha_profile as alpha_profile
    from probekit.plot.alpha import alpha_trade_off as alpha_trade_off
    from probekit.plot.attacks import attack_accuracy as attack_accuracy
    from probekit.plot.canvas import style as style
    from probekit.plot.classes import class_means as class_means
    from probekit.plot.classes import unit_tuning as unit_tuning
    from probekit.plot.colours import alpha_map as alpha_map
    from probekit.plot.colours import palette as palette
    from probekit.plot.corruptions import corruption_accuracy as corruption_accuracy
    from probekit.plot.distributions import unit_distribution as unit_distribution
    from probekit.plot.profiles import gradient_cv as gradient_cv
    from probekit.plot.profiles import layer_profile as layer_profile
    from probekit.plot.scatter import unit_scatter as unit_scatter
    from probekit.plot.spectra import eigenspectrum as eigenspectrum
    from probekit.plot.training import training_curves as training_curves

_HOMES = {
    "alpha_curve": "alpha",
    "alpha_map": "colours",
    "alpha_profile": "alpha",
    "alpha_trade_off": "alpha",
    "attack_accuracy": "attacks",
    "class_means": "classes",
    "corruption_accuracy": "corruptions",
    "eigenspectrum": "spectra",
    "gradient_cv": "profiles",
    "layer_profile": "profiles",
    "palette": "colours",
    "style": "canvas",
    "training_curves": "training",
    "unit_distribution": "distributions",
    "unit_scatter": "scatter",
    "unit_tuning": "classes",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"probekit.plot.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'probekit.plot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

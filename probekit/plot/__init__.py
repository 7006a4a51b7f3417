"""Plotting functions: xarray results as input, matplotlib axes as output.

Every function takes a result of `analyze`, `robustness`, `train` or `sweep`, draws on `ax` (None
creates a figure) and returns the axes. Figures are not shown or saved, and matplotlib's settings are
not changed. Variables are plotted by name, including those of your own metrics. Layers are shown in
execution order.

Units and layers:

- `unit_distribution(result, variable="selectivity")`: distribution over units by layer, as violins or
  ridges
- `layer_profile(result, variable="selectivity")`: one value per layer, with its interval
- `unit_scatter(result, x="selectivity", y="gradient_norm_cv")`: two variables of every unit
- `unit_tuning(result, layer, channel)`: the class means of one unit, sorted
- `class_means(result, layer)`: heat map of units by classes
- `eigenspectrum(result)`: eigenvalues of each layer's covariance, with the participation ratio
- `gradient_cv(result)`: variability of the input-unit gradient by layer

Several models:

- `model_profile(survey, variable="selectivity_mean")`: a layer variable over depth, one line per model
- `model_scatter(survey, x="accuracy", y="selectivity_mean")`: two numbers of every model
- `layer_similarity(cka)`: heat map of the similarity of layers

Robustness and training:

- `corruption_accuracy(result)`: accuracy by type and severity
- `attack_accuracy(result, over="epsilon")`: accuracy under attack, over epsilon or steps
- `training_curves(run)`: logged variables of a run over epochs
- `alpha_curve(sweep, variable="test_accuracy")`: a variable over alpha
- `alpha_trade_off(sweep, x="selectivity_mean", y="test_accuracy")`: two variables, colored by alpha
- `alpha_profile(sweep, variable="selectivity")`: a variable by layer, one line per alpha

To compare results, pass `{name: result}` instead of a result. `{name: [result, ...]}` contains a list
of replicates (seeds), which are drawn as their mean with a bootstrapped 95% interval. Names that are
numbers are treated as values of alpha and colored accordingly:
`attack_accuracy({-1.0: one, 0.0: two})`.

Colors are safe for color-blind readers: the Okabe-Ito palette for unordered categories, viridis for
depth and quantities, and a diverging map for alpha, `alpha_map()`: blue below zero, black at zero,
orange above. For your own panels, `palette(number)` returns the colors and `style()` the matplotlib
settings of the figures.
"""

from typing import Any

import lazy_loader

from probekit.errors import optional

_getattr, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with optional("matplotlib", "pk.plot"):
        return _getattr(name)

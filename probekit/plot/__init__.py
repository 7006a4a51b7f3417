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

from typing import Any

import lazy_loader

from probekit.extras import optional

_getattr, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with optional("matplotlib", "pk.plot"):
        return _getattr(name)

from .canvas import style as style
from .classes import class_means as class_means
from .classes import unit_tuning as unit_tuning
from .colors import alpha_map as alpha_map
from .colors import palette as palette
from .layers import eigenspectrum as eigenspectrum
from .layers import gradient_cv as gradient_cv
from .layers import layer_profile as layer_profile
from .models import layer_similarity as layer_similarity
from .models import model_profile as model_profile
from .models import model_scatter as model_scatter
from .robustness import attack_accuracy as attack_accuracy
from .robustness import corruption_accuracy as corruption_accuracy
from .training import alpha_curve as alpha_curve
from .training import alpha_profile as alpha_profile
from .training import alpha_trade_off as alpha_trade_off
from .training import training_curves as training_curves
from .units import unit_distribution as unit_distribution
from .units import unit_scatter as unit_scatter

__all__ = [
    "alpha_curve",
    "alpha_map",
    "alpha_profile",
    "alpha_trade_off",
    "attack_accuracy",
    "class_means",
    "corruption_accuracy",
    "eigenspectrum",
    "gradient_cv",
    "layer_profile",
    "layer_similarity",
    "model_profile",
    "model_scatter",
    "palette",
    "style",
    "training_curves",
    "unit_distribution",
    "unit_scatter",
    "unit_tuning",
]

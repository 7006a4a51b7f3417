"""Understand trained vision networks, unit by unit.

Everything public is here: `import probekit as pk`. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probekit._version import __version__

if TYPE_CHECKING:
    from probekit import plot as plot
    from probekit.ablation import ablate as ablate
    from probekit.analysis import analyze as analyze
    from probekit.capture.jacobian import jacobian_norm as jacobian_norm
    from probekit.capture.plan import plan as plan
    from probekit.capture.recorder import Recorder as Recorder
    from probekit.capture.recording import record as record
    from probekit.capture.saliency import unit_saliency as unit_saliency
    from probekit.capture.store import open_recording as open_recording
    from probekit.data.datasets import list_data as list_data
    from probekit.data.datasets import load_data as load_data
    from probekit.data.lookup import images_at as images_at
    from probekit.errors import ProbekitError as ProbekitError
    from probekit.errors import ProbekitWarning as ProbekitWarning
    from probekit.inference import adjust_p_values as adjust_p_values
    from probekit.inference import bootstrap_interval as bootstrap_interval
    from probekit.inference import compare_means as compare_means
    from probekit.inference import rank_trend as rank_trend
    from probekit.metrics.basis_pwcca import pwcca_distance as pwcca_distance
    from probekit.metrics.basis_pwcca import pwcca_ratio as pwcca_ratio
    from probekit.metrics.basis_selectivity import (
        linear_basis_selectivity as linear_basis_selectivity,
    )
    from probekit.metrics.chance import SelectivityChance as SelectivityChance
    from probekit.metrics.dimensionality import (
        Dimensionality as Dimensionality,
    )
    from probekit.metrics.dimensionality import (
        participation_ratio as participation_ratio,
    )
    from probekit.metrics.dimensionality import (
        participation_ratio_unbiased as participation_ratio_unbiased,
    )
    from probekit.metrics.functions import (
        layer_metric as layer_metric,
    )
    from probekit.metrics.functions import (
        unit_metric as unit_metric,
    )
    from probekit.metrics.gradient_variability import GradientVariability as GradientVariability
    from probekit.metrics.interval import SelectivityInterval as SelectivityInterval
    from probekit.metrics.registry import (
        list_metrics as list_metrics,
    )
    from probekit.metrics.selectivity import (
        Selectivity as Selectivity,
    )
    from probekit.metrics.selectivity import (
        class_selectivity as class_selectivity,
    )
    from probekit.metrics.split_half import SplitHalf as SplitHalf
    from probekit.metrics.top_images import TopImages as TopImages
    from probekit.models.image_model import ImageModel as ImageModel
    from probekit.models.loading import list_models as list_models
    from probekit.models.loading import load_model as load_model
    from probekit.report.dossier import dossier as dossier
    from probekit.report.html import report as report
    from probekit.report.saving import save_figure as save_figure
    from probekit.report.saving import save_tables as save_tables
    from probekit.results import open_result as open_result
    from probekit.results import save_result as save_result
    from probekit.robustness.attacks import FGSM as FGSM
    from probekit.robustness.attacks import PGD as PGD
    from probekit.robustness.attacks import AutoAttack as AutoAttack
    from probekit.robustness.corruptions import Corruption as Corruption
    from probekit.robustness.corruptions import corrupt as corrupt
    from probekit.robustness.evaluate import robustness as robustness
    from probekit.robustness.published import load_published as load_published
    from probekit.statistics.base import Statistic as Statistic
    from probekit.statistics.class_means import ClassMeans as ClassMeans
    from probekit.statistics.covariance import Covariance as Covariance
    from probekit.statistics.feeding import feed as feed
    from probekit.statistics.recorded import Recorded as Recorded
    from probekit.statistics.testing import check_statistic as check_statistic
    from probekit.statistics.top_samples import TopSamples as TopSamples
    from probekit.training.collected import measure_runs as measure_runs
    from probekit.training.collected import run_outcomes as run_outcomes
    from probekit.training.collected import training_history as training_history
    from probekit.training.recipes import Recipe as Recipe
    from probekit.training.recipes import list_recipes as list_recipes
    from probekit.training.regularizer import SelectivityRegularizer as SelectivityRegularizer
    from probekit.training.schedules import AlphaSchedule as AlphaSchedule
    from probekit.training.studies import Study as Study
    from probekit.training.studies import get_study as get_study
    from probekit.training.studies import study_parser as study_parser
    from probekit.training.sweep import sweep as sweep
    from probekit.training.trainer import train as train

_HOMES = {
    "AlphaSchedule": "training.schedules",
    "AutoAttack": "robustness.attacks",
    "ClassMeans": "statistics.class_means",
    "Corruption": "robustness.corruptions",
    "Covariance": "statistics.covariance",
    "Dimensionality": "metrics.dimensionality",
    "FGSM": "robustness.attacks",
    "GradientVariability": "metrics.gradient_variability",
    "ImageModel": "models.image_model",
    "PGD": "robustness.attacks",
    "ProbekitError": "errors",
    "ProbekitWarning": "errors",
    "Recipe": "training.recipes",
    "Recorded": "statistics.recorded",
    "Recorder": "capture.recorder",
    "Selectivity": "metrics.selectivity",
    "SelectivityChance": "metrics.chance",
    "SelectivityInterval": "metrics.interval",
    "SelectivityRegularizer": "training.regularizer",
    "SplitHalf": "metrics.split_half",
    "Statistic": "statistics.base",
    "Study": "training.studies",
    "TopImages": "metrics.top_images",
    "TopSamples": "statistics.top_samples",
    "ablate": "ablation",
    "adjust_p_values": "inference",
    "analyze": "analysis",
    "bootstrap_interval": "inference",
    "check_statistic": "statistics.testing",
    "class_selectivity": "metrics.selectivity",
    "compare_means": "inference",
    "corrupt": "robustness.corruptions",
    "dossier": "report.dossier",
    "feed": "statistics.feeding",
    "get_study": "training.studies",
    "images_at": "data.lookup",
    "jacobian_norm": "capture.jacobian",
    "layer_metric": "metrics.functions",
    "linear_basis_selectivity": "metrics.basis_selectivity",
    "list_data": "data.datasets",
    "list_metrics": "metrics.registry",
    "list_models": "models.loading",
    "list_recipes": "training.recipes",
    "load_data": "data.datasets",
    "load_model": "models.loading",
    "load_published": "robustness.published",
    "measure_runs": "training.collected",
    "open_recording": "capture.store",
    "open_result": "results",
    "participation_ratio": "metrics.dimensionality",
    "participation_ratio_unbiased": "metrics.dimensionality",
    "plan": "capture.plan",
    "pwcca_distance": "metrics.basis_pwcca",
    "pwcca_ratio": "metrics.basis_pwcca",
    "rank_trend": "inference",
    "record": "capture.recording",
    "report": "report.html",
    "robustness": "robustness.evaluate",
    "run_outcomes": "training.collected",
    "save_figure": "report.saving",
    "save_result": "results",
    "save_tables": "report.saving",
    "study_parser": "training.studies",
    "sweep": "training.sweep",
    "train": "training.trainer",
    "training_history": "training.collected",
    "unit_metric": "metrics.functions",
    "unit_saliency": "capture.saliency",
}

__all__ = ["__version__", "plot", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "plot":
        return import_module("probekit.plot")
    if name in _HOMES:
        return getattr(import_module(f"probekit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'probekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

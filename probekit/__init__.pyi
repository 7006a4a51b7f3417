from . import plot as plot
from ._version import __version__ as __version__
from .analysis.ablate import ablate as ablate
from .analysis.analyze import analyze as analyze
from .analysis.cka import cka as cka
from .analysis.compare import compare as compare
from .analysis.jacobian import jacobian_norm as jacobian_norm
from .analysis.merge import merge_results as merge_results
from .analysis.robustness.robustness import robustness as robustness
from .analysis.saliency import unit_saliency as unit_saliency
from .analysis.survey import survey as survey
from .capture.plan import plan as plan
from .capture.record import record as record
from .capture.recorder import Recorder as Recorder
from .capture.store import open_recording as open_recording
from .data.datasets import list_data as list_data
from .data.datasets import load_data as load_data
from .data.lookup import images_at as images_at
from .errors import ProbekitError as ProbekitError
from .errors import ProbekitWarning as ProbekitWarning
from .metrics.dimensionality import Dimensionality as Dimensionality
from .metrics.dimensionality import participation_ratio as participation_ratio
from .metrics.dimensionality import participation_ratio_corrected as participation_ratio_corrected
from .metrics.dimensionality import participation_ratio_unbiased as participation_ratio_unbiased
from .metrics.gradient_variability import GradientVariability as GradientVariability
from .metrics.metric import Metric as Metric
from .metrics.metric import layer_metric as layer_metric
from .metrics.metric import list_metrics as list_metrics
from .metrics.metric import unit_metric as unit_metric
from .metrics.pwcca import pwcca_distance as pwcca_distance
from .metrics.pwcca import pwcca_ratio as pwcca_ratio
from .metrics.selectivity.added_constants import add_constants as add_constants
from .metrics.selectivity.chance import SelectivityChance as SelectivityChance
from .metrics.selectivity.interval import SelectivityInterval as SelectivityInterval
from .metrics.selectivity.linear_basis import linear_basis_selectivity as linear_basis_selectivity
from .metrics.selectivity.selectivity import Selectivity as Selectivity
from .metrics.selectivity.selectivity import SelectivityPerElement as SelectivityPerElement
from .metrics.selectivity.selectivity import class_selectivity as class_selectivity
from .metrics.selectivity.selectivity import selectivity_offset_free as selectivity_offset_free
from .metrics.selectivity.split_half import SplitHalf as SplitHalf
from .metrics.unit_metrics import TopImages as TopImages
from .metrics.unit_metrics import eta_squared as eta_squared
from .metrics.unit_metrics import preferred_class_auc as preferred_class_auc
from .models.image_model import ImageModel as ImageModel
from .models.loading import load_model as load_model
from .models.names import list_models as list_models
from .perturbations.attacks.auto_attack import AutoAttack as AutoAttack
from .perturbations.attacks.gradient import FGSM as FGSM
from .perturbations.attacks.gradient import PGD as PGD
from .perturbations.corruptions.corruption import Corruption as Corruption
from .perturbations.corruptions.corruption import corrupt as corrupt
from .perturbations.corruptions.published import load_published as load_published
from .replicates.comparisons import adjust_p_values as adjust_p_values
from .replicates.comparisons import compare_means as compare_means
from .replicates.comparisons import equivalence as equivalence
from .replicates.intervals import bootstrap_interval as bootstrap_interval
from .replicates.intervals import mean_interval as mean_interval
from .replicates.trends import page_trend as page_trend
from .replicates.trends import rank_trend as rank_trend
from .replicates.verdicts import Claim as Claim
from .replicates.verdicts import verdicts as verdicts
from .reports.dossier import dossier as dossier
from .reports.page.page import report as report
from .reports.saving import save_figure as save_figure
from .reports.saving import save_tables as save_tables
from .results.tables import layers_table as layers_table
from .results.tables import to_rsatoolbox as to_rsatoolbox
from .results.tables import units_table as units_table
from .results.trees import open_result as open_result
from .results.trees import save_result as save_result
from .statistics.base import Statistic as Statistic
from .statistics.class_means import ClassMeans as ClassMeans
from .statistics.covariance import Covariance as Covariance
from .statistics.feeding import feed as feed
from .statistics.recorded import Recorded as Recorded
from .statistics.testing import check_statistic as check_statistic
from .statistics.top_samples import TopSamples as TopSamples
from .training.regularizer.regularizer import SelectivityRegularizer as SelectivityRegularizer
from .training.regularizer.schedule import AlphaSchedule as AlphaSchedule
from .training.run.callbacks import Callback as Callback
from .training.run.callbacks import MLflow as MLflow
from .training.run.callbacks import TensorBoard as TensorBoard
from .training.run.callbacks import WeightsAndBiases as WeightsAndBiases
from .training.run.recipes import Recipe as Recipe
from .training.run.recipes import list_recipes as list_recipes
from .training.run.train import train as train
from .training.sweep.compare import measure_runs as measure_runs
from .training.sweep.compare import run_outcomes as run_outcomes
from .training.sweep.compare import training_history as training_history
from .training.sweep.sweep import sweep as sweep

__all__ = [
    "FGSM",
    "PGD",
    "AlphaSchedule",
    "AutoAttack",
    "Callback",
    "Claim",
    "ClassMeans",
    "Corruption",
    "Covariance",
    "Dimensionality",
    "GradientVariability",
    "ImageModel",
    "MLflow",
    "Metric",
    "ProbekitError",
    "ProbekitWarning",
    "Recipe",
    "Recorded",
    "Recorder",
    "Selectivity",
    "SelectivityChance",
    "SelectivityInterval",
    "SelectivityPerElement",
    "SelectivityRegularizer",
    "SplitHalf",
    "Statistic",
    "TensorBoard",
    "TopImages",
    "TopSamples",
    "WeightsAndBiases",
    "__version__",
    "ablate",
    "add_constants",
    "adjust_p_values",
    "analyze",
    "bootstrap_interval",
    "check_statistic",
    "cka",
    "class_selectivity",
    "compare",
    "compare_means",
    "corrupt",
    "dossier",
    "equivalence",
    "eta_squared",
    "feed",
    "images_at",
    "jacobian_norm",
    "layer_metric",
    "layers_table",
    "linear_basis_selectivity",
    "list_data",
    "list_metrics",
    "list_models",
    "list_recipes",
    "load_data",
    "load_model",
    "load_published",
    "mean_interval",
    "measure_runs",
    "merge_results",
    "open_recording",
    "open_result",
    "page_trend",
    "participation_ratio",
    "participation_ratio_corrected",
    "participation_ratio_unbiased",
    "plan",
    "plot",
    "preferred_class_auc",
    "pwcca_distance",
    "pwcca_ratio",
    "rank_trend",
    "record",
    "report",
    "robustness",
    "run_outcomes",
    "save_figure",
    "save_result",
    "save_tables",
    "selectivity_offset_free",
    "survey",
    "sweep",
    "to_rsatoolbox",
    "train",
    "training_history",
    "unit_metric",
    "unit_saliency",
    "units_table",
    "verdicts",
]

"""Whole jobs: labels found and corrected, networks compared, uncertainty chosen, runs written."""

from afterfit.workflows.audit_run import run_audit
from afterfit.workflows.calibrate import Calibration, calibrate
from afterfit.workflows.compare import Comparison, compare, generalization_gap
from afterfit.workflows.decisions import Applied, apply_decisions
from afterfit.workflows.explain import explain_prediction
from afterfit.workflows.influence_run import Explanation, run_influence
from afterfit.workflows.label_actions import corrected_labels, prune, prune_easy, relabel
from afterfit.workflows.label_run import run_labels
from afterfit.workflows.labels import LabelAnalysis, analyze_labels, find_label_issues
from afterfit.workflows.linearity import Linearity, linearity
from afterfit.workflows.predictors import (
    Candidate,
    LinearizedLaplace,
    MonteCarloDropout,
    Predictor,
    WalkedEnsemble,
    temperature_scaling,
    trained_network,
)
from afterfit.workflows.removal import brittleness, removal_curve, select, unlearning_check
from afterfit.workflows.retraining import load_retrainings, retrain_on, save_retrainings
from afterfit.workflows.run import Run
from afterfit.workflows.sharpness_run import SharpnessFindings, run_sharpness
from afterfit.workflows.suggest import soft_targets
from afterfit.workflows.trained import Trained
from afterfit.workflows.uncertainty_run import run_uncertainty
from afterfit.workflows.verify import verify

__all__ = [
    "Applied",
    "Calibration",
    "Candidate",
    "Comparison",
    "Explanation",
    "LabelAnalysis",
    "Linearity",
    "LinearizedLaplace",
    "MonteCarloDropout",
    "Predictor",
    "Run",
    "SharpnessFindings",
    "Trained",
    "WalkedEnsemble",
    "analyze_labels",
    "apply_decisions",
    "brittleness",
    "calibrate",
    "compare",
    "corrected_labels",
    "explain_prediction",
    "find_label_issues",
    "generalization_gap",
    "linearity",
    "load_retrainings",
    "prune",
    "prune_easy",
    "relabel",
    "removal_curve",
    "retrain_on",
    "run_audit",
    "run_influence",
    "run_labels",
    "run_sharpness",
    "run_uncertainty",
    "save_retrainings",
    "select",
    "soft_targets",
    "temperature_scaling",
    "trained_network",
    "unlearning_check",
    "verify",
]

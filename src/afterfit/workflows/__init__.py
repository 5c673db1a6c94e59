"""Whole jobs: correct wrong labels, compare trained networks, predict with uncertainty."""

from afterfit.workflows.calibrate import Calibration, calibrate
from afterfit.workflows.compare import Comparison, compare, generalization_gap
from afterfit.workflows.label_run import LabelRun, run_labels
from afterfit.workflows.labels import (
    LabelAnalysis,
    analyze_labels,
    corrected_labels,
    find_label_issues,
    prune,
    prune_easy,
    relabel,
)
from afterfit.workflows.predictors import (
    Candidate,
    LinearizedLaplace,
    MonteCarloDropout,
    Predictor,
    WalkedEnsemble,
    temperature_scaling,
    trained_network,
)
from afterfit.workflows.suggest import soft_targets
from afterfit.workflows.trained import Trained
from afterfit.workflows.verify import verify

__all__ = [
    "Calibration",
    "Candidate",
    "Comparison",
    "LabelAnalysis",
    "LabelRun",
    "LinearizedLaplace",
    "MonteCarloDropout",
    "Predictor",
    "Trained",
    "WalkedEnsemble",
    "analyze_labels",
    "calibrate",
    "compare",
    "corrected_labels",
    "find_label_issues",
    "generalization_gap",
    "prune",
    "prune_easy",
    "relabel",
    "run_labels",
    "soft_targets",
    "temperature_scaling",
    "trained_network",
    "verify",
]

"""Whole jobs: find, explain and correct wrong labels; compare trained networks."""

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
from afterfit.workflows.suggest import soft_targets
from afterfit.workflows.trained import Trained
from afterfit.workflows.verify import verify

__all__ = [
    "Comparison",
    "LabelAnalysis",
    "LabelRun",
    "Trained",
    "analyze_labels",
    "compare",
    "corrected_labels",
    "find_label_issues",
    "generalization_gap",
    "prune",
    "prune_easy",
    "relabel",
    "run_labels",
    "soft_targets",
    "verify",
]

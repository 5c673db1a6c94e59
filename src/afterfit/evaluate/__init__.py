"""Numbers that say how good scores are: tensors in, numbers out."""

from afterfit.evaluate.attribution import (
    auc,
    average_precision,
    bootstrap,
    bootstrap_interval,
    inspection_curve,
    precision_at,
    recall_at,
)
from afterfit.evaluate.separation import (
    Dip,
    Mixture,
    Otsu,
    dip,
    otsu,
    two_component_mixture,
)
from afterfit.evaluate.threshold import (
    Cut,
    budget_cut,
    expected_false_discovery_cut,
    otsu_cut,
)

__all__ = [
    "Cut",
    "Dip",
    "Mixture",
    "Otsu",
    "auc",
    "average_precision",
    "bootstrap",
    "bootstrap_interval",
    "budget_cut",
    "dip",
    "expected_false_discovery_cut",
    "inspection_curve",
    "otsu",
    "otsu_cut",
    "precision_at",
    "recall_at",
    "two_component_mixture",
]

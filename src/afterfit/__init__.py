"""Post-hoc analysis of trained networks: which labels are wrong, and what each sample does.

One sign for the whole library: a score above 0 means that taking the training sample away would
raise the loss. Losses are per sample, in nats.
"""

from afterfit.evaluate import budget_cut, expected_false_discovery_cut, otsu_cut
from afterfit.influence import (
    GEX,
    LossCovariance,
    covariance,
    level,
    mean_move,
    published,
    secant,
    second_moment,
    to_stderr,
)
from afterfit.problem import (
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    PerSample,
    Poisson,
    Problem,
    TrainingStream,
    linearize,
    restrict,
)
from afterfit.sampling import GeometricEnsemble
from afterfit.workflows import (
    Trained,
    analyze_labels,
    corrected_labels,
    find_label_issues,
    prune,
    relabel,
    run_labels,
    verify,
)

__version__ = "0.1.0"

__all__ = [
    "GEX",
    "Batches",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "GeometricEnsemble",
    "LossCovariance",
    "PerSample",
    "Poisson",
    "Problem",
    "Trained",
    "TrainingStream",
    "analyze_labels",
    "budget_cut",
    "corrected_labels",
    "covariance",
    "expected_false_discovery_cut",
    "find_label_issues",
    "level",
    "linearize",
    "mean_move",
    "otsu_cut",
    "prune",
    "published",
    "relabel",
    "restrict",
    "run_labels",
    "secant",
    "second_moment",
    "to_stderr",
    "verify",
]

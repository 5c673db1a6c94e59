"""Post-hoc analysis of trained networks: wrong labels, sharpness, uncertainty, harmful edges.

One sign for the whole library: a score above 0 means that taking the training sample away would
raise the loss. Losses are per sample, in nats.
"""

from afterfit.curvature import ekfac, ggn, kfac
from afterfit.influence import (
    GEX,
    TrainingTrace,
    Unlearning,
)
from afterfit.posterior import laplace, predict
from afterfit.problem import (
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    PerSample,
    Poisson,
    Problem,
    TrainingStream,
    connectivity,
    linearize,
    restrict,
    with_positions,
)
from afterfit.sampling import GeometricEnsemble
from afterfit.sharpness import audit, connectivity_sharpness, pac_bayes_bound
from afterfit.workflows import (
    Trained,
    analyze_labels,
    calibrate,
    compare,
    corrected_labels,
    find_label_issues,
    prune,
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
    "PerSample",
    "Poisson",
    "Problem",
    "Trained",
    "TrainingStream",
    "TrainingTrace",
    "Unlearning",
    "analyze_labels",
    "audit",
    "calibrate",
    "compare",
    "connectivity",
    "connectivity_sharpness",
    "corrected_labels",
    "ekfac",
    "find_label_issues",
    "ggn",
    "kfac",
    "laplace",
    "linearize",
    "pac_bayes_bound",
    "predict",
    "prune",
    "restrict",
    "verify",
    "with_positions",
]

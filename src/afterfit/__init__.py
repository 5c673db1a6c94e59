"""Post-hoc analysis of trained networks: wrong labels, sharpness, uncertainty, harmful edges.

One sign for the whole library: a score above 0 means that taking the training sample away would
raise the loss. Losses are per sample, in nats.
"""

from afterfit.curvature import diagonal, ekfac, ggn, kfac
from afterfit.evaluate import budget_cut, otsu_cut
from afterfit.influence import (
    GEX,
    LossCovariance,
    TrainingTrace,
    Unlearning,
    covariance,
    level,
    mean_move,
    published,
    secant,
    second_moment,
)
from afterfit.posterior import Predictive, laplace, predict
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
    "Predictive",
    "Problem",
    "Trained",
    "TrainingStream",
    "TrainingTrace",
    "Unlearning",
    "analyze_labels",
    "audit",
    "budget_cut",
    "calibrate",
    "compare",
    "connectivity",
    "connectivity_sharpness",
    "corrected_labels",
    "covariance",
    "diagonal",
    "ekfac",
    "find_label_issues",
    "ggn",
    "kfac",
    "laplace",
    "level",
    "linearize",
    "mean_move",
    "otsu_cut",
    "pac_bayes_bound",
    "predict",
    "prune",
    "published",
    "relabel",
    "restrict",
    "run_labels",
    "secant",
    "second_moment",
    "verify",
    "with_positions",
]

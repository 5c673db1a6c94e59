"""How sure: Gaussian posteriors around a trained network, and what they predict."""

from afterfit.curvature.lowrank import low_rank
from afterfit.posterior.dropout import dropout_outputs, has_dropout
from afterfit.posterior.evidence import (
    ScaleSearch,
    by_evidence,
    by_group_evidence,
    by_validation,
    log_evidence,
    noise_by_evidence,
)
from afterfit.posterior.gaussian import GaussianPosterior, antithetic, with_ridge_mean
from afterfit.posterior.laplace import laplace
from afterfit.posterior.link import LaplaceBridge, Link, Moments, MonteCarlo, Probit
from afterfit.posterior.predict import (
    Predictive,
    point_prediction,
    predict,
    predict_at,
    predict_by_members,
    predict_by_outputs,
)
from afterfit.posterior.rto import (
    ConjugateGradients,
    Descent,
    LeastSquares,
    Randomized,
    full_noise,
    one_hot_noise,
    randomize_then_optimize,
)

__all__ = [
    "ConjugateGradients",
    "Descent",
    "GaussianPosterior",
    "LaplaceBridge",
    "LeastSquares",
    "Link",
    "Moments",
    "MonteCarlo",
    "Predictive",
    "Probit",
    "Randomized",
    "ScaleSearch",
    "antithetic",
    "by_evidence",
    "by_group_evidence",
    "by_validation",
    "dropout_outputs",
    "full_noise",
    "has_dropout",
    "laplace",
    "log_evidence",
    "low_rank",
    "noise_by_evidence",
    "one_hot_noise",
    "point_prediction",
    "predict",
    "predict_at",
    "predict_by_members",
    "predict_by_outputs",
    "randomize_then_optimize",
    "with_ridge_mean",
]

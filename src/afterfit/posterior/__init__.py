"""How sure: Gaussian posteriors around a trained network, and what they predict."""

from afterfit.posterior.evidence import (
    ScaleSearch,
    by_evidence,
    by_group_evidence,
    by_validation,
    log_evidence,
    noise_by_evidence,
)
from afterfit.posterior.gaussian import GaussianPosterior
from afterfit.posterior.laplace import Curvature, laplace
from afterfit.posterior.link import LaplaceBridge, Link, Moments, MonteCarlo, Probit
from afterfit.posterior.predict import (
    Predictive,
    point_prediction,
    predict,
    predict_by_members,
    predict_by_outputs,
)

__all__ = [
    "Curvature",
    "GaussianPosterior",
    "LaplaceBridge",
    "Link",
    "Moments",
    "MonteCarlo",
    "Predictive",
    "Probit",
    "ScaleSearch",
    "by_evidence",
    "by_group_evidence",
    "by_validation",
    "laplace",
    "log_evidence",
    "noise_by_evidence",
    "point_prediction",
    "predict",
    "predict_by_members",
    "predict_by_outputs",
]

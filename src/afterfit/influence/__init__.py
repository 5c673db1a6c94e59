"""Influence of samples: by covariance of losses, by gradients, and simple scores beside them."""

from afterfit.influence.covariance import (
    LossTable,
    Scores,
    covariance,
    loss_there,
    product_of_means,
    there_minus_floored_here,
    there_minus_here,
    uncentered_moment,
)
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.gex import GEX, published_gex
from afterfit.influence.loss_covariance import CovarianceInfluence, LossCovariance
from afterfit.influence.table import member_losses, seen_losses, tangents
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning

__all__ = [
    "GEX",
    "CovarianceInfluence",
    "LabelEvidence",
    "LossCovariance",
    "LossTable",
    "Scores",
    "Share",
    "TrainingTrace",
    "Unlearning",
    "covariance",
    "loss_there",
    "member_losses",
    "product_of_means",
    "published_gex",
    "seen_losses",
    "tangents",
    "there_minus_floored_here",
    "there_minus_here",
    "uncentered_moment",
]

"""Influence of samples: by covariance of losses, by gradients, and simple scores beside them."""

from afterfit.influence.covariance import (
    LossTable,
    Scores,
    covariance,
    floored_secant,
    level,
    mean_move,
    secant,
    second_moment,
)
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.gex import GEX, published
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
    "floored_secant",
    "level",
    "mean_move",
    "member_losses",
    "published",
    "secant",
    "second_moment",
    "seen_losses",
    "tangents",
]

"""Influence of samples: by covariance of losses, by gradients, and simple scores beside them."""

from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.classic import InfluenceFunction, SolvedInfluence, WhitenedInfluence
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
from afterfit.influence.ekfac import EKFACInfluence, LayerInfluence
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.gex import GEX, published, quiet, to_stderr
from afterfit.influence.hybrid import HybridInfluence, SmoothedInfluence
from afterfit.influence.loss_covariance import CovarianceInfluence, LossCovariance
from afterfit.influence.table import member_losses, seen_losses, tangents
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning

__all__ = [
    "GEX",
    "ArnoldiInfluence",
    "CovarianceInfluence",
    "EKFACInfluence",
    "HybridInfluence",
    "InfluenceFunction",
    "LabelEvidence",
    "LayerInfluence",
    "LossCovariance",
    "LossTable",
    "Scores",
    "Share",
    "SmoothedInfluence",
    "SolvedInfluence",
    "TrainingTrace",
    "Unlearning",
    "WhitenedInfluence",
    "covariance",
    "floored_secant",
    "level",
    "mean_move",
    "member_losses",
    "published",
    "quiet",
    "secant",
    "second_moment",
    "seen_losses",
    "tangents",
    "to_stderr",
]

"""Influence of samples: by covariance of losses, by gradients, and simple scores beside them."""

from afterfit.influence import simple
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.base import Influence, InfluenceMethod
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
from afterfit.influence.datainf import DataInf
from afterfit.influence.ekfac import EKFACInfluence, LayerInfluence
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.gex import GEX, published, quiet, to_stderr
from afterfit.influence.hybrid import HybridInfluence, SmoothedInfluence
from afterfit.influence.loss_covariance import CovarianceInfluence, LossCovariance
from afterfit.influence.neighbors import NearestNeighborShapley
from afterfit.influence.projected import RandomProjection
from afterfit.influence.relative import RelatIF
from afterfit.influence.representer import RepresenterPoints
from afterfit.influence.stored import StoredInfluence, load_features, store_features
from afterfit.influence.table import member_losses, seen_losses, tangents
from afterfit.influence.tokens import token_scores
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.tracin import GradientCosine, GradientDot, TracIn
from afterfit.influence.trak import TRAK
from afterfit.influence.unlearning import Unlearning

__all__ = [
    "GEX",
    "TRAK",
    "ArnoldiInfluence",
    "CovarianceInfluence",
    "DataInf",
    "EKFACInfluence",
    "GradientCosine",
    "GradientDot",
    "HybridInfluence",
    "Influence",
    "InfluenceFunction",
    "InfluenceMethod",
    "LabelEvidence",
    "LayerInfluence",
    "LossCovariance",
    "LossTable",
    "NearestNeighborShapley",
    "RandomProjection",
    "RelatIF",
    "RepresenterPoints",
    "Scores",
    "Share",
    "SmoothedInfluence",
    "SolvedInfluence",
    "StoredInfluence",
    "TracIn",
    "TrainingTrace",
    "Unlearning",
    "WhitenedInfluence",
    "covariance",
    "floored_secant",
    "level",
    "load_features",
    "mean_move",
    "member_losses",
    "published",
    "quiet",
    "secant",
    "second_moment",
    "seen_losses",
    "simple",
    "store_features",
    "tangents",
    "to_stderr",
    "token_scores",
]

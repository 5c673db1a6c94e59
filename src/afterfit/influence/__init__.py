"""Influence of samples: by covariance of losses, by gradients, and simple scores beside them."""

from afterfit.influence import simple
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.influence.classic import InfluenceFunction, SolvedInfluence, WhitenedInfluence
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
from afterfit.influence.datainf import DataInf
from afterfit.influence.ekfac import EKFACInfluence, LayerInfluence
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.gex import GEX, published_gex
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
    "load_features",
    "loss_there",
    "member_losses",
    "product_of_means",
    "published_gex",
    "seen_losses",
    "simple",
    "store_features",
    "tangents",
    "there_minus_floored_here",
    "there_minus_here",
    "token_scores",
    "uncentered_moment",
]

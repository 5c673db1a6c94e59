"""What was trained: likelihoods, the problem and its coordinate changes, data, ensembles."""

from afterfit.problem.coordinates import Coordinates
from afterfit.problem.data import Batch, Batches, TrainingStream
from afterfit.problem.ensemble import Ensemble, Member, MemberStore, MemoryStore, Sampler, Store
from afterfit.problem.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    PerSample,
    Poisson,
)
from afterfit.problem.persample import gradients, losses, outputs
from afterfit.problem.positions import WithPositions, with_positions
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity, linearize, restrict

__all__ = [
    "Batch",
    "Batches",
    "Bernoulli",
    "Categorical",
    "Coordinates",
    "Ensemble",
    "Gaussian",
    "Likelihood",
    "Member",
    "MemberStore",
    "MemoryStore",
    "PerSample",
    "Poisson",
    "Problem",
    "Sampler",
    "Store",
    "TrainingStream",
    "WithPositions",
    "connectivity",
    "gradients",
    "linearize",
    "losses",
    "outputs",
    "restrict",
    "with_positions",
]

"""Operators, solvers and estimates that know of no network."""

from afterfit.linalg.estimate import Estimate
from afterfit.linalg.krylov import Hessenberg, Krylov, RitzPairs, arnoldi, lanczos, ritz_pairs
from afterfit.linalg.least_squares import lsmr
from afterfit.linalg.operator import Congruence, Kind, LinearOperator, Product, Scaled, Sum
from afterfit.linalg.quadrature import SLQ, estimate_logdet, estimate_spectral_sum
from afterfit.linalg.solvers import Solution
from afterfit.linalg.spectrum import spectrum
from afterfit.linalg.structured import (
    BlockDiagonal,
    Dense,
    Diagonal,
    FunctionOperator,
    Kronecker,
    LowRank,
)
from afterfit.linalg.trace import (
    Hutchinson,
    HutchPlusPlus,
    TraceEstimator,
    XTrace,
    estimate_trace,
    trace,
)

__all__ = [
    "SLQ",
    "BlockDiagonal",
    "Congruence",
    "Dense",
    "Diagonal",
    "Estimate",
    "FunctionOperator",
    "Hessenberg",
    "HutchPlusPlus",
    "Hutchinson",
    "Kind",
    "Kronecker",
    "Krylov",
    "LinearOperator",
    "LowRank",
    "Product",
    "RitzPairs",
    "Scaled",
    "Solution",
    "Sum",
    "TraceEstimator",
    "XTrace",
    "arnoldi",
    "estimate_logdet",
    "estimate_spectral_sum",
    "estimate_trace",
    "lanczos",
    "lsmr",
    "ritz_pairs",
    "spectrum",
    "trace",
]

"""Operators, solvers and estimates that know of no network."""

from afterfit.linalg.estimate import Estimate
from afterfit.linalg.krylov import Krylov, RitzPairs, lanczos, ritz_pairs
from afterfit.linalg.least_squares import lsmr
from afterfit.linalg.operator import Kind, LinearOperator, Product, Scaled, Sum
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
from afterfit.linalg.trace import estimate_trace, trace

__all__ = [
    "BlockDiagonal",
    "Dense",
    "Diagonal",
    "Estimate",
    "FunctionOperator",
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
    "estimate_trace",
    "lanczos",
    "lsmr",
    "ritz_pairs",
    "spectrum",
    "trace",
]

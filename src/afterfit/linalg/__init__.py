"""Operators, solvers and estimates that know of no network."""

from afterfit.linalg.estimate import Estimate
from afterfit.linalg.krylov import Hessenberg, Krylov, RitzPairs, arnoldi, lanczos, ritz_pairs
from afterfit.linalg.least_squares import lsmr
from afterfit.linalg.operator import Kind, LinearOperator, Product, Scaled, Sum
from afterfit.linalg.solvers import (
    CG,
    Cholesky,
    Eigh,
    Neumann,
    Solution,
    Solver,
    Woodbury,
    solve,
)
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
    "CG",
    "BlockDiagonal",
    "Cholesky",
    "Dense",
    "Diagonal",
    "Eigh",
    "Estimate",
    "FunctionOperator",
    "Hessenberg",
    "Kind",
    "Kronecker",
    "Krylov",
    "LinearOperator",
    "LowRank",
    "Neumann",
    "Product",
    "RitzPairs",
    "Scaled",
    "Solution",
    "Solver",
    "Sum",
    "Woodbury",
    "arnoldi",
    "estimate_trace",
    "lanczos",
    "lsmr",
    "ritz_pairs",
    "solve",
    "spectrum",
    "trace",
]

"""Operators, solvers and estimates that know of no network."""

from afterfit.linalg.estimate import Estimate
from afterfit.linalg.operator import Congruence, Kind, LinearOperator, Product, Scaled, Sum
from afterfit.linalg.structured import (
    BlockDiagonal,
    Dense,
    Diagonal,
    FunctionOperator,
    Kronecker,
    LowRank,
)

__all__ = [
    "BlockDiagonal",
    "Congruence",
    "Dense",
    "Diagonal",
    "Estimate",
    "FunctionOperator",
    "Kind",
    "Kronecker",
    "LinearOperator",
    "LowRank",
    "Product",
    "Scaled",
    "Sum",
]

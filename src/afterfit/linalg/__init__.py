"""Operators, solvers and estimates that know of no network."""

from afterfit.linalg.estimate import Estimate

__all__ = ["Estimate"]

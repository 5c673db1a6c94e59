"""Curvature of a trained network: sums over samples, in the coordinates of the problem."""

from afterfit.curvature.diagonal import diagonal, squared_jacobian
from afterfit.curvature.ggn import ggn
from afterfit.curvature.jacobian import jacobian, jacobian_rows, ntk

__all__ = ["diagonal", "ggn", "jacobian", "jacobian_rows", "ntk", "squared_jacobian"]

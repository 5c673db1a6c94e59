"""Curvature of a trained network: sums over samples, in the coordinates of the problem."""

from afterfit.curvature.blocks import EigenBlock, KroneckerBlock, NamedBlock
from afterfit.curvature.diagonal import diagonal, squared_jacobian
from afterfit.curvature.ekfac import ekfac
from afterfit.curvature.factors import expand, reduce
from afterfit.curvature.fisher import empirical_fisher, fisher
from afterfit.curvature.ggn import ggn
from afterfit.curvature.hessian import hessian
from afterfit.curvature.jacobian import jacobian, jacobian_rows, ntk
from afterfit.curvature.kfac import Curvature, kfac
from afterfit.curvature.layer_jacobians import (
    FactoredPart,
    LayerJacobian,
    RowsPart,
    UnusedPart,
    layer_jacobians,
)
from afterfit.curvature.scale import g_prior_scale, grouped_scale, rank_one
from afterfit.curvature.trace import estimate_ggn_trace, estimate_squared_jacobian_trace

__all__ = [
    "Curvature",
    "EigenBlock",
    "FactoredPart",
    "KroneckerBlock",
    "LayerJacobian",
    "NamedBlock",
    "RowsPart",
    "UnusedPart",
    "diagonal",
    "ekfac",
    "empirical_fisher",
    "estimate_ggn_trace",
    "estimate_squared_jacobian_trace",
    "expand",
    "fisher",
    "g_prior_scale",
    "ggn",
    "grouped_scale",
    "hessian",
    "jacobian",
    "jacobian_rows",
    "kfac",
    "layer_jacobians",
    "ntk",
    "rank_one",
    "reduce",
    "squared_jacobian",
]

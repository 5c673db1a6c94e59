"""Curvature of a trained network: sums over samples, in the coordinates of the problem."""

from afterfit.curvature.blocks import EigenBlock, KroneckerBlock, NamedBlock
from afterfit.curvature.diagonal import diagonal, squared_jacobian
from afterfit.curvature.ekfac import ekfac
from afterfit.curvature.factored import Damping, FactoredInverse, Inverse
from afterfit.curvature.factors import expand, reduce
from afterfit.curvature.fisher import empirical_fisher, fisher
from afterfit.curvature.ggn import ggn
from afterfit.curvature.hessian import hessian
from afterfit.curvature.inverse import (
    CG,
    Direct,
    Dual,
    LiSSA,
    Primal,
    Ritz,
    Solver,
    inverse,
    relative,
)
from afterfit.curvature.jacobian import jacobian, jacobian_rows, ntk
from afterfit.curvature.kfac import Curvature, kfac
from afterfit.curvature.layer_jacobians import (
    FactoredPart,
    LayerJacobian,
    RowsPart,
    UnusedPart,
    layer_jacobians,
)
from afterfit.curvature.lowrank import low_rank
from afterfit.curvature.root import Gram, JacobianRoot, Root, jacobian_root, likelihood_root
from afterfit.curvature.scale import g_prior_scale, grouped_scale, rank_one
from afterfit.curvature.trace import estimate_ggn_trace, estimate_squared_jacobian_trace

__all__ = [
    "CG",
    "Curvature",
    "Damping",
    "Direct",
    "Dual",
    "EigenBlock",
    "FactoredInverse",
    "FactoredPart",
    "Gram",
    "Inverse",
    "JacobianRoot",
    "KroneckerBlock",
    "LayerJacobian",
    "LiSSA",
    "NamedBlock",
    "Primal",
    "Ritz",
    "Root",
    "RowsPart",
    "Solver",
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
    "inverse",
    "jacobian",
    "jacobian_root",
    "jacobian_rows",
    "kfac",
    "layer_jacobians",
    "likelihood_root",
    "low_rank",
    "ntk",
    "rank_one",
    "reduce",
    "relative",
    "squared_jacobian",
]

"""How sharp is the minimum, said so that a rescaling of the network cannot change it."""

from afterfit.sharpness.architecture import Architecture, ChangeKind, Freedom, explore
from afterfit.sharpness.audit import MEASURES, Audit, Measure, audit
from afterfit.sharpness.canonical import canonical_scale
from afterfit.sharpness.certificate import (
    Certificate,
    Divergence,
    Scales,
    certified_sharpness,
    kl_inverse,
    mcallester,
    seeger,
)
from afterfit.sharpness.hessian import (
    estimate_hessian_trace,
    estimate_relative_flatness,
    relative_flatness,
)
from afterfit.sharpness.measures import (
    connectivity_curvature,
    connectivity_sharpness,
    estimate_connectivity_curvature,
    estimate_connectivity_sharpness,
    fisher_rao_norm,
    fisher_trace,
    normalized_connectivity_sharpness,
    squared_norm,
    tangent_trace,
)
from afterfit.sharpness.pacbayes import (
    low_rank_pac_bayes_bound,
    pac_bayes_bound,
    require_unseen,
    ridge_mean,
    zero_mean,
)
from afterfit.sharpness.perturbed import (
    adaptive_average_sharpness,
    adaptive_worst_case_sharpness,
    average_sharpness,
    worst_case_sharpness,
)
from afterfit.sharpness.result import Sharpness

__all__ = [
    "MEASURES",
    "Architecture",
    "Audit",
    "Certificate",
    "ChangeKind",
    "Divergence",
    "Freedom",
    "Measure",
    "Scales",
    "Sharpness",
    "adaptive_average_sharpness",
    "adaptive_worst_case_sharpness",
    "audit",
    "average_sharpness",
    "canonical_scale",
    "certified_sharpness",
    "connectivity_curvature",
    "connectivity_sharpness",
    "estimate_connectivity_curvature",
    "estimate_connectivity_sharpness",
    "estimate_hessian_trace",
    "estimate_relative_flatness",
    "explore",
    "fisher_rao_norm",
    "fisher_trace",
    "kl_inverse",
    "low_rank_pac_bayes_bound",
    "mcallester",
    "normalized_connectivity_sharpness",
    "pac_bayes_bound",
    "relative_flatness",
    "require_unseen",
    "ridge_mean",
    "seeger",
    "squared_norm",
    "tangent_trace",
    "worst_case_sharpness",
    "zero_mean",
]

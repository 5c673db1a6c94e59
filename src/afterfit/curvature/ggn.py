"""The generalized Gauss-Newton matrix, by products or from its root."""

from afterfit.curvature.root import Gram, likelihood_root
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


def ggn(problem: Problem, data: Batches) -> Gram:
    """Generalized Gauss-Newton matrix ``Σ_n J_nᵀ Λ_n J_n`` of the summed loss, as an operator.

    Equal to the Fisher matrix for the likelihoods of this library. A product takes one pass over
    the data, in which each batch is run forward once, with its tangent, and backward once; several
    columns share the forward pass. Its ``root`` is ``Rᵀ J`` with ``Λ = R Rᵀ``, of which the entries
    are made: C backward passes for each sample.

    Raises
    ------
    TypeError
        In a product, if the likelihood has no curvature (``PerSample``).

    References
    ----------
    Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent",
    Neural Computation 14(7). Martens (2020), "New insights and perspectives on the natural gradient
    method", JMLR 21(146).
    """
    return Gram(likelihood_root(problem, data))

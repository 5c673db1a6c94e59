"""A curvature by its largest eigenpairs: what the data determine best."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature.ggn import ggn
from afterfit.curvature.kfac import Curvature
from afterfit.curvature.root import jacobian_root
from afterfit.linalg.spectrum import spectrum
from afterfit.linalg.structured import LowRank
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


def low_rank(num: int, seed: int = 0, of: Curvature = ggn) -> Curvature:
    """Make a curvature of the ``num`` largest eigenpairs of another, found by its products.

    A posterior with it is the prior in all other directions, wider than the full one; an influence
    function sees the damping alone there. Memory is that of ``num`` vectors, and of the Lanczos
    vectors while it is made.

    Parameters
    ----------
    seed
        Of the start vector ``Jᵀ ε``. The noise ε belongs to outputs and not to parameters, so that
        the pairs ignore rescalings in connectivity, and the order of units, converged or not.
    of
        The curvature, ``ggn`` or another that is symmetric.
    """

    def curvature(problem: Problem, data: Batches) -> LowRank:
        pairs = spectrum(of(problem, data), num, _start(problem, data, seed))
        positive = pairs.values > 0
        values = pairs.values[positive].to(pairs.vectors)
        return LowRank(pairs.vectors[:, positive], values)

    return curvature


def _start(problem: Problem, data: Batches, seed: int) -> Float[Tensor, " P"]:
    """``Jᵀ ε`` with standard normal noise for every output of every sample."""
    root = jacobian_root(problem, data)
    generator = Generator().manual_seed(seed)
    noise = torch.randn(root.shape[0], generator=generator, dtype=torch.float64)
    return root.pulled(noise[:, None].to(root.device, root.dtype))[:, 0]

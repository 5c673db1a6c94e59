"""A curvature by its largest eigenpairs: what the data determine best."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature import Curvature, ggn
from afterfit.linalg.spectrum import spectrum
from afterfit.linalg.structured import LowRank
from afterfit.posterior.pullback import pulled_back
from afterfit.problem.data import Batch, Batches
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem


def low_rank(num: int, seed: int = 0, of: Curvature = ggn) -> Curvature:
    """Make a curvature of the ``num`` largest eigenpairs of another, found by its products.

    The posterior is the prior in all other directions: wider than the full one, never narrower.
    Memory is that of ``num`` vectors, and of the Lanczos vectors while it is made.

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
    width = outputs(problem, data.subset(torch.tensor([0]))).shape[1]
    generator = Generator().manual_seed(seed)
    noise = torch.randn(data.num_samples, width, generator=generator, dtype=torch.float64)

    def cotangents(found: Float[Tensor, "B C"], batch: Batch) -> Float[Tensor, "1 B C"]:
        return noise[batch.index][None].to(found)

    return pulled_back(problem, data, 1, cotangents)[0]

"""A curvature by its largest eigenpairs: what the data determine best."""

from torch import Generator

from afterfit.curvature import Curvature, ggn
from afterfit.linalg.spectrum import spectrum
from afterfit.linalg.structured import LowRank
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


def low_rank(num: int, seed: int = 0, of: Curvature = ggn) -> Curvature:
    """Make a curvature of the ``num`` largest eigenpairs of another, found by its products.

    The posterior is the prior in all other directions: wider than the full one, never narrower.
    Memory is that of ``num`` vectors, and of the Lanczos vectors while it is made.

    Parameters
    ----------
    seed
        Of the start vector.
    of
        The curvature, ``ggn`` or another that is symmetric.
    """

    def curvature(problem: Problem, data: Batches) -> LowRank:
        pairs = spectrum(of(problem, data), num, Generator().manual_seed(seed))
        positive = pairs.values > 0
        values = pairs.values[positive].to(pairs.vectors)
        return LowRank(pairs.vectors[:, positive], values)

    return curvature

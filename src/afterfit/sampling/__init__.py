"""Members found by walking: the geometric ensemble, exact draws, the user's own checkpoints."""

from afterfit.sampling.geometric import (
    GeometricEnsemble,
    constant,
    cosine,
    reference,
    sgd,
    warm_cosine,
)
from afterfit.sampling.walk import Diverged

__all__ = ["Diverged", "GeometricEnsemble", "constant", "cosine", "reference", "sgd", "warm_cosine"]

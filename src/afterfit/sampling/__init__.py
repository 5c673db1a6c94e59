"""Members found by walking: the geometric ensemble, exact draws, the user's own checkpoints."""

from afterfit.sampling.draws import Checkpoints, GaussianDraws
from afterfit.sampling.forecast import Forecast, forecast
from afterfit.sampling.geometric import (
    GeometricEnsemble,
    adamw,
    constant,
    cosine,
    reference,
    sgd,
    warm_cosine,
)
from afterfit.sampling.heated import HeatedWalk
from afterfit.sampling.langevin import Langevin
from afterfit.sampling.rate_search import RateSearch, Trial, find_learning_rate
from afterfit.sampling.walk import Diverged

__all__ = [
    "Checkpoints",
    "Diverged",
    "Forecast",
    "GaussianDraws",
    "GeometricEnsemble",
    "HeatedWalk",
    "Langevin",
    "RateSearch",
    "Trial",
    "adamw",
    "constant",
    "cosine",
    "find_learning_rate",
    "forecast",
    "reference",
    "sgd",
    "warm_cosine",
]

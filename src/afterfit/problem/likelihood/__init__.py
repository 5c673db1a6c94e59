"""Likelihoods: per-sample losses in nats, with what curvature and reports need of them.

``loss`` is the negative log-likelihood *with* its constants, one number for each sample; a loss
that was averaged over the batch is refused, since a mean that the code cannot see would distort
every later formula. A likelihood is one file: a class that inherits :class:`Likelihood`.
"""

from afterfit.problem.likelihood.base import Likelihood, Outcomes, Visit
from afterfit.problem.likelihood.bernoulli import Bernoulli
from afterfit.problem.likelihood.categorical import Categorical
from afterfit.problem.likelihood.gaussian import Gaussian
from afterfit.problem.likelihood.per_sample import PerSample
from afterfit.problem.likelihood.poisson import Poisson

NAMED = {kind.__name__: kind for kind in (Bernoulli, Categorical, Gaussian, Poisson)}
"""Likelihoods that their name and their numbers describe, so that a file can hold them."""

__all__ = [
    "NAMED",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "Outcomes",
    "PerSample",
    "Poisson",
    "Visit",
]

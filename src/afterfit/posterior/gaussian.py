"""A Gaussian over the coordinates of a problem, centered where training ended."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.posterior.basis import Basis, Weightings
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Ensemble, Member, MemoryStore
from afterfit.problem.persample import GIBIBYTE, flatten, outputs, unflatten
from afterfit.problem.problem import Problem

PriorScale = float | int | Mapping[str, float | int]
"""Standard deviation of the prior: one for all coordinates, or one for each pattern of names."""


@final
@dataclass(frozen=True)
class GaussianPosterior:
    """N(θ̂, Σ) in the coordinates of ``problem``, ``Σ = S (V diag(α²/(1+α²λ)) Vᵀ + …) S``.

    Made by :func:`~afterfit.posterior.laplace`. The mean is where training ended: the prior
    N(θ̂, α² S²) is centered there as well, and its scale can be changed without new curvature.

    Attributes
    ----------
    problem
        The network and its coordinates: with ``connectivity(problem)`` a Gaussian over relative
        changes, whose predictions do not depend on how the network is scaled.
    basis
        Directions in which the whitened curvature is diagonal.
    values
        Eigenvalues λ of the whitened curvature at α = 1, (R,).
    prior
        Standard deviations S of the prior at α = 1, (P,); in Kronecker blocks with a sign, that of
        the scale of the coordinate, and 0 for a coordinate that moves nothing.
    factor
        α.
    log_likelihood
        Of the training data at θ̂, in nats.
    num_targets
        Number of training samples times outputs.
    """

    problem: Problem
    basis: Basis
    values: Float[Tensor, " R"]
    prior: Float[Tensor, " P"]
    factor: float
    log_likelihood: float
    num_targets: int

    @property
    def structure(self) -> str:
        """How the covariance is held: full (primal), full (dual), diagonal, low rank, Kronecker."""
        return self.basis.structure

    def scaled(self, factor: float | int) -> "GaussianPosterior":
        """Give the prior other standard deviations, ``factor`` times those at α = 1.

        Raises
        ------
        ValueError
            If the factor is not a finite number above 0.
        """
        require_scale(factor)
        return replace(self, factor=float(factor))

    def covariances(
        self, data: Batches, memory_budget: int = GIBIBYTE
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B C"], Float[Tensor, "B C C"]]]:
        """Positions, mean and covariance of the outputs of the linearized network, in chunks.

        Parameters
        ----------
        memory_budget
            Bytes that one chunk may take.
        """
        for index, mean, covariances in self.covariances_at([self.factor], data, memory_budget):
            yield index, mean, covariances[0]

    def covariances_at(
        self, factors: Sequence[float | int], data: Batches, memory_budget: int = GIBIBYTE
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B C"], Float[Tensor, "A B C C"]]]:
        """As :meth:`covariances` for A scales of the prior, with one pass over the data."""
        at = [self.scaled(factor) for factor in factors]
        weights = torch.stack([one.variances_along() for one in at])
        rest = torch.tensor([one.factor**2 for one in at], dtype=torch.float64).to(weights)
        several = Weightings(weights, rest, self.prior)
        with torch.no_grad():
            parts = self.basis.covariances(self.problem, data, several, memory_budget)
            for index, covariances in parts:
                yield index, outputs(self.problem, data.subset(index)), covariances

    def variances_along(self) -> Float[Tensor, " R"]:
        """Posterior variance of each direction of the basis, ``α² / (1 + α² λ)``."""
        return self.factor**2 / (1 + self.factor**2 * self.values)

    def variances(self) -> Float[Tensor, " P"]:
        """Posterior variance of each coordinate."""
        whitened = self.basis.diagonal(self.variances_along(), self.factor**2)
        return self.prior.square() * whitened

    def effective_dimension(self) -> float:
        """Number of directions that the data determine, ``Σ α²λ / (1 + α²λ)``."""
        raised = self.factor**2 * self.values.double()
        return float((raised / (1 + raised)).sum())

    def log_det_ratio(self) -> float:
        """``log det(prior covariance) - log det(posterior covariance)``, at least 0."""
        return float((self.factor**2 * self.values.double()).log1p().sum())

    def draws(self, num: int, generator: Generator) -> Float[Tensor, "M P"]:
        """Draw coordinates, flat; the symmetric root of the covariance is applied to the noise.

        The symmetric root does not depend on how eigenvectors were chosen, so the same seed gives
        the same functions for a network that was rescaled, or in which odd units were turned
        around. Where units were permuted the draws of one seed are others, of the same law: noise
        belongs to positions.
        """
        if num < 1:
            message = f"num is {num}, expected at least 1 draw"
            raise ValueError(message)
        noise = torch.randn(
            num, len(self.prior), generator=generator, dtype=torch.float64, device=generator.device
        ).to(self.prior)
        signs = torch.where(self.prior < 0, -1.0, 1.0).to(noise)
        spread = self.basis.apply(self.variances_along().sqrt(), self.factor, (signs * noise).mT)
        return flatten(self.problem.params) + self.prior * spread.mT

    def sample(self, num: int, generator: Generator) -> Ensemble:
        """Draw members that :func:`~afterfit.posterior.predict_by_members` and others take."""
        return as_ensemble(self.problem, self.draws(num, generator))


def as_ensemble(problem: Problem, draws: Float[Tensor, "M P"]) -> Ensemble:
    """Make members of flat coordinates, each a chain of its own."""
    store = MemoryStore()
    for chain, vector in enumerate(draws):
        params = {**problem.buffers, **unflatten(vector, problem.params)}
        store.save(Member(params, chain, 0))
    return Ensemble([(chain, 0) for chain in range(len(draws))], store, problem.device)


def prior_of(problem: Problem, prior_scale: PriorScale) -> tuple[Float[Tensor, " P"], float]:
    """Standard deviations S of the coordinates and their common factor α.

    Raises
    ------
    ValueError
        If a scale is not a finite number above 0, or patterns leave a parameter out or match none.
    """
    ones = {name: torch.ones_like(value) for name, value in problem.params.items()}
    if not isinstance(prior_scale, Mapping):
        require_scale(prior_scale)
        return flatten(ones), float(prior_scale)
    left = set(ones)
    for pattern, scale in prior_scale.items():
        require_scale(scale)
        names = {name for name in left if fnmatchcase(name, pattern)}
        if not names:
            message = (
                f"the pattern {pattern!r} of prior_scale matches no parameter that earlier "
                f"patterns left; the names are {list(ones)[:8]} …"
            )
            raise ValueError(message)
        ones.update({name: ones[name] * scale for name in names})
        left -= names
    if left:
        message = (
            f"prior_scale has no pattern for {sorted(left)[:4]}, expected one for every parameter; "
            "end with '*' for the rest"
        )
        raise ValueError(message)
    return flatten(ones), 1.0


def require_scale(scale: float | int) -> None:
    """Refuse a standard deviation that is not a finite number above 0."""
    if not 0 < scale < float("inf"):
        message = (
            f"the prior scale is {scale}, expected a finite standard deviation above 0; for a "
            "network without uncertainty use its outputs as they are"
        )
        raise ValueError(message)

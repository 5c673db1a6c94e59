"""A Gaussian over the coordinates of a problem, centered where training ended."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.posterior.basis import Basis, Weightings
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Ensemble, Member, MemoryStore
from afterfit.problem.persample import GIBIBYTE, flatten, outputs, total_gradient, unflatten
from afterfit.problem.problem import Problem
from afterfit.problem.transform import linearize
from afterfit.typing import Params

PriorScale = float | int | Mapping[str, float | int]
"""Standard deviation of the prior: one for all coordinates, or one for each pattern of names."""


@final
@dataclass(frozen=True)
class GaussianPosterior:
    """N(θ̂, Σ) in the coordinates of ``problem``, ``Σ = S (V diag(α²/(1+α²λ)) Vᵀ + …) S``.

    Made by :func:`~afterfit.posterior.laplace`. The mean is where training ended, or by
    :func:`with_ridge_mean` what the data ask for from there: the prior N(θ̂, α² S²) is centered at
    θ̂ as well, and its scale can be changed without new curvature.

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
    pull
        Minus the gradient of the summed loss at θ̂ (P,), along which the mean moves; None for a mean
        at θ̂.
    """

    problem: Problem
    basis: Basis
    values: Float[Tensor, " R"]
    prior: Float[Tensor, " P"]
    factor: float
    log_likelihood: float
    num_targets: int
    pull: Float[Tensor, " P"] | None = None

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
        for index, means, covariances in self.covariances_at([self.factor], data, memory_budget):
            yield index, means[0], covariances[0]

    def covariances_at(
        self, factors: Sequence[float | int], data: Batches, memory_budget: int = GIBIBYTE
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "A B C"], Float[Tensor, "A B C C"]]]:
        """As :meth:`covariances` for A scales of the prior, with one pass over the data."""
        at = [self.scaled(factor) for factor in factors]
        weights = torch.stack([one.variances_along() for one in at])
        rest = torch.tensor([one.factor**2 for one in at], dtype=torch.float64).to(weights)
        several = Weightings(weights, rest, self.prior)
        with torch.no_grad():
            parts = self.basis.covariances(self.problem, data, several, memory_budget)
            for index, covariances in parts:
                yield index, self._means(at, data.subset(index)), covariances

    def _means(self, at: Sequence["GaussianPosterior"], data: Batches) -> Float[Tensor, "A B C"]:
        """Outputs of the linearized network at the mean of each of A posteriors."""
        if self.pull is None:
            found = outputs(self.problem, data)
            return found.expand(len(at), *found.shape)
        linear, like = linearize(self.problem), self.problem.params
        return torch.stack([outputs(linear, data, unflatten(one.mean(), like)) for one in at])

    def mean(self) -> Float[Tensor, " P"]:
        """Mean of the coordinates, flat: θ̂, or ``θ̂ + Σ pull``."""
        center = flatten(self.problem.params)
        if self.pull is None:
            return center
        pull = (self.prior * self.pull)[:, None]
        moved = self.basis.apply(self.variances_along(), self.factor**2, pull)[:, 0]
        return center + self.prior * moved

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
        return self.mean() + self.prior * spread.mT

    def sample(self, num: int, generator: Generator) -> Ensemble:
        """Draw members that :func:`~afterfit.posterior.predict_by_members` and others take."""
        return as_ensemble(self.problem, self.draws(num, generator))


def with_ridge_mean(posterior: GaussianPosterior, train: Batches) -> GaussianPosterior:
    """Move the mean to where the linearized network fits the training data best, given the prior.

    ``μ = Σ Jᵀ r / σ²`` with the residuals r = y - f(θ̂) for a Gaussian likelihood: the exact
    posterior mean of the linear model with the prior N(θ̂, α² S²), whose distance ``μᵀ S⁻² μ / α²``
    is the bias term of the PAC-Bayes bound. For other likelihoods one Newton step, ``-Σ ∇L``. Of a
    network trained to a minimum with little decay it is near θ̂, where Laplace approximations stay.

    Parameters
    ----------
    train
        The data that the posterior was made from.

    References
    ----------
    Kim, Park, Kim, Yang 2023, "Scale-invariant Bayesian neural networks with connectivity tangent
    kernel", ICLR (the posterior of their bound). Rasmussen, Williams 2006, "Gaussian processes for
    machine learning", equation 2.8.
    """
    return replace(posterior, pull=-total_gradient(posterior.problem, train))


def antithetic(members: Iterable[Member], center: Params) -> Ensemble:
    """Follow each member by its mirror image ``2 center - member``, at no cost of drawing.

    Where the law of the members is symmetric about the center, as for Laplace and for
    randomize-then-optimize draws about ``problem.params``, the images have the same law, and what
    is linear in the parameters is averaged without error. Buffers stay.

    Raises
    ------
    ValueError
        If there are no members.

    References
    ----------
    Hammersley, Morton 1956, "A new Monte Carlo technique: antithetic variates", Mathematical
    Proceedings of the Cambridge Philosophical Society 52(3).
    """
    store, num, device = MemoryStore(), 0, None
    for member in members:
        image = {name: 2 * value - member.params[name] for name, value in center.items()}
        for params in (member.params, {**member.params, **image}):
            store.save(Member(params, num, 0))
            num += 1
        device = next(iter(member.params.values())).device
    if device is None:
        message = "there are no members, expected at least one to mirror"
        raise ValueError(message)
    return Ensemble([(chain, 0) for chain in range(num)], store, device)


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

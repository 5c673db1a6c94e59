"""Draws near the trained network by stochastic gradient Langevin dynamics, held by a spring."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from afterfit.problem._autodiff import gradient
from afterfit.problem.data import TrainingStream
from afterfit.problem.ensemble import Member, Store
from afterfit.problem.persample import batch_losses, flatten, unflatten
from afterfit.problem.problem import Problem
from afterfit.sampling.walk import Diverged


@final
@dataclass(frozen=True)
class Langevin:
    """Draws from the local, tempered posterior ``exp(-β N L(θ) - γ/2 ‖θ - θ̂‖²)`` (SGLD).

    ``L`` is the mean loss. A step is
    ``θ ← θ - ε/2 [β N ∇L_B(θ) + γ (θ - θ̂)] + √ε ξ`` with the gradient of a batch B in evaluation
    mode. The covariance of losses over these draws is the Bayesian influence function, up to its
    sign: ``LossCovariance(Langevin(...), cross_moment=covariance)``. Where the loss is quadratic
    and ε small, draws have the covariance ``(β N H + γ)⁻¹``.

    Parameters
    ----------
    step
        ε. Well below ``2 / (β N λ_max + γ)`` of the largest eigenvalue of the mean curvature.
    inverse_temperature
        β N: what the mean loss is multiplied with, N for the posterior at temperature 1.
    localization
        γ, the strength of the spring to the trained network.
    draws
        Members of each chain.
    chains
        Independent walks; standard errors are over chains where there are four or more.
    burn_in, thinning
        Steps before the first draw of a chain, and between two.

    References
    ----------
    Welling, Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics", ICML, eq.
    (4). Kreer, Wu, Adam, Furman, Hoogland (2026), "Bayesian influence functions for Hessian-free
    data attribution", ICLR, arXiv:2509.26544, for the local posterior.
    """

    step: float | int
    inverse_temperature: float | int
    localization: float | int
    draws: int = 100
    chains: int = 4
    burn_in: int = 100
    thinning: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("draws", 1), ("chains", 1), ("burn_in", 0), ("thinning", 1)):
            if getattr(self, name) < low:
                message = f"Langevin: {name} is {getattr(self, name)}, expected at least {low}"
                raise ValueError(message)
        if not self.step > 0 or not self.inverse_temperature > 0 or not self.localization >= 0:
            message = (
                f"Langevin: step is {self.step}, inverse_temperature {self.inverse_temperature} "
                f"and localization {self.localization}, expected two numbers above 0 and one of at "
                "least 0"
            )
            raise ValueError(message)

    @property
    def members(self) -> int:
        """Number of members M."""
        return self.draws * self.chains

    def walk(
        self,
        problem: Problem,
        fit: TrainingStream,
        store: Store | None = None,  # noqa: ARG002 (a walk has no stops to start again from)
    ) -> Iterator[Member]:
        """Yield the draws, chain after chain.

        Raises
        ------
        Diverged
            If a parameter becomes NaN or infinite: the step is too long.
        """
        center = flatten(problem.params)
        for chain in range(self.chains):
            generator = Generator().manual_seed(1_000_003 * self.seed + chain)
            batches = fit.batches(self.seed * self.chains + chain)
            at = center.clone()
            for stage in range(self.draws):
                for _ in range(self.thinning if stage else max(1, self.burn_in)):
                    at = self._stepped(problem, at, center, next(batches), generator)
                if not bool(torch.isfinite(at).all()):
                    message = (
                        f"the walk of chain {chain} left all bounds before draw {stage}, expected "
                        "finite parameters; lower step, or raise localization"
                    )
                    raise Diverged(message)
                params = unflatten(at.clone(), problem.params)
                yield Member({**problem.buffers, **params}, chain, stage)

    def _stepped(
        self, problem: Problem, at: Tensor, center: Tensor, batch: object, generator: Generator
    ) -> Tensor:
        def mean_loss(params: object) -> Tensor:
            return batch_losses(problem, params, batch).mean()  # pyright: ignore[reportArgumentType]

        slope = flatten(gradient(mean_loss, unflatten(at, problem.params)))
        noise = torch.randn(at.shape, generator=generator, dtype=at.dtype).to(at.device)
        pull = self.inverse_temperature * slope + self.localization * (at - center)
        return at - self.step / 2 * pull + self.step**0.5 * noise

"""Counts."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor

from afterfit.problem.likelihood.base import Likelihood
from afterfit.problem.likelihood.targets import as_rows, of_another_sample, require_each, tenths

_TINY = 1e-9


@final
@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts with log rate ``f``: ``loss = exp(f) - y f + log y!``."""

    def loss(self, outputs: Float[Tensor, "B C"], y: Shaped[Tensor, "B *C"]) -> Float[Tensor, " B"]:
        count = y.to(outputs.dtype).reshape(outputs.shape)
        return (outputs.exp() - count * outputs + torch.lgamma(count + 1)).sum(-1)

    def mean(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return outputs.exp()

    def hessian(
        self, outputs: Float[Tensor, "B C"], v: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B C"]:
        return outputs.exp() * v

    def root(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C C"]:
        return torch.diag_embed((0.5 * outputs).exp())

    def sample(self, outputs: Float[Tensor, "B C"], generator: Generator) -> Float[Tensor, "B C"]:
        rate = outputs.exp().to(generator.device)
        return torch.poisson(rate, generator=generator).to(outputs.device)

    def null_outputs(self, y: Shaped[Tensor, "N *C"]) -> Float[Tensor, "N C"]:
        return as_rows(y).mean(0).clamp_min(1e-6).log().expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        require_each("Poisson", outputs, y, "count")
        bad = (y < 0) | (y != y.round())
        if bool(bad.any()):
            message = (
                f"Poisson: y holds values such as {float(y[bad][0])}, expected counts 0, 1, 2 …; "
                "for real-valued targets use Gaussian"
            )
            raise ValueError(message)

    def exact_outputs(self, y: Tensor) -> Float[Tensor, "N C"]:
        return y.double().reshape(len(y), -1).clamp_min(1e-9).log()

    # Predictions --------------------------------------------------------------------------------

    def variance(self, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return mean

    def moments(
        self, mean: Float[Tensor, "B C"], variance: Float[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        """Those of a log-normal rate."""
        rate = (mean + variance / 2).exp()
        return rate, rate.square() * torch.expm1(variance)

    def predictive_losses(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """Counts are negative binomial with the predicted moments."""
        count, rate = y.double().reshape(mean.shape), mean.double()
        excess = (variance.double() - rate).clamp_min(1e-7 * rate)
        size = rate.square() / excess  # Poisson where the rate is certain: size grows unbounded
        chosen = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)
        losses = size * (rate / size).log1p() - count * (rate / (size + rate)).log() - chosen
        return losses.sum(-1).to(mean.dtype)

    # Labels -------------------------------------------------------------------------------------

    def doubts(self, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:
        residual = y.to(mean).reshape(mean.shape) - mean
        return (0.5 * residual.square() / mean.clamp_min(_TINY)).sum(-1, keepdim=True)

    def mistaken(self, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        return of_another_sample(y, generator)

    def alike(self, y: Tensor) -> Int[Tensor, " N"] | None:
        return tenths(y)

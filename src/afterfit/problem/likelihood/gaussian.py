"""Numbers."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor

from afterfit.problem.likelihood.base import Likelihood
from afterfit.problem.likelihood.targets import as_rows, of_another_sample, require_each, tenths


@final
@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Regression with noise of known standard deviation ``sigma``; ``y`` as the outputs."""

    reported: ClassVar[tuple[str, ...]] = ("rmse", "crps", "coverage90")

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            message = f"Gaussian: sigma is {self.sigma}, expected a standard deviation above 0"
            raise ValueError(message)

    def loss(self, outputs: Float[Tensor, "B C"], y: Shaped[Tensor, "B *C"]) -> Float[Tensor, " B"]:
        residual = (y.to(outputs.dtype).reshape(outputs.shape) - outputs) / self.sigma
        constant = math.log(self.sigma) + 0.5 * math.log(2 * math.pi)
        return (0.5 * residual.square() + constant).sum(-1)

    def mean(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return outputs

    def hessian(
        self,
        outputs: Float[Tensor, "B C"],  # noqa: ARG002 (the curvature is constant)
        v: Float[Tensor, "B C"],
    ) -> Float[Tensor, "B C"]:
        return v / self.sigma**2

    def root(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C C"]:
        return torch.diag_embed(torch.ones_like(outputs) / self.sigma)

    def sample(self, outputs: Float[Tensor, "B C"], generator: Generator) -> Float[Tensor, "B C"]:
        noise = torch.empty(outputs.shape, dtype=outputs.dtype, device=generator.device)
        return outputs + self.sigma * noise.normal_(generator=generator).to(outputs.device)

    def null_outputs(self, y: Shaped[Tensor, "N *C"]) -> Float[Tensor, "N C"]:
        return as_rows(y).mean(0).expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        require_each("Gaussian", outputs, y, "target")

    def exact_outputs(self, y: Tensor) -> Float[Tensor, "N C"]:
        return y.double().reshape(len(y), -1)

    # Predictions --------------------------------------------------------------------------------

    def variance(self, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return torch.full_like(mean, self.sigma**2)

    def moments(
        self, mean: Float[Tensor, "B C"], variance: Float[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        return mean, variance

    def predictive_losses(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """Targets are normal with the predicted moments."""
        residual = (y.to(mean.dtype).reshape(mean.shape) - mean).square() / variance
        return 0.5 * (residual + (2 * math.pi * variance).log()).sum(-1)

    def tempered(self, outputs: Tensor, temperature: float) -> tuple["Gaussian", Tensor]:
        """It is the noise that is scaled."""
        return Gaussian(self.sigma * temperature), outputs

    # Labels -------------------------------------------------------------------------------------

    def doubts(self, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:
        residual = (y.to(mean).reshape(mean.shape) - mean) / self.sigma
        return 0.5 * residual.square().sum(-1, keepdim=True)

    def mistaken(self, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        return of_another_sample(y, generator)

    def alike(self, y: Tensor) -> Int[Tensor, " N"] | None:
        return tenths(y)

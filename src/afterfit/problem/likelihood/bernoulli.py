"""Switches: yes or no, or several of them."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor
from torch.nn import functional

from afterfit.problem.likelihood.base import Likelihood, Outcomes, Visit
from afterfit.problem.likelihood.targets import as_rows, precise, require_each, tenths

_TINY = 1e-9


@final
@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent logistic outputs: ``y`` in [0, 1], shape (B,) for one output or (B, C).

    Multi-label data is the (B, C) case; the loss of a sample is the sum over its outputs.
    """

    def loss(self, outputs: Float[Tensor, "B C"], y: Shaped[Tensor, "B *C"]) -> Float[Tensor, " B"]:
        target = y.to(outputs.dtype).reshape(outputs.shape)
        losses = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return losses.sum(-1)

    def mean(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return outputs.sigmoid()

    def hessian(
        self, outputs: Float[Tensor, "B C"], v: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B C"]:
        p = outputs.sigmoid()
        return p * (1 - p) * v

    def root(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C C"]:
        p = outputs.sigmoid()
        return torch.diag_embed((p * (1 - p)).sqrt())

    def sample(self, outputs: Float[Tensor, "B C"], generator: Generator) -> Float[Tensor, "B C"]:
        p = outputs.sigmoid().to(generator.device)
        return torch.bernoulli(p, generator=generator).to(outputs.device)

    def null_outputs(self, y: Shaped[Tensor, "N *C"]) -> Float[Tensor, "N C"]:
        return torch.logit(as_rows(y).mean(0), eps=1e-6).expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        require_each("Bernoulli", outputs, y, "target")
        if bool((y < 0).any()) or bool((y > 1).any()):
            message = (
                f"Bernoulli: targets range from {float(y.min())} to {float(y.max())}, expected "
                "0 to 1; re-code labels such as -1/+1 or 1/2"
            )
            raise ValueError(message)

    def exact_outputs(self, y: Tensor) -> Float[Tensor, "N C"]:
        return torch.logit(y.double().reshape(len(y), -1), eps=1e-9)  # targets may be soft

    # Predictions --------------------------------------------------------------------------------

    def variance(self, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return mean * (1 - mean)

    def uncertainty(
        self,
        mean: Float[Tensor, "*S C"],
        variance: Float[Tensor, "*S C"],  # noqa: ARG002
    ) -> Float[Tensor, "*S"]:
        """Sum of the entropies of the outputs in nats."""
        return (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum(-1)

    def predictive_losses(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        target = y.to(mean.dtype).reshape(mean.shape)
        return functional.binary_cross_entropy(mean.clamp(0, 1), target, reduction="none").sum(-1)

    # Labels -------------------------------------------------------------------------------------

    def outcomes(self, outputs: Tensor, y: Tensor) -> Outcomes:
        target = y.to(outputs.dtype).reshape(outputs.shape)
        logits = torch.stack([torch.zeros_like(outputs), outputs], dim=-1)
        given = torch.stack([1 - target, target], dim=-1)
        return Outcomes(logits, given, self.mean(outputs) - target)

    def doubts(self, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:
        """Log-odds that a draw disagrees with the target, which may be soft."""
        target = y.to(mean).reshape(mean.shape)
        agreed = (target * mean + (1 - target) * (1 - mean)).clamp(_TINY, 1 - _TINY)
        return (1 - agreed).log() - agreed.log()

    def mistaken(self, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:
        rows = y.cpu().reshape(outputs.shape).clone()
        turned = torch.randint(rows.shape[1], (len(rows),), generator=generator)
        at = torch.arange(len(rows)), turned
        rows[at] = 1 - rows[at]
        return rows.reshape(y.shape)

    def sums_labels(self, mean: Tensor) -> bool:
        return mean.ndim == 2 and mean.shape[1] > 1

    def alike(self, y: Tensor) -> Int[Tensor, " N"] | None:
        return tenths(y)

    def suggested(
        self,
        mean: Float[Tensor, "N C"],
        given: Tensor,
        is_issue: Bool[Tensor, " N"],  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Yes or no for each output; the confidence is that of all of them together."""
        label = (mean > 0.5).to(given.dtype).reshape(given.shape)
        confidence = torch.where(mean > 0.5, mean, 1 - mean).prod(1)
        return label.cpu(), confidence.cpu()

    def visit(self, outputs: Tensor, y: Tensor) -> Visit:
        """The residual ``p - y`` is the gradient."""
        outputs = outputs.to(precise(outputs.device))
        seen = self.outcomes(outputs, y)
        norm = torch.linalg.vector_norm(seen.residual, dim=-1)
        return Visit(self.loss(outputs, y), -seen.opposition().amax(-1), norm)

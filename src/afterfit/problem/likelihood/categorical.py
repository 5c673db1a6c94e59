"""Classes."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor
from torch.nn import functional

from afterfit.problem.likelihood.base import Likelihood, Outcomes, Visit
from afterfit.problem.likelihood.targets import precise, require_flat, wrong_shape

_TINY = 1e-9


@final
@dataclass(frozen=True)
class Categorical(Likelihood):
    """Softmax over C classes; ``y`` holds class indices of shape (B,).

    ``loss = logsumexp(f) - f[y]``, so a network that knows nothing pays ``log C`` nats.
    """

    reported: ClassVar[tuple[str, ...]] = ("brier", "ece", "accuracy")

    def loss(self, outputs: Float[Tensor, "B C"], y: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        return functional.cross_entropy(outputs, y.long(), reduction="none")

    def mean(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return outputs.softmax(-1)

    def hessian(
        self, outputs: Float[Tensor, "B C"], v: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B C"]:
        p = outputs.softmax(-1)
        return p * v - p * (p * v).sum(-1, keepdim=True)

    def root(self, outputs: Float[Tensor, "B C"]) -> Float[Tensor, "B C C"]:
        p = outputs.softmax(-1)
        return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]

    def sample(self, outputs: Float[Tensor, "B C"], generator: Generator) -> Shaped[Tensor, " B"]:
        p = outputs.softmax(-1).to(generator.device)
        return torch.multinomial(p, 1, generator=generator)[:, 0].to(outputs.device)

    def null_outputs(self, y: Shaped[Tensor, " N"]) -> Float[Tensor, "N C"]:
        counts = torch.bincount(y.long()).to(torch.get_default_dtype())
        return (counts / counts.sum()).log().expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        require_flat("Categorical", outputs)
        if y.shape != outputs.shape[:1]:
            column = y.shape == (len(outputs), 1)
            hint = "use y[:, 0]" if column else "for one-hot targets use y.argmax(-1)"
            message = wrong_shape(
                "Categorical", y, f"({len(outputs)},)", f"it takes class indices; {hint}"
            )
            raise ValueError(message)
        if y.is_floating_point() and not bool((y == y.round()).all()):
            message = f"Categorical: y has dtype {y.dtype}, expected integer class indices"
            raise ValueError(message)
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= outputs.shape[1]:
            message = (
                f"Categorical: labels range from {low} to {high}, expected 0 to "
                f"{outputs.shape[1] - 1}: the network has {outputs.shape[1]} outputs; re-code the "
                "labels, or pass the network with the right head"
            )
            raise ValueError(message)

    # Predictions --------------------------------------------------------------------------------

    def variance(self, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return mean * (1 - mean)

    def uncertainty(
        self,
        mean: Float[Tensor, "*S C"],
        variance: Float[Tensor, "*S C"],  # noqa: ARG002
    ) -> Float[Tensor, "*S"]:
        """Entropy in nats."""
        return torch.special.entr(mean).sum(-1)

    def predictive_losses(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        tiny = torch.finfo(mean.dtype).tiny
        return -mean.gather(1, y.long()[:, None])[:, 0].clamp_min(tiny).log()

    # Labels -------------------------------------------------------------------------------------

    def outcomes(self, outputs: Tensor, y: Tensor) -> Outcomes:
        classes = torch.arange(outputs.shape[1], device=y.device)
        given = (y[:, None] == classes).to(outputs.dtype)  # one_hot cannot be mapped over samples
        return Outcomes(outputs[:, None], given[:, None], self.mean(outputs) - given)

    def doubts(self, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:
        return self.outcomes(mean.clamp_min(_TINY).log(), y.to(mean.device)).opposition()

    def mistaken(self, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:
        others = outputs.double().cpu().scatter(1, y.cpu().long()[:, None], -torch.inf).softmax(-1)
        return torch.multinomial(others, 1, generator=generator)[:, 0].to(y.dtype)

    def alike(self, y: Tensor) -> Int[Tensor, " N"]:
        return y.detach().cpu().long()

    def suggested(
        self, mean: Float[Tensor, "N C"], given: Tensor, is_issue: Bool[Tensor, " N"]
    ) -> tuple[Tensor, Tensor]:
        """The most probable class, and for a flagged sample the most probable *other* one."""
        without_given = mean.scatter(1, given.long()[:, None].to(mean.device), 0.0)
        chosen = torch.where(is_issue.to(mean.device)[:, None], without_given, mean)
        confidence, label = chosen.max(1)
        return label.cpu(), confidence.cpu()

    def visit(self, outputs: Tensor, y: Tensor) -> Visit:
        """As for Bernoulli, in a third of the operations: every step of training waits for it."""
        given = y.long()[:, None]
        log_p = outputs.log_softmax(-1, dtype=precise(outputs.device))
        log_given = log_p.gather(1, given)
        other = log_p.scatter(1, given, -torch.inf).amax(1)
        residual = log_p.exp_().scatter_add_(1, given, log_p.new_full((), -1).expand(given.shape))
        norm = torch.linalg.vector_norm(residual, dim=1)
        return Visit(-log_given[:, 0], log_given[:, 0] - other, norm)

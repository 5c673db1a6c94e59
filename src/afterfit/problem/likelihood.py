"""Likelihoods: per-sample losses in nats, with what curvature and reports need of them.

``loss`` is the negative log-likelihood *with* its constants, one number for each sample; a loss
that was averaged over the batch is refused, since a mean that the code cannot see would distort
every later formula.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor
from torch.nn import functional


@runtime_checkable
class Likelihood(Protocol):
    """How the outputs of a network give a probability to a target."""

    def loss(self, outputs: Tensor, y: Tensor) -> Float[Tensor, " B"]:
        """Negative log-likelihood of each sample in nats."""
        ...

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected target: class probabilities, success probabilities, mean or rate."""
        ...

    def hessian(self, outputs: Tensor, v: Tensor) -> Tensor:
        """Product of the Hessian of the loss in the outputs with ``v``, sample by sample."""
        ...

    def root(self, outputs: Tensor) -> Float[Tensor, "B C R"]:
        """A root of that Hessian: ``root @ root.mT`` equals it."""
        ...

    def sample(self, outputs: Tensor, generator: Generator) -> Tensor:
        """Draw targets from the model; the generator may be on another device than the outputs."""
        ...

    def null_outputs(self, y: Tensor) -> Tensor:
        """Outputs of the best predictor that ignores its input, one row for each target."""
        ...

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Raise ``ValueError`` where the targets do not fit the outputs."""
        ...


def _say_shape(likelihood: object, y: Tensor, expected: str, hint: str) -> ValueError:
    name = type(likelihood).__name__
    return ValueError(f"{name}: y has shape {tuple(y.shape)}, expected {expected}: {hint}")


def _as_rows(y: Tensor) -> Float[Tensor, "N C"]:
    """Targets as floats, one row a sample; floating targets keep their precision."""
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    return y.to(dtype).reshape(len(y), -1)


def _require_finite(name: str, y: Tensor) -> None:
    if not bool(torch.isfinite(y).all()):
        message = f"{name}: y holds NaN or infinite values; drop or impute those rows first"
        raise ValueError(message)


def _require_flat(name: str, outputs: Tensor) -> None:
    if outputs.ndim != 2:
        message = (
            f"{name}: the network returned outputs of shape {tuple(outputs.shape)}, expected "
            "(batch, outputs); reshape them in the module's forward"
        )
        raise ValueError(message)


@final
@dataclass(frozen=True)
class Categorical:
    """Softmax over C classes; ``y`` holds class indices of shape (B,).

    ``loss = logsumexp(f) - f[y]``, so a network that knows nothing pays ``log C`` nats.
    """

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
        _require_flat("Categorical", outputs)
        if y.shape != outputs.shape[:1]:
            column = y.shape == (len(outputs), 1)
            hint = "use y[:, 0]" if column else "for one-hot targets use y.argmax(-1)"
            raise _say_shape(self, y, f"({len(outputs)},)", f"it takes class indices; {hint}")
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


@final
@dataclass(frozen=True)
class Bernoulli:
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
        return torch.logit(_as_rows(y).mean(0), eps=1e-6).expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        _require_flat("Bernoulli", outputs)
        fits = y.shape == outputs.shape or (outputs.shape[1] == 1 and y.shape == outputs.shape[:1])
        if not fits:
            raise _say_shape(
                self, y, str(tuple(outputs.shape)), "it takes one target for each output"
            )
        _require_finite("Bernoulli", y)
        if bool((y < 0).any()) or bool((y > 1).any()):
            message = (
                f"Bernoulli: targets range from {float(y.min())} to {float(y.max())}, expected "
                "0 to 1; re-code labels such as -1/+1 or 1/2"
            )
            raise ValueError(message)


@final
@dataclass(frozen=True)
class Gaussian:
    """Regression with noise of known standard deviation ``sigma``; ``y`` as the outputs."""

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
        return _as_rows(y).mean(0).expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        _require_flat("Gaussian", outputs)
        fits = y.shape == outputs.shape or (outputs.shape[1] == 1 and y.shape == outputs.shape[:1])
        if not fits:
            raise _say_shape(
                self, y, str(tuple(outputs.shape)), "it takes one target for each output"
            )
        _require_finite("Gaussian", y)


@final
@dataclass(frozen=True)
class Poisson:
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
        return _as_rows(y).mean(0).clamp_min(1e-6).log().expand(len(y), -1)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        _require_flat("Poisson", outputs)
        fits = y.shape == outputs.shape or (outputs.shape[1] == 1 and y.shape == outputs.shape[:1])
        if not fits:
            raise _say_shape(
                self, y, str(tuple(outputs.shape)), "it takes one count for each output"
            )
        _require_finite("Poisson", y)
        bad = (y < 0) | (y != y.round())
        if bool(bad.any()):
            message = (
                f"Poisson: y holds values such as {float(y[bad][0])}, expected counts 0, 1, 2 …; "
                "for real-valued targets use Gaussian"
            )
            raise ValueError(message)


_ONLY_A_LOSS = (
    "PerSample knows a loss and nothing else; use Categorical, Bernoulli, Gaussian or Poisson "
    "where one fits, or write a class with the methods of Likelihood"
)


@final
@dataclass(frozen=True)
class PerSample:
    """The user's own loss: ``function(outputs, y)`` gives one number for each sample.

    It is enough for everything that compares losses (GEX, the loss baselines) and for gradients.
    What needs a probability model (curvature, drawn targets, suggested labels, the automatic
    learning rate) raises ``TypeError`` and says which likelihoods have one.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def loss(self, outputs: Tensor, y: Tensor) -> Float[Tensor, " B"]:
        losses = self.function(outputs, y)
        if losses.shape != outputs.shape[:1]:
            message = (
                f"PerSample: the loss has shape {tuple(losses.shape)}, expected "
                f"({len(outputs)},), one number for each sample; pass reduction='none' and sum "
                "over the outputs of a sample, not over the batch"
            )
            raise ValueError(message)
        return losses

    def mean(self, outputs: Tensor) -> Tensor:  # noqa: ARG002
        raise TypeError(_ONLY_A_LOSS)

    def hessian(self, outputs: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        raise TypeError(_ONLY_A_LOSS)

    def root(self, outputs: Tensor) -> Tensor:  # noqa: ARG002
        raise TypeError(_ONLY_A_LOSS)

    def sample(self, outputs: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        raise TypeError(_ONLY_A_LOSS)

    def null_outputs(self, y: Tensor) -> Tensor:  # noqa: ARG002
        raise TypeError(_ONLY_A_LOSS)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        if len(outputs) != len(y):
            message = f"PerSample: {len(outputs)} outputs for {len(y)} targets, expected as many"
            raise ValueError(message)

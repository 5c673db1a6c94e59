"""Wrong targets that could have been given, and how much a prediction doubts the given one."""

from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.problem.likelihood import Bernoulli, Categorical, Gaussian, Poisson

_TINY = 1e-9


@singledispatch
def mistaken(likelihood: Any, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    """Draw a wrong target for each sample, as a person might have given it.

    Classes: one of the others, by the probability that the trained network gives it, since wrong
    labels tend to be plausible ones. Several yes-or-no outputs: one of them is turned around.
    Numbers and counts: the target of another sample.

    Raises
    ------
    TypeError
        If the likelihood does not say what a target is.
    """
    message = (
        f"{type(likelihood).__name__} does not say what another target could be, so no wrong one "
        "can be planted; use Categorical, Bernoulli, Gaussian or Poisson where one fits"
    )
    raise TypeError(message)


@mistaken.register
def _(likelihood: Categorical, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    others = outputs.double().cpu().scatter(1, y.cpu().long()[:, None], -torch.inf).softmax(-1)
    return torch.multinomial(others, 1, generator=generator)[:, 0].to(y.dtype)


@mistaken.register
def _(likelihood: Bernoulli, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    rows = y.cpu().reshape(outputs.shape).clone()
    turned = torch.randint(rows.shape[1], (len(rows),), generator=generator)
    at = torch.arange(len(rows)), turned
    rows[at] = 1 - rows[at]
    return rows.reshape(y.shape)


@mistaken.register
def _(likelihood: Gaussian, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return y.cpu()[torch.randint(len(y), (len(y),), generator=generator)]


@mistaken.register
def _(likelihood: Poisson, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return y.cpu()[torch.randint(len(y), (len(y),), generator=generator)]


@singledispatch
def doubts(likelihood: Any, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:  # noqa: ARG001
    """How much the expected target speaks against the given one, a column for each output.

    Classes: one column, the logarithm of the probability of the best other class over that of the
    given one, in nats. Yes-or-no outputs: the same for each of them. Numbers and counts: half of
    the squared residual, over the variance.
    """
    message = f"{type(likelihood).__name__} has no expected target; score by the loss"
    raise TypeError(message)


@doubts.register
def _(likelihood: Categorical, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:  # noqa: ARG001
    labels = y.long()[:, None].to(mean.device)
    given = mean.gather(1, labels)[:, 0].clamp_min(_TINY)
    other = mean.scatter(1, labels, 0.0).amax(1).clamp_min(_TINY)
    return (other.log() - given.log())[:, None]


@doubts.register
def _(likelihood: Bernoulli, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:  # noqa: ARG001
    target = y.to(mean).reshape(mean.shape)
    agreed = (target * mean + (1 - target) * (1 - mean)).clamp(_TINY, 1 - _TINY)
    return (1 - agreed).log() - agreed.log()


@doubts.register
def _(likelihood: Gaussian, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:
    residual = (y.to(mean).reshape(mean.shape) - mean) / likelihood.sigma
    return 0.5 * residual.square().sum(-1, keepdim=True)


@doubts.register
def _(likelihood: Poisson, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:  # noqa: ARG001
    residual = y.to(mean).reshape(mean.shape) - mean
    return (0.5 * residual.square() / mean.clamp_min(_TINY)).sum(-1, keepdim=True)


def names_classes(likelihood: Any) -> bool:
    """Whether a doubt above 0 means that another label is preferred."""
    return isinstance(likelihood, (Categorical, Bernoulli))


def sums_outputs(likelihood: Any, mean: Tensor) -> bool:
    """Whether a loss is the sum over several labels, which hides the one that is wrong."""
    return isinstance(likelihood, Bernoulli) and mean.ndim == 2 and mean.shape[1] > 1

"""What could have been observed of a sample: the logits of its outcomes, and the given one."""

from functools import singledispatch
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from afterfit.problem.likelihood import Bernoulli, Categorical


class Outcomes(NamedTuple):
    """D draws a sample, each with C outcomes."""

    logits: Float[Tensor, "B D C"]
    given: Float[Tensor, "B D C"]
    residual: Float[Tensor, "B R"]


@singledispatch
def outcomes(likelihood: Any, found: Tensor, y: Tensor) -> Outcomes:  # noqa: ARG001
    """Outcomes of the targets under these outputs; ``residual`` is ``p - y``."""
    message = (
        f"this score needs the probability of each label, and {type(likelihood).__name__} has "
        "none; use Categorical or Bernoulli, or score by loss_scores or gradient_norm_scores"
    )
    raise TypeError(message)


@outcomes.register
def _(likelihood: Categorical, found: Tensor, y: Tensor) -> Outcomes:
    given = functional.one_hot(y.long(), found.shape[1]).to(found.dtype)
    return Outcomes(found[:, None], given[:, None], likelihood.mean(found) - given)


@outcomes.register
def _(likelihood: Bernoulli, found: Tensor, y: Tensor) -> Outcomes:
    target = y.to(found.dtype).reshape(found.shape)
    logits = torch.stack([torch.zeros_like(found), found], dim=-1)
    given = torch.stack([1 - target, target], dim=-1)
    return Outcomes(logits, given, likelihood.mean(found) - target)


def has_outcomes(likelihood: Any) -> bool:
    """Whether the likelihood gives a probability to each label."""
    return outcomes.dispatch(type(likelihood)) is not outcomes.dispatch(object)


def disagreement(found: Outcomes) -> Float[Tensor, " B"]:
    """Largest other logit minus the given one, of the draw where that is largest."""
    logits, given, _ = found
    chosen = given.argmax(-1, keepdim=True)
    others = logits.scatter(-1, chosen, -torch.inf).amax(-1)
    return (others - logits.gather(-1, chosen)[..., 0]).amax(-1)

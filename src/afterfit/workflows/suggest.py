"""Which label a sample should have had, by the ensemble that no longer remembers the given one."""

from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Member
from afterfit.problem.likelihood import Bernoulli, Categorical, PerSample
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem


def mean_prediction(
    problem: Problem, data: Batches, members: Iterable[Member]
) -> Float[Tensor, "N C"]:
    """Expected target of each sample, averaged over the members."""
    total, count = torch.zeros(()), 0
    for member in members:
        total = total + problem.likelihood.mean(outputs(problem, data, member.params))
        count += 1
    return total / count


@singledispatch
def suggested(
    likelihood: Any,  # noqa: ARG001
    mean: Float[Tensor, "N C"],
    given: Tensor,
    is_issue: Bool[Tensor, " N"],  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Suggest a target for each sample, and how sure the ensemble is of it.

    Numbers (regression, counts): the mean prediction; NaN for the confidence.
    """
    target = mean.reshape(given.shape) if mean.numel() == given.numel() else mean
    return target, torch.full((len(mean),), torch.nan)


@suggested.register
def _(
    likelihood: Categorical,  # noqa: ARG001
    mean: Float[Tensor, "N C"],
    given: Tensor,
    is_issue: Bool[Tensor, " N"],
) -> tuple[Tensor, Tensor]:
    """Classes: the most probable one, and for a flagged sample the most probable *other* one."""
    without_given = mean.scatter(1, given.long()[:, None].to(mean.device), 0.0)
    chosen = torch.where(is_issue.to(mean.device)[:, None], without_given, mean)
    confidence, label = chosen.max(1)
    return label.cpu(), confidence.cpu()


@suggested.register
def _(
    likelihood: Bernoulli,  # noqa: ARG001
    mean: Float[Tensor, "N C"],
    given: Tensor,
    is_issue: Bool[Tensor, " N"],  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Yes or no for each output; the confidence is that of all of them together."""
    label = (mean > 0.5).to(given.dtype).reshape(given.shape)
    confidence = torch.where(mean > 0.5, mean, 1 - mean).prod(1)
    return label.cpu(), confidence.cpu()


@suggested.register
def _(
    likelihood: PerSample,  # noqa: ARG001
    mean: Tensor,  # noqa: ARG001
    given: Tensor,
    is_issue: Bool[Tensor, " N"],  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Nothing: a loss alone does not say what the outputs mean."""
    return given, torch.full((len(given),), torch.nan)


def soft_targets(
    probabilities: Float[Tensor, "N C"], given: Tensor, is_issue: Bool[Tensor, " N"]
) -> Float[Tensor, "N C"]:
    """Relabel as the paper does: one-hot targets, but for flagged samples those of RDIA.

    A flagged sample with label y gets target 0 for y and ``log_{p_c} (1 - p_y)^(1/(C-1))`` for the
    other classes c, with p the probabilities of the trained network (Kong, Shen and Huang 2022,
    "Resolving training biases via influence-based data relabeling", ICLR, as the authors of GEX
    use it). Train on them with ``-(targets * log_softmax).sum(-1)``; they do not sum to 1.
    """
    tiny = 1e-12
    p = probabilities.double().clamp(tiny, 1 - tiny)  # in single precision 1 - tiny is 1
    labels = given.long()[:, None]
    one_hot = torch.zeros_like(p).scatter(1, labels, 1.0)
    rest = (1 - p.gather(1, labels)).clamp_min(tiny).log() / (p.shape[1] - 1)
    turned = (rest / p.log()).scatter(1, labels, 0.0)
    return torch.where(is_issue[:, None], turned, one_hot).to(probabilities.dtype)

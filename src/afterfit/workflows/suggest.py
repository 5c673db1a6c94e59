"""Which label a sample should have had, by the ensemble that no longer remembers the given one."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Member
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

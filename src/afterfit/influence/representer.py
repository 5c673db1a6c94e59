"""Representer points: a prediction as a sum over training samples, through the last layer."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.sample_gradients import Factored, joined, sample_gradients
from afterfit.influence.base import Influence, require_finite
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Likelihood
from afterfit.problem.problem import Problem
from afterfit.problem.transform import restrict

_STEPS = 500
_STATIONARY = 1e-6


@final
@dataclass(frozen=True)
class RepresenterPoints:
    """Part that each training sample has in the query's output: ``score = α_n[y] (f_n · f_q)``.

    With inputs f of the last layer (a one appended for its bias) and ``W`` refitted on them, from
    the trained weights, to the minimum of ``Σ_n ℓ(W f_n, y_n) / N + weight_decay ‖W‖²``, outputs
    are ``W f_q = Σ_n α_n (f_n · f_q)`` with ``α_n = -∂ℓ_n/∂output / (2 weight_decay N)``. The
    score is the part in the output of the query's own class, positive where the sample speaks for
    it; for a likelihood without classes it is the part in ``-∂ℓ_q/∂output`` itself.

    Parameters
    ----------
    layer
        Pattern of the names of the last layer's parameters, as in ``restrict``.
    weight_decay
        λ of the refit, above 0.

    References
    ----------
    Yeh, Kim, Yen, Ravikumar (2018), "Representer point selection for explaining deep neural
    networks", NeurIPS, arXiv:1811.09720, theorem 3.1.
    """

    layer: str
    weight_decay: float | int = 1e-3
    reference: ClassVar[str] = (
        "Yeh, Kim, Yen, Ravikumar (2018), Representer point selection for explaining deep neural "
        "networks, NeurIPS, arXiv:1811.09720"
    )

    def fit(self, problem: Problem, train: Batches) -> "RepresenterInfluence":
        """Refit the last layer on its inputs, in float64.

        Raises
        ------
        ValueError
            If the pattern is not one layer that works once a sample, the weight decay is not
            positive, or the refit does not come to a minimum.
        """
        if not 0 < self.weight_decay < float("inf"):
            message = f"weight_decay is {self.weight_decay}, expected a number above 0"
            raise ValueError(message)
        head = restrict(problem, self.layer)
        features = _features(head, train)
        y = train.targets().to(problem.device)
        weights = _refitted(head, features, y, self.weight_decay)
        slopes = _slopes(problem.likelihood, features @ weights.mT, y)
        parts = -slopes / (2 * self.weight_decay * train.num_samples)
        return RepresenterInfluence(head, train, features, weights, parts)


@final
@dataclass(frozen=True)
class RepresenterInfluence(Influence):
    """Inputs of the last layer and the representer values of the training samples.

    Attributes
    ----------
    head
        The problem of the last layer alone.
    features, weights, parts
        Inputs (N, D), the refitted layer (C, D), and α (N, C), float64.
    """

    head: Problem
    train: Batches
    features: Float[Tensor, "N D"]
    weights: Float[Tensor, "C D"]
    parts: Float[Tensor, "N C"]

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Part of every training sample (columns) in the output of every query (rows)."""
        features = _features(self.head, query)
        y = query.targets().to(features.device)
        spoken = self._directions(features, y) @ self.parts.mT
        return (spoken * (features @ self.features.mT)).to(self.head.dtype)

    def self_scores(self) -> Float[Tensor, " N"]:
        """Part of every training sample in its own output."""
        y = self.train.targets().to(self.features.device)
        spoken = (self._directions(self.features, y) * self.parts).sum(1)
        return (spoken * self.features.square().sum(1)).to(self.head.dtype)

    def _directions(self, features: Tensor, y: Tensor) -> Float[Tensor, "Q C"]:
        """Which output is asked about: that of the class, else the one that lowers the loss."""
        found = features @ self.weights.mT
        if y.ndim == 1 and not y.is_floating_point() and found.shape[1] > 1:
            return torch.nn.functional.one_hot(y.long(), found.shape[1]).to(found)
        return -_slopes(self.head.likelihood, found, y)


def _features(head: Problem, data: Batches) -> Float[Tensor, "N D"]:
    """Inputs of the only layer of a problem, float64."""
    chunks = []
    for index, blocks in sample_gradients(head, data):
        ((name, part),) = blocks.items() if len(blocks) == 1 else (("", _NONE),)
        if part.inputs.shape[1] != 1 or (part.outputs.shape[2] == 1 and _is_rows(part, head)):
            message = (
                f"the parameters {list(head.params)} are used at {part.inputs.shape[1]} positions "
                f"by {list(blocks)}, expected those of one linear layer that works once a sample; "
                "give its pattern, such as layer='head.*'"
            )
            raise ValueError(message)
        del name
        require_finite(part.inputs[:, 0], index, data)
        chunks.append({"features": Factored(part.inputs, part.inputs[..., :1])})
    return joined(chunks)["features"].inputs[:, 0].double()


_NONE = Factored(torch.zeros(0, 0, 0), torch.zeros(0, 0, 0))


def _is_rows(part: Factored, head: Problem) -> bool:
    """Whether gradients came whole, from something that is no linear layer."""
    rows = next(iter(head.params.values())).shape[0]
    return rows != 1 and part.inputs.shape[2] == head.num_params


def _slopes(likelihood: Likelihood, found: Tensor, y: Tensor) -> Float[Tensor, "N C"]:
    leaf = found.detach().requires_grad_()
    with torch.enable_grad():
        total = likelihood.loss(leaf, y).sum()
    return torch.autograd.grad(total, leaf)[0]


def _refitted(
    head: Problem, features: Float[Tensor, "N D"], y: Tensor, weight_decay: float | int
) -> Float[Tensor, "C D"]:
    parts = [p.double().reshape(len(p), -1) for p in head.params.values()]
    weights = torch.cat(parts, 1).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_STEPS,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = head.likelihood.loss(features @ weights.mT, y).mean()
        total = loss + weight_decay * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
        closure()
    assert weights.grad is not None
    left = float(weights.grad.norm())
    if not left <= _STATIONARY * max(1.0, float(weights.detach().norm())):
        message = (
            f"after {_STEPS} steps the gradient of the refitted layer is {left:.1e}, expected "
            f"below {_STATIONARY:.0e}: the parts would not sum to the outputs; raise weight_decay"
        )
        raise ValueError(message)
    return weights.detach()

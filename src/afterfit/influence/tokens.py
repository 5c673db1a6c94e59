"""Influence on single tokens of a sequence, or on any other part of a query's loss."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.diagonal import by_visibility
from afterfit.curvature.sample_gradients import (
    Blocks,
    blocks_of,
    inner,
    joined,
    sample_gradients,
)
from afterfit.curvature.tracing import Tracer
from afterfit.influence.base import require_finite
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

TokenLosses = Callable[[Tensor, Tensor], Float[Tensor, "B T"]]
"""From outputs and targets the loss of every token in nats, 0 where there is none to predict."""


def token_scores(
    problem: Problem, train: Batches, query: Batches, token_losses: TokenLosses
) -> Float[Tensor, "Q T N"]:
    """Inner products of the gradient of each token's loss with those of training samples.

    ``score(q, t, n) = ∇ℓ_qt · ∇ℓ_n``; where the loss of a sequence is the sum over its tokens, the
    sum over t is the score of :class:`~afterfit.influence.tracin.GradientDot`. One forward pass for
    each sequence, one backward pass for each token; layers keep their factors.

    Parameters
    ----------
    problem
        Its loss is that of a whole sequence. ``restrict`` it to a head or to adapters, for networks
        whose gradients are large.
    token_losses
        The parts of the loss, for queries.

    Raises
    ------
    ValueError
        If a parameter is used by a function without a rule (leave it out with ``restrict``), token
        losses are not (B, T), or a gradient is not finite.

    References
    ----------
    Grosse et al. (2023), "Studying large language model generalization with influence functions",
    arXiv:2308.03296, section 3.3, for the influence of single tokens.
    """
    asked, lengths = [], []
    for index, blocks in _token_gradients(problem, query, token_losses):
        num = len(next(iter(blocks.values())))
        lengths += [num // len(index)] * len(index)
        asked.append(blocks)
    if len(set(lengths)) > 1:
        message = (
            f"queries have between {min(lengths)} and {max(lengths)} tokens, expected one length: "
            "pad them, and let token_losses give 0 there"
        )
        raise ValueError(message)
    rows = joined(asked)
    result = next(iter(problem.params.values())).new_empty(
        query.num_samples, lengths[0], train.num_samples
    )
    for columns, blocks in sample_gradients(problem, train):
        _require_finite(blocks, columns, train)
        result[:, :, columns] = inner(rows, blocks).unflatten(0, (query.num_samples, -1))
    return result


def _token_gradients(
    problem: Problem, data: Batches, token_losses: TokenLosses
) -> Iterator[tuple[Int[Tensor, " B"], Blocks]]:
    """Gradients of all tokens of a sample, one after the other, sample by sample."""
    _, unseen = by_visibility(problem, data)
    if unseen is not None:
        message = (
            f"the layers of {list(unseen.params)[:3]} cannot be seen, expected parameters of "
            "layers; leave them out with restrict(problem, ...)"
        )
        raise ValueError(message)
    tracer = Tracer.of(problem, data)
    for batch in data:
        targets = batch.targets.to(problem.device)
        for positions, trace in tracer.traces(batch):
            slopes = _token_slopes(token_losses, trace.outputs.detach(), targets[positions])
            each = [
                blocks_of(problem, trace, [g[None] for g in pulled])
                for pulled in _pulled(trace.pull(slopes), len(slopes))
            ]
            tokens = joined(each)  # token by token, then sample by sample
            order = torch.arange(len(slopes) * len(positions))
            order = order.view(len(slopes), -1).mT.flatten()
            yield batch.index[positions], {name: b.at(order) for name, b in tokens.items()}


def _pulled(pulled: tuple[Tensor, ...], num: int) -> Iterator[list[Tensor]]:
    for column in range(num):
        yield [g[column] for g in pulled]


def _token_slopes(
    token_losses: TokenLosses, found: Tensor, y: Tensor
) -> Float[Tensor, "T B *outputs"]:
    leaf = found.requires_grad_()
    with torch.enable_grad():
        parts = token_losses(leaf, y)
        if parts.ndim != 2 or len(parts) != len(found):
            message = (
                f"token_losses gave shape {tuple(parts.shape)}, expected ({len(found)}, tokens): "
                "one number for each token of each sequence"
            )
            raise ValueError(message)
        slopes = [torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0] for part in parts.mT]
    return torch.stack(slopes)


def _require_finite(blocks: Blocks, index: Tensor, data: Batches) -> None:
    for part in blocks.values():
        require_finite(part.inputs.flatten(1), index, data)
        require_finite(part.outputs.flatten(1), index, data)

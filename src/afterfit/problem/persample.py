"""Outputs, losses and gradients of every sample, in chunks that fit a memory budget."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from afterfit.problem._autodiff import batched_gradients, differentiable_attention, gradient
from afterfit.problem.data import Batch, Batches
from afterfit.problem.mappable import Mappable
from afterfit.problem.problem import Problem, move
from afterfit.typing import Inputs, Params

GIBIBYTE = 2**30


def outputs(problem: Problem, data: Batches, params: Params | None = None) -> Float[Tensor, "N C"]:
    """Outputs of the network, at the trained parameters or at others."""
    at = problem.params if params is None else params
    data.require_repeatable()
    with torch.inference_mode():
        rows = [problem.forward(at, move(batch.inputs, problem.device)) for batch in data]
    return torch.cat(rows)


def losses(problem: Problem, data: Batches, params: Params | None = None) -> Float[Tensor, " N"]:
    """Loss of every sample in nats, at the trained parameters or at others.

    Raises
    ------
    ValueError
        If targets do not fit the outputs, the loss is not one number a sample, a loss is NaN or
        infinite, or samples come back different when they are read again.
    """
    at = problem.params if params is None else params
    data.require_repeatable()
    columns = []
    with torch.inference_mode():
        for batch in data:
            column = batch_losses(problem, at, batch)
            _require_finite(column, batch.index, data)
            columns.append(column)
    return torch.cat(columns)


def losses_of(problem: Problem, data: Batches, found: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Losses at outputs that are known already, with the same checks as `losses`."""
    targets = data.targets().to(found.device)
    problem.likelihood.check(found, targets)
    column = problem.likelihood.loss(found, targets)
    _require_finite(column, torch.arange(data.num_samples), data)
    return column


def batch_losses(problem: Problem, params: Params, batch: Batch) -> Float[Tensor, " B"]:
    """Losses of one batch, after a check that its targets fit."""
    found = problem.forward(params, move(batch.inputs, problem.device))
    targets = batch.targets.to(problem.device)
    problem.likelihood.check(found, targets)
    return problem.likelihood.loss(found, targets)


def _require_finite(column: Tensor, index: Tensor, data: Batches) -> None:
    bad = ~torch.isfinite(column)
    if bool(bad.any()):
        first = data.ids[int(index[bad.cpu()][0])]
        message = (
            f"the loss of sample {first} is {float(column[bad][0])} ({int(bad.sum())} such among "
            "those read), expected finite losses; look at that sample's input and at the parameters"
        )
        raise ValueError(message)


def gradients(
    problem: Problem, data: Batches, memory_budget: int = GIBIBYTE
) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B P"]]]:
    """Gradient of every sample's loss at the trained parameters, flat, a chunk at a time.

    Networks that cannot be mapped over samples (their batches are bags of tokens with offsets, they
    branch on values, or an operation such as that of ``nn.LSTM`` lacks a batching rule) are
    differentiated one sample at a time.

    Parameters
    ----------
    memory_budget
        Bytes that one chunk of gradients may take.

    Warns
    -----
    RuntimeWarning
        If a network works one sample at a time and fails when it is mapped, for a reason other than
        that torch cannot map an operation.
    """
    row_bytes = problem.num_params * torch.finfo(problem.dtype).bits // 8
    chunk = max(1, int(memory_budget // (4 * row_bytes)))
    mappable = Mappable()
    for index in torch.arange(data.num_samples).split(min(chunk, data.batch_size)):
        yield index, _batch_gradients(problem, data.fetch(index), data, mappable)


def _batch_gradients(
    problem: Problem, batch: Batch, data: Batches, mappable: Mappable
) -> Float[Tensor, "B P"]:
    inputs, targets = move(batch.inputs, problem.device), batch.targets.to(problem.device)
    problem.likelihood.check(problem.forward(problem.params, inputs), targets)

    def loss(params: Params, one: Inputs, y: Tensor) -> Tensor:
        single = tree_map(lambda leaf: leaf[None], one)
        return problem.likelihood.loss(problem.forward(params, single), y[None]).sum()

    def mapped() -> Tensor:
        return flatten_rows(batched_gradients(loss, problem.params, (inputs, targets)))

    def alone() -> Tensor:
        return torch.stack([_one_gradient(problem, data.fetch(i[None])) for i in batch.index])

    return mappable.either(mapped, alone) if has_leading_axis(inputs, len(targets)) else alone()


def has_leading_axis(inputs: Inputs, size: int) -> bool:
    """Whether all of the inputs are tensors with one row for each sample."""
    leaves = tree_leaves(inputs)
    return all(isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size for leaf in leaves)


def _one_gradient(problem: Problem, batch: Batch) -> Float[Tensor, " P"]:
    return flatten(gradient(lambda at: batch_losses(problem, at, batch).sum(), problem.params))


def flatten_rows(parts: Params) -> Float[Tensor, "B P"]:
    """Join tensors with a common leading axis into one row for each of its entries."""
    return torch.cat([flat_after(1, part) for part in parts.values()], dim=1)


def flat_after(lead: int, part: Tensor) -> Tensor:
    """Flatten all axes after the leading ones; of a parameter without axes there is one entry."""
    return part.flatten(lead) if part.ndim > lead else part[..., None]


def flatten(params: Params) -> Float[Tensor, " P"]:
    """Join the tensors of a dict into one vector, in the order of the dict."""
    return torch.cat([value.flatten() for value in params.values()])


def unflatten(vector: Float[Tensor, " P"], like: Params) -> dict[str, Tensor]:
    """Take a flat vector apart into tensors named and shaped like those of a dict."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(like[name]) for (name, part) in zip(like, parts, strict=True)}


def total_gradient(problem: Problem, data: Batches) -> Float[Tensor, " P"]:
    """Gradient of the sum of all losses: one backward pass a batch, no per-sample rows."""
    total = torch.zeros(problem.num_params, dtype=problem.dtype, device=problem.device)
    leaves = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    for batch in data:
        with differentiable_attention(), torch.enable_grad():
            loss = batch_losses(problem, leaves, batch).sum()
            # zeros for parameters that the network does not use, as in the gradients by sample
            parts = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
        total += torch.cat([part.flatten() for part in parts])
    return total

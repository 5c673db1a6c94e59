"""Products with derivative matrices of all samples, batch by batch; the matrices never exist."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.problem._autodiff import differentiable_attention, jvp, over_columns
from afterfit.problem.data import Batch, Batches
from afterfit.problem.mappable import Mappable
from afterfit.problem.persample import flat_after, unflatten
from afterfit.problem.problem import Problem, move
from afterfit.typing import Params

_COLUMNS_AT_ONCE = 16

Product = Callable[[Tensor], Tensor]
"""Product of a batch's curvature with one flat vector (P,)."""


def summed(
    data: Batches, batch_product: Callable[[Batch], Product], columns: Float[Tensor, "P K"]
) -> Float[Tensor, "P K"]:
    """Add up the products of all batches with columns, several columns at once."""
    mappable = Mappable()
    total = torch.zeros_like(columns)
    for batch in data:
        product = batch_product(batch)
        for chosen in torch.arange(columns.shape[1]).split(_COLUMNS_AT_ONCE):
            total[:, chosen] += _over(product, columns[:, chosen], mappable)
    return total


def _over(product: Product, columns: Tensor, mappable: Mappable) -> Tensor:
    def mapped() -> Tensor:
        return over_columns(product)(columns)

    def alone() -> Tensor:
        return torch.stack([product(column) for column in columns.mT], dim=1)

    return mappable.either(mapped, alone) if columns.shape[1] > 1 else alone()


Cotangents = Callable[[Float[Tensor, "B C"], Batch], Float[Tensor, "M B C"]]
"""What is pulled back for the outputs of a batch, for each of M members."""


def pulled_back(
    problem: Problem, data: Batches, num: int, cotangents: Cotangents
) -> Float[Tensor, "M P"]:
    """``Jᵀ u`` summed over all samples for each of `num` members; one pass over the data."""
    leaves = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    first = next(iter(problem.params.values()))
    total = first.new_zeros(num, problem.num_params)
    mappable = Mappable()
    for batch in data:
        with differentiable_attention(), torch.enable_grad():
            found = problem.forward(leaves, move(batch.inputs, problem.device))
        pulled = cotangents(found.detach(), batch)
        for members in torch.arange(num).split(_COLUMNS_AT_ONCE):
            parts = pull(found, tuple(leaves.values()), pulled[members], mappable)
            total[members] += torch.cat([flat_after(1, part) for part in parts], dim=1)
    return total


def pull(
    found: Float[Tensor, "B C"],
    leaves: tuple[Tensor, ...],
    cotangents: Float[Tensor, "M B C"],
    mappable: Mappable,
) -> tuple[Tensor, ...]:
    """Gradients along several cotangents, together where the network can be mapped."""
    settings = {"retain_graph": True, "materialize_grads": True}

    def mapped() -> tuple[Tensor, ...]:
        return torch.autograd.grad(found, leaves, cotangents, is_grads_batched=True, **settings)

    def alone() -> tuple[Tensor, ...]:
        rows = [torch.autograd.grad(found, leaves, one, **settings) for one in cotangents]
        return tuple(torch.stack(part) for part in zip(*rows, strict=True))

    with differentiable_attention():
        return mappable.either(mapped, alone)


Rows = Callable[[Float[Tensor, "B C"], Float[Tensor, "B C"], Batch], Float[Tensor, "B R"]]
"""What is kept of the outputs of a batch and of their derivative along one vector."""


def pushed_forward(
    problem: Problem, data: Batches, columns: Float[Tensor, "P M"], rows: Rows
) -> Float[Tensor, "M N R"]:
    """``J v`` of all samples for each of M vectors, seen through `rows`; M passes."""
    members = []
    for column in columns.mT:
        along = unflatten(column, problem.params)
        parts = []
        for batch in data:
            inputs = move(batch.inputs, problem.device)

            def forward(params: Params, inputs: object = inputs) -> Tensor:
                return problem.forward(params, inputs)

            parts.append(rows(*jvp(forward, problem.params, along), batch))
        members.append(torch.cat(parts))
    return torch.stack(members)

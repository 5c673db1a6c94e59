"""Jacobians of all outputs in all parameters, and the tangent kernels that they make."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from afterfit.linalg.structured import Dense
from afterfit.problem._autodiff import batched_jacobians
from afterfit.problem._autodiff import jacobian as jacobian_of
from afterfit.problem.data import Batch, Batches
from afterfit.problem.mappable import Mappable
from afterfit.problem.persample import GIBIBYTE, flat_after, flatten_rows, has_leading_axis
from afterfit.problem.problem import Problem, move
from afterfit.typing import Inputs, Params

MAX_DENSE_BYTES = 8 * GIBIBYTE
"""A dense matrix above this size is refused."""


def num_outputs(problem: Problem, data: Batches) -> int:
    """Number of outputs C of one sample.

    Raises
    ------
    ValueError
        If the outputs are not one row for each sample.
    """
    inputs = move(data.fetch(torch.arange(1)).inputs, problem.device)
    with torch.inference_mode():
        found = problem.forward(problem.params, inputs)
    if found.ndim != 2 or len(found) != 1:
        message = (
            f"the network returned outputs of shape {tuple(found.shape)} for one sample, expected "
            "(1, outputs); reshape them in the module's forward"
        )
        raise ValueError(message)
    return found.shape[1]


def jacobian_rows(
    problem: Problem, data: Batches, memory_budget: int = GIBIBYTE
) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B C P"]]]:
    """Jacobian ``J[b, c] = ∂f_c(x_b)/∂θ`` of every sample, a chunk of samples at a time.

    Networks that cannot be mapped over samples are differentiated one sample at a time, as for
    :func:`afterfit.problem.gradients`.

    Parameters
    ----------
    memory_budget
        Bytes that one chunk may take.
    """
    row_bytes = problem.num_params * torch.finfo(problem.dtype).bits // 8
    chunk = max(1, int(memory_budget // (3 * row_bytes * num_outputs(problem, data))))
    mappable = Mappable()
    for index in torch.arange(data.num_samples).split(min(chunk, data.batch_size)):
        yield index, _batch_jacobian(problem, data.fetch(index), data, mappable)


def _batch_jacobian(
    problem: Problem, batch: Batch, data: Batches, mappable: Mappable
) -> Float[Tensor, "B C P"]:
    inputs = move(batch.inputs, problem.device)

    def one_output(params: Params, one: Inputs) -> Tensor:
        return problem.forward(params, tree_map(lambda leaf: leaf[None], one))[0]

    def mapped() -> Tensor:
        return _flat_rows(batched_jacobians(one_output, problem.params, (inputs,)))

    def alone() -> Tensor:
        return torch.stack([_one_jacobian(problem, data.fetch(i[None])) for i in batch.index])

    return mappable.either(mapped, alone) if has_leading_axis(inputs, len(batch.index)) else alone()


def _one_jacobian(problem: Problem, batch: Batch) -> Float[Tensor, "C P"]:
    inputs = move(batch.inputs, problem.device)
    parts = jacobian_of(lambda at: problem.forward(at, inputs)[0], problem.params)
    return flatten_rows(parts)


def _flat_rows(parts: Params) -> Float[Tensor, "B C P"]:
    return torch.cat([flat_after(2, part) for part in parts.values()], dim=2)


def jacobian(problem: Problem, data: Batches) -> Dense:
    """Jacobian of all outputs of all samples: row ``n C + c`` is that of output c of sample n.

    Of ``connectivity(problem)`` it is ``J diag(θ̂)``.

    Raises
    ------
    ValueError
        If it would take more than 8 GiB.
    """
    count = num_outputs(problem, data)
    require_room(problem, (data.num_samples * count, problem.num_params), "Jacobian")
    rows = torch.empty(
        data.num_samples * count, problem.num_params, dtype=problem.dtype, device=problem.device
    )
    for index, part in jacobian_rows(problem, data):
        start = int(index[0]) * count
        rows[start : start + part.shape[0] * count] = part.flatten(0, 1)
    return Dense(rows)


def ntk(problem: Problem, data: Batches, other: Batches | None = None) -> Dense:
    """Empirical tangent kernel ``J Jᵀ`` of all outputs of all samples, (N C, N C).

    Row and column ``n C + c`` belong to output c of sample n. Of ``connectivity(problem)`` it is
    the connectivity tangent kernel ``J diag(θ̂)² Jᵀ``. No more than two chunks of Jacobian rows are
    held at a time where the whole Jacobian does not fit.

    Parameters
    ----------
    other
        Samples of the columns; those of the rows when it is left out.

    References
    ----------
    Jacot, Gabriel, Hongler (2018), "Neural tangent kernel", NeurIPS, arXiv:1806.07572. Kim, Park,
    Kim, Yang (2023), "Scale-invariant Bayesian neural networks with connectivity tangent kernel",
    ICLR, arXiv:2209.15208.
    """
    count = num_outputs(problem, data)
    columns = data if other is None else other
    shape = (data.num_samples * count, columns.num_samples * count)
    require_room(problem, shape, "kernel")
    kernel = torch.empty(shape, dtype=problem.dtype, device=problem.device)
    for index, left in jacobian_rows(problem, data):
        rows = slice(int(index[0]) * count, (int(index[-1]) + 1) * count)
        for at, right in _from(problem, columns, int(index[0]) if other is None else 0):
            chosen = slice(int(at[0]) * count, (int(at[-1]) + 1) * count)
            block = left.flatten(0, 1) @ right.flatten(0, 1).mT
            if other is None:
                block = (block + block.mT) / 2 if chosen == rows else block
                kernel[chosen, rows] = block.mT
            kernel[rows, chosen] = block
    return Dense(kernel, is_symmetric=other is None, is_psd=other is None)


def _from(
    problem: Problem, data: Batches, start: int
) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B C P"]]]:
    """Jacobian rows of the samples from a position on."""
    rest = data.subset(torch.arange(start, data.num_samples))
    for index, rows in jacobian_rows(problem, rest):
        yield index + start, rows


def require_room(problem: Problem, shape: tuple[int, int], name: str) -> None:
    """Refuse a dense matrix of more than 8 GiB."""
    needed = shape[0] * shape[1] * torch.finfo(problem.dtype).bits // 8
    if needed > MAX_DENSE_BYTES:
        message = (
            f"the {name} of shape {shape} takes {needed / GIBIBYTE:,.1f} GiB, expected at most "
            f"{MAX_DENSE_BYTES // GIBIBYTE}; take fewer samples (data.subset), a part of the "
            "network (restrict), or products without a matrix: ggn"
        )
        raise ValueError(message)

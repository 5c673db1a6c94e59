"""Products with the generalized Gauss-Newton matrix, which itself is never formed."""

from collections.abc import Callable

import torch
from torch import Tensor

from afterfit.linalg.operator import Kind
from afterfit.linalg.structured import FunctionOperator
from afterfit.problem._autodiff import over_columns, sandwich
from afterfit.problem.data import Batch, Batches
from afterfit.problem.mappable import Mappable
from afterfit.problem.persample import flatten, unflatten
from afterfit.problem.problem import Problem, move
from afterfit.typing import Params

_COLUMNS_AT_ONCE = 16

Product = Callable[[Tensor], Tensor]
"""Product of a batch's curvature with one flat vector (P,)."""


def ggn(problem: Problem, data: Batches) -> FunctionOperator:
    """Generalized Gauss-Newton matrix ``Σ_n J_nᵀ Λ_n J_n`` of the summed loss, as an operator.

    Equal to the Fisher matrix for the likelihoods of this library. A product takes one pass over
    the data, in which each batch is run forward once, with its tangent, and backward once; several
    columns share the forward pass.

    Raises
    ------
    TypeError
        In a product, if the likelihood has no curvature (``PerSample``).

    References
    ----------
    Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent",
    Neural Computation 14(7). Martens (2020), "New insights and perspectives on the natural gradient
    method", JMLR 21(146).
    """

    def batch_product(batch: Batch) -> Product:
        inputs = move(batch.inputs, problem.device)

        def forward(params: Params) -> Tensor:
            return problem.forward(params, inputs)

        def product(vector: Tensor) -> Tensor:
            along = unflatten(vector, problem.params)
            return flatten(sandwich(forward, problem.params, along, problem.likelihood.hessian))

        return product

    return summed_over_batches(problem, data, batch_product, psd=True)


def summed_over_batches(
    problem: Problem,
    data: Batches,
    batch_product: Callable[[Batch], Product],
    psd: bool,
) -> FunctionOperator:
    """Make an operator whose products add up those of all batches."""
    mappable = Mappable()

    def function(columns: Tensor) -> Tensor:
        total = torch.zeros_like(columns)
        for batch in data:
            product = batch_product(batch)
            for chosen in torch.arange(columns.shape[1]).split(_COLUMNS_AT_ONCE):
                total[:, chosen] += _over(product, columns[:, chosen], mappable)
        return total

    size = problem.num_params
    return FunctionOperator(
        Kind((size, size), problem.dtype, problem.device, symmetric=True, psd=psd), function
    )


def _over(product: Product, columns: Tensor, mappable: Mappable) -> Tensor:
    def mapped() -> Tensor:
        return over_columns(product)(columns)

    def alone() -> Tensor:
        return torch.stack([product(column) for column in columns.mT], dim=1)

    return mappable.either(mapped, alone) if columns.shape[1] > 1 else alone()

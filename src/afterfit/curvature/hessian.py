"""Products with the Hessian of the summed loss."""

from torch import Tensor

from afterfit.curvature.products import Product, summed
from afterfit.linalg.operator import Kind
from afterfit.linalg.structured import FunctionOperator
from afterfit.problem._autodiff import hessian_product
from afterfit.problem.data import Batch, Batches
from afterfit.problem.persample import batch_losses, flatten, unflatten
from afterfit.problem.problem import Problem
from afterfit.typing import Params


def hessian(problem: Problem, data: Batches) -> FunctionOperator:
    """Hessian of the summed loss in the coordinates of the problem, as an operator.

    A product takes one pass over the data, forward over reverse. The matrix may have negative
    eigenvalues away from a minimum, also at a trained network. In relative coordinates it is
    ``D H D``: the map ``θ̂ ⊙ (1 + c)`` is linear.

    References
    ----------
    Pearlmutter (1994), "Fast exact multiplication by the Hessian", Neural Computation 6(1).
    """

    def batch_product(batch: Batch) -> Product:
        def loss(params: Params) -> Tensor:
            return batch_losses(problem, params, batch).sum()

        def product(vector: Tensor) -> Tensor:
            along = unflatten(vector, problem.params)
            return flatten(hessian_product(loss, problem.params, along))

        return product

    size = problem.num_params
    kind = Kind((size, size), problem.dtype, problem.device, symmetric=True)
    return FunctionOperator(kind, lambda columns: summed(data, batch_product, columns))

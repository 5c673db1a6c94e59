"""Products with Fisher matrices that are sums of outer products of gradients."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature.root import Gram, columns_root
from afterfit.problem._autodiff import output_gradient
from afterfit.problem.data import Batches
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem


def fisher(num_samples: int, generator: Generator) -> Callable[[Problem, Batches], Gram]:
    """Fisher matrix with targets drawn from the model: a curvature to pass on.

    ``Σ_n E_y[g g ᵀ]`` with the gradient g of sample n for a drawn target, the mean over
    ``num_samples`` draws. Its expectation is the generalized Gauss-Newton matrix. The targets are
    drawn once, when a problem is given, so that all products are with one matrix.

    Raises
    ------
    ValueError
        If ``num_samples`` is below 1.

    References
    ----------
    Kunstner, Balles, Hennig (2019), "Limitations of the empirical Fisher approximation for natural
    gradient descent", NeurIPS, arXiv:1905.12558, eq. (5).
    """
    if num_samples < 1:
        message = f"num_samples is {num_samples}, expected at least 1"
        raise ValueError(message)

    def drawn(problem: Problem, data: Batches) -> Gram:
        found = outputs(problem, data)
        columns = [
            _loss_gradient(problem, found, problem.likelihood.sample(found, generator))
            for _ in range(num_samples)
        ]
        return Gram(columns_root(problem, data, torch.stack(columns, dim=-1) / num_samples**0.5))

    return drawn


def empirical_fisher(problem: Problem, data: Batches) -> Gram:
    """Sum over samples of ``g gᵀ`` with the gradient g of the loss at the given target.

    It needs nothing but a loss. It is no approximation of the Fisher matrix unless the model is
    right and the data many (Kunstner, Balles, Hennig 2019, arXiv:1905.12558).
    """
    found = outputs(problem, data)
    targets = data.targets().to(problem.device)
    problem.likelihood.check(found, targets)
    columns = _loss_gradient(problem, found, targets)[..., None]
    return Gram(columns_root(problem, data, columns))


def _loss_gradient(
    problem: Problem, found: Float[Tensor, "N C"], targets: Tensor
) -> Float[Tensor, "N C"]:
    """Gradient of each sample's loss in its outputs."""
    return output_gradient(lambda f: problem.likelihood.loss(f, targets).sum(), found)

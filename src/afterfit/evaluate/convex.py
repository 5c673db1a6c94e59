"""Exact retraining without groups of samples, for linear models: the truth that needs no seeds.

The objective is ``Σ_kept ℓ_n + (precision / 2) ‖W‖²``: what is left out leaves the sum, and the
penalty stays. ``precision = N γ`` is a weight decay of γ on the mean loss of N samples.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

_STEPS = 100
Fit = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def leave_out_ridge(
    train: tuple[Float[Tensor, "N D"], Float[Tensor, "N C"]],
    query: tuple[Float[Tensor, "Q D"], Float[Tensor, "Q C"]],
    groups: Sequence[Int[Tensor, " _"]],
    precision: float,
) -> Float[Tensor, "Q G"]:
    """Rise of ``½ ‖Wᵀx - y‖²`` of each query when a group leaves a ridge regression, float64."""

    def fit(inputs: Tensor, targets: Tensor) -> Tensor:
        matrix = inputs.mT @ inputs
        matrix.diagonal().add_(precision)
        return torch.linalg.solve(matrix, inputs.mT @ targets)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1) / 2

    return _rises(train, query, groups, precision, fit, loss)


def leave_out_logistic(
    train: tuple[Float[Tensor, "N D"], Int[Tensor, " N"]],
    query: tuple[Float[Tensor, "Q D"], Int[Tensor, " Q"]],
    groups: Sequence[Int[Tensor, " _"]],
    precision: float,
) -> Float[Tensor, "Q G"]:
    """Rise of each query's loss in nats when a group leaves a softmax regression, float64.

    Every fit is Newton's method to a gradient of 1e-9 of the number of samples.

    Raises
    ------
    ValueError
        If Newton's method does not converge.
    """
    classes = int(torch.cat([train[1], query[1]]).max()) + 1

    def fit(inputs: Tensor, targets: Tensor) -> Tensor:
        return _softmax_regression(inputs, targets, classes, precision)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    return _rises(train, query, groups, precision, fit, loss)


def _rises(
    train: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    groups: Sequence[Tensor],
    precision: float,
    fit: Fit,
    loss: Loss,
) -> Tensor:
    if precision <= 0:
        message = f"precision is {precision}, expected above 0, so that every fit is unique"
        raise ValueError(message)
    inputs, asked = train[0].double(), query[0].double()
    targets = train[1].double() if train[1].is_floating_point() else train[1]
    wanted = query[1].double() if query[1].is_floating_point() else query[1]
    here = loss(asked @ fit(inputs, targets), wanted)
    columns = []
    for group in groups:
        kept = torch.ones(len(inputs), dtype=torch.bool)
        kept[group] = False
        columns.append(loss(asked @ fit(inputs[kept], targets[kept]), wanted) - here)
    return torch.stack(columns, dim=1)


def _softmax_regression(inputs: Tensor, targets: Tensor, classes: int, precision: float) -> Tensor:
    size = inputs.shape[1]
    weights = inputs.new_zeros(size, classes)
    wanted = functional.one_hot(targets, classes).double()
    eye = torch.eye(size * classes, dtype=inputs.dtype)

    def objective(at: Tensor) -> Tensor:
        loss = functional.cross_entropy(inputs @ at, targets, reduction="sum")
        return loss + precision / 2 * at.square().sum()

    for _ in range(_STEPS):
        p = (inputs @ weights).softmax(1)
        gradient = inputs.mT @ (p - wanted) + precision * weights
        if float(gradient.abs().max()) <= 1e-9 * len(inputs):
            return weights
        spread = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        hessian = torch.einsum("ni,nj,ncd->icjd", inputs, inputs, spread).reshape(eye.shape)
        step = torch.linalg.solve(hessian + precision * eye, gradient.flatten()).view_as(weights)
        length, here, slope = 1.0, objective(weights), (gradient * step).sum()
        while objective(weights - length * step) > here - 1e-4 * length * slope and length > 1e-6:
            length /= 2
        weights = weights - length * step
    message = f"Newton's method did not converge in {_STEPS} steps; raise the precision"
    raise ValueError(message)

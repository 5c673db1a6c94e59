"""What one visit of a sample in training adds to the sums that are kept of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from afterfit.influence.outcomes import disagreement, has_outcomes, outcomes
from afterfit.problem.likelihood import Likelihood

_SUMMED = ("seen", "loss", "squared_loss", "margin", "gradient_norm", "squared_gradient_norm")
COLUMNS = (*_SUMMED, "skipped", "right", "forgotten", "last_right")
LAST_RIGHT = COLUMNS.index("last_right")


class _Measured(NamedTuple):
    loss: Float[Tensor, " B"]
    margin: Float[Tensor, " B"]
    gradient_norm: Float[Tensor, " B"]


def precise(device: torch.device) -> torch.dtype:
    """The longest floating numbers that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _measure(likelihood: Likelihood, found: Tensor, y: Tensor) -> _Measured:
    if has_outcomes(likelihood):  # their residual p - y is the gradient
        found = found.to(precise(found.device))
        seen = outcomes(likelihood, found, y)
        norm = seen.residual.norm(dim=-1)
        return _Measured(likelihood.loss(found, y), -disagreement(seen), norm)
    with torch.enable_grad():
        leaf = found.clone().requires_grad_()
        loss = likelihood.loss(leaf, y)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    norm = gradient.flatten(1).norm(dim=1)
    return _Measured(loss.detach(), torch.zeros_like(norm), norm)


@torch.no_grad()
def visits(
    likelihood: Likelihood,
    index: Int[Tensor, " B"],
    found: Tensor,
    y: Tensor,
    last: Bool[Tensor, " B"],
) -> Float[Tensor, "B K"]:
    """One row a visit, whose sum by sample is to be added to the :data:`COLUMNS` of the sample.

    Parameters
    ----------
    index
        Sample of each visit, sorted: visits of one sample stand in their order.
    found, y
        Outputs and targets of the visits.
    last
        Whether the sample was right when it was last seen, before all of them.
    """
    wide = precise(found.device)
    loss, margin, norm = (column.to(wide) for column in _measure(likelihood, found, y))
    finite = torch.isfinite(loss + margin + norm)
    sums = torch.stack(
        [torch.ones_like(loss), loss, loss.square(), margin, norm, norm.square()], dim=1
    )

    right = torch.where(finite, margin > 0, last)
    before = last.clone()
    before[1:] = torch.where(index[1:] == index[:-1], right[:-1], last[1:])
    counts = torch.stack([~finite, right & finite, before & ~right], dim=1).to(wide)
    change = right.to(wide) - before.to(wide)  # changes of one sample telescope to its last state

    return torch.cat([sums.where(finite[:, None], 0), counts, change[:, None]], dim=1)


def added(tables: Sequence[Float[Tensor, "N K"]]) -> Float[Tensor, "N K"]:
    """Sum of tables of samples; one that ended right in several of them ended right once."""
    total = torch.stack(list(tables)).sum(0)
    total[:, LAST_RIGHT].clamp_(0, 1)
    return total

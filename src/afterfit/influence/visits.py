"""What one visit of a sample in training adds to the sums that are kept of it."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from afterfit.problem.likelihood import Likelihood
from afterfit.problem.likelihood.targets import precise

_SUMMED = ("seen", "loss", "squared_loss", "margin", "gradient_norm", "squared_gradient_norm")
COLUMNS = (*_SUMMED, "skipped", "learned", "forgotten")
LEARNED, FORGOTTEN = COLUMNS.index("learned"), COLUMNS.index("forgotten")


@torch.no_grad()
def visits(
    likelihood: Likelihood,
    index: Int[Tensor, " B"],
    found: Tensor,
    y: Tensor,
    last: Bool[Tensor, " B"],
) -> Float[Tensor, "B K"]:
    """One row a visit, whose sum by sample is to be added to the :data:`COLUMNS` of the sample.

    A sample is right after so many visits if it was learned more often than it was forgotten.

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
    loss, margin, norm = (column.to(wide) for column in likelihood.visit(found, y))
    sums = torch.stack([torch.ones_like(loss), loss, loss * loss, margin, norm, norm * norm], dim=1)
    total = sums.sum(1)
    skipped = (total - total) != 0  # NaN, where the total is not finite
    sums.masked_fill_(skipped[:, None], 0)

    # A visit that is skipped leaves its sample as the latest one that is not has left it.
    place = torch.arange(len(index), device=index.device)
    latest = torch.where(skipped, 0, place).cummax(0).values
    right = torch.where(skipped, last, margin > 0)[latest].where(index[latest] == index, last)
    previous = torch.where(index[1:] == index[:-1], right[:-1], last[1:])
    before = torch.cat([last[:1], previous])

    counts = torch.stack([skipped, right > before, before > right], dim=1)
    return torch.cat([sums, counts], dim=1)


def were_right(rows: Float[Tensor, "B K"]) -> Bool[Tensor, " B"]:
    """Whether the samples of these sums were right when they were last seen."""
    return rows[:, LEARNED] > rows[:, FORGOTTEN]


def added(tables: Sequence[Float[Tensor, "N K"]]) -> Float[Tensor, "N K"]:
    """Sum of tables of samples; one that ended right in several of them ended right once."""
    total = torch.stack(list(tables)).sum(0)
    right = (total[:, LEARNED] - total[:, FORGOTTEN]).clamp(0, 1)
    total[:, LEARNED] = total[:, FORGOTTEN] + right
    return total


def require_labels(likelihood: Likelihood, score: str) -> None:
    """Raise ``TypeError`` where labels have no probability that the score could be of."""
    if not likelihood.names_classes:
        message = (
            f"{score} needs the probability of each label, and {type(likelihood).__name__} has "
            "none; take mean_loss or gradient_variance"
        )
        raise TypeError(message)


def require_seen(seen: Int[Tensor, " N"], skipped: int, times: int) -> None:
    """Raise ``ValueError`` where samples were seen too seldom, and warn of visits left out."""
    short = (seen < times).nonzero()[:, 0]
    if len(short):
        message = (
            f"{len(short)} of {len(seen)} samples were seen fewer than {times} times (the first "
            f"are {short[:5].tolist()}), expected every sample: train for longer, bring the traces "
            "of all processes together (all_reduce or merged), or score the others with "
            f"trace.subset(trace.seen >= {times})"
        )
        raise ValueError(message)
    if skipped:
        message = (
            f"{skipped} visits had a loss that is not finite and are left out of the scores; "
            "trace.skipped tells of which samples"
        )
        warnings.warn(message, stacklevel=5)

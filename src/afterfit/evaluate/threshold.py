"""Where to cut scores so that the samples above the cut are the ones to look at."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afterfit.evaluate.separation import otsu

Transform = Callable[[Tensor], Tensor]
"""An increasing function that acts on each score by itself."""

_UNCERTAIN = 0.25  # labels that are counted as right beside those that the probabilities expect


def signed_sqrt(scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Square root of the size with the sign kept; of self-influence, the spread of the loss.

    Examples
    --------
    >>> signed_sqrt(torch.tensor([-4.0, 0.0, 9.0]))
    tensor([-2.,  0.,  3.])
    """
    return scores.sign() * scores.abs().sqrt()


@dataclass(frozen=True)
class Cut:
    """A cut through scores; large scores are suspicious.

    Attributes
    ----------
    is_issue
        True where the score lies above the threshold. Equal scores are never parted.
    threshold
        In the units of the scores.
    expected_wrong
        Estimated share of wrong labels in the whole set, not only among the flagged.
    separability
        Share of the variance of the transformed scores that two groups explain, see `otsu`.
        About 0.64 to 0.75 is what scores show that do not fall into groups. NaN where the cut does
        not come from the scores.
    name
        Which cut this is, for tables and reports.
    """

    is_issue: Bool[Tensor, " N"]
    threshold: float
    expected_wrong: float
    separability: float
    name: str


def otsu_cut(scores: Float[Tensor, " N"], transform: Transform = signed_sqrt) -> Cut:
    """Flag the upper of the two groups that explain most variance.

    It always finds two groups unless all scores are equal: look at `separability` before you
    believe that there are two.

    References
    ----------
    Otsu (1979), A threshold selection method from gray-level histograms.
    doi:10.1109/TSMC.1979.4310076

    Examples
    --------
    >>> otsu_cut(torch.tensor([0.1, 0.2, 0.1, 9.0])).is_issue
    tensor([False, False, False,  True])
    """
    transformed = _transformed(scores, transform)
    split = otsu(transformed)
    num = round(split.fraction_above * len(scores))
    return _cut(scores, num, split.fraction_above, split.separability, "Otsu")


def probability_cut(
    p_wrong: Float[Tensor, " N"], scores: Float[Tensor, " N"], rate: float | None = None
) -> Cut:
    """Flag by probabilities that never fall as the score rises.

    Parameters
    ----------
    p_wrong
        Probability that each label is wrong.
    scores
        In whose units the threshold is given.
    rate
        Flag as many as possible while at most this share of the flagged is expected to be right
        (Newton, Noueiry, Sarkar and Ahlquist 2004, "Detecting differential gene expression with a
        semiparametric hierarchical mixture method", Biostatistics 5), with a quarter of a label
        more that is right, since probabilities are estimates and a few of them show no rate; None
        flags what is more probably wrong than right.

    Examples
    --------
    >>> p = torch.tensor([0.01, 0.4, 0.9, 0.99])
    >>> probability_cut(p, p).is_issue
    tensor([False, False,  True,  True])
    >>> probability_cut(p, p, rate=0.25).is_issue
    tensor([False, False,  True,  True])
    """
    if rate is not None and not 0 < rate < 1:
        msg = f"rate is {rate}, expected between 0 and 1: pass 0.1 to allow one clean sample in ten"
        raise ValueError(msg)
    wrong = _on_cpu(p_wrong)
    if not bool(wrong.isfinite().all()):
        msg = "p_wrong holds NaN, expected a probability for every sample: there is none to cut by"
        raise ValueError(msg)
    if rate is None:
        num, name = int((wrong > 0.5).sum()), "more probably wrong than right"
    else:
        ranked = wrong.sort(descending=True).values
        clean = (_UNCERTAIN + (1 - ranked).cumsum(0)) / torch.arange(1, len(ranked) + 1)
        within = (clean <= rate).nonzero()[:, 0]
        num, name = int(within[-1]) + 1 if len(within) else 0, f"false discovery rate {rate:g}"
    return _cut(scores, num, float(wrong.mean()), float("nan"), name)


def budget_cut(scores: Float[Tensor, " N"], budget: int, transform: Transform = signed_sqrt) -> Cut:
    """Flag the `budget` largest scores, fewer where a tie at the cut would have to be parted.

    The share of wrong labels does not follow from a budget; the one given is that of `otsu_cut`.

    Examples
    --------
    >>> budget_cut(torch.tensor([0.1, 0.4, 0.4, 9.0]), budget=2).is_issue
    tensor([False, False, False,  True])
    """
    if not 0 <= budget <= len(scores):
        msg = (
            f"budget is {budget}, expected between 0 and {len(scores)}, the number of scores: "
            "pass how many samples will be inspected"
        )
        raise ValueError(msg)
    split = otsu(_transformed(scores, transform))
    return _cut(scores, budget, split.fraction_above, split.separability, f"budget {budget}")


def _cut(scores: Tensor, num: int, expected_wrong: float, separability: float, name: str) -> Cut:
    """The cut that flags the `num` largest scores, less those that tie with one left behind."""
    values = _on_cpu(scores)
    ranked = values.sort(descending=True).values
    if num == 0 or ranked[0] == ranked[-1]:
        threshold = float(ranked[0])
    elif num == len(ranked):
        threshold = float(torch.nextafter(ranked[-1], ranked.new_tensor(-torch.inf)))
    else:
        middle = float((ranked[num - 1] + ranked[num]) / 2)
        threshold = middle if middle < ranked[num - 1] else float(ranked[num])
    is_issue = (values > threshold).to(scores.device)
    return Cut(is_issue, threshold, expected_wrong, separability, name)


def _transformed(scores: Tensor, transform: Transform) -> Tensor:
    """The scores on the scale where they are cut, in float64."""
    if scores.ndim != 1 or len(scores) < 2:
        msg = (
            f"scores have shape {tuple(scores.shape)}, expected (N,) with N >= 2: "
            "pass one score per sample"
        )
        raise ValueError(msg)
    transformed = transform(_on_cpu(scores))
    if not bool(transformed.isfinite().all()):
        num = int((~transformed.isfinite()).sum())
        msg = (
            f"{num} of {len(scores)} scores are not finite after the transform (smallest score "
            f"{float(scores.min()):.4g}), expected finite numbers: leave samples without a score "
            "out, and pass a transform that takes every score"
        )
        raise ValueError(msg)
    return transformed


def _on_cpu(scores: Tensor) -> Tensor:
    return scores.detach().cpu().double()

"""What walks that unlearn say of every label: a score, a probability, a share, and how sure.

See :mod:`afterfit.influence.unlearning`, which makes the walks. The constants were chosen on the
data that experiments/gex/NOTES.md names, and are reported on others there.
"""

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import final

import torch
from jaxtyping import Bool, Float
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import softplus

from afterfit.evaluate.planted import fit_planted
from afterfit.influence.covariance import Scores
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

_SLOPE, _SHIFT = 1.5, -0.25  # of the log odds of the two fits
_HARD = 0.25  # of the labels that members contradict, so many may only be hard
_OWN_WEIGHT = 3.0  # of the own loss of a regression: its hot members lose more of what it knew
_AGREEING = 0.6  # reliability of the ranking below which it is doubted
_TOLD_APART = 0.6  # AUC of planted labels below which nothing was told apart


@final
@dataclass(frozen=True)
class Share:
    """Share of wrong labels with its 90 % interval, all from 0 to 1.

    The lower end is what planted labels show, less a quarter of what the members contradict, since
    hard samples are contradicted too; the upper end is all that they contradict, over the part of
    the planted labels that they find.
    """

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class LabelEvidence:
    """What the walks show of every label.

    Attributes
    ----------
    scores
        How suspicious each label is, in robust standard deviations of the data, with its error.
        The error is pooled over samples of like score, and holds what differs between the walks:
        order, planted labels and decay.
    p_wrong
        Probability that the label is wrong, (N,); NaN everywhere if planted labels do not show it.
    share
        Share of wrong labels, None where ``p_wrong`` is NaN.
    memory
        How far the trained network itself has memorized the suspicious labels: 0, not at all (its
        own loss then takes part in the score), to 1, entirely.
    told_apart
        AUC by which the better walk tells its planted labels from the rest.
    reliability
        Rank correlation of two walks, stepped up to all of them (Spearman and Brown 1910).
    mean
        Expected target by the members, (N, C).
    fallback
        Why the loss is the score, or empty.
    cautions
        What a reader must know.
    influence
        Losses at the members, to be asked further.
    """

    scores: Scores
    p_wrong: Float[Tensor, " N"]
    share: Share | None
    memory: float
    told_apart: float
    reliability: float
    mean: Float[Tensor, "N C"]
    fallback: str
    cautions: tuple[str, ...]
    influence: CovarianceInfluence | None


@final
@dataclass(frozen=True)
class Chain:
    """What one walk shows: the samples it planted, and weighted means over its scored stages."""

    planted: Bool[Tensor, " N"]
    weight: float
    mean: Float[Tensor, "N C"]
    doubt: Float[Tensor, " N"]
    loss: Float[Tensor, " N"]
    score: Float[Tensor, " N"]
    told_apart: float
    keys: tuple[tuple[int, int], ...]
    columns: tuple[Tensor, ...]

    @property
    def rest(self) -> Bool[Tensor, " N"]:
        """Samples whose label the walk was given as it is."""
        return ~self.planted


def standard(values: Float[Tensor, " N"], of: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Values less the median, over the standard deviation, of some of them."""
    chosen = values[of]
    spread = chosen.std()
    return (values - chosen.median()) / (spread if float(spread) > 0 else 1.0)


def _averaged(chains: list[Chain], columns: list[Tensor]) -> Float[Tensor, "N *C"]:
    """Mean over the walks that were given the label of a sample as it is."""
    total, mass = torch.zeros(()), torch.zeros(())
    for chain, column in zip(chains, columns, strict=True):
        share = chain.weight * chain.rest.double()
        share = share if column.ndim == 1 else share[:, None]
        total, mass = total + share * column, mass + share
    return total / mass


def judged(
    problem: Problem,
    train: Batches,
    own: Float[Tensor, " N"],
    found: Tensor,
    chains: list[Chain],
    influence: CovarianceInfluence,
    told: tuple[str, ...],
) -> LabelEvidence:
    """Join what the walks and the trained network say.

    Parameters
    ----------
    own, found
        Losses and outputs of the trained network.
    chains
        What each walk shows.
    told
        Cautions so far.
    """
    told_apart = max(chain.told_apart for chain in chains)
    num_planted = int(chains[0].planted.sum())
    chance = 2 * 0.29 / math.sqrt(num_planted)  # two standard errors of an AUC of nothing
    mean = _averaged(chains, [chain.mean for chain in chains])
    agreement = _agreement(chains)
    bar = _TOLD_APART + chance
    least = min(chain.told_apart for chain in chains)
    if told_apart < bar or (least < bar and agreement < _AGREEING):
        reason = (
            f"the walks cannot tell {num_planted} planted wrong labels from the others (AUC "
            f"{least:.2f} to {told_apart:.2f}, expected above {bar:.2f}), or do not agree "
            f"(reliability {agreement:.2f}): labels may be random, or the network may have learned "
            "nothing that samples share"
        )
        evidence = by_loss(problem, found, own, reason)
        return replace(
            evidence, mean=mean, told_apart=told_apart, reliability=agreement, influence=influence
        )
    score = _averaged(chains, [chain.score for chain in chains])
    hot = _averaged(chains, [chain.loss for chain in chains])
    everything = torch.ones_like(score, dtype=torch.bool)
    doubt = problem.likelihood.doubts(
        problem.likelihood.mean(found).cpu().double(), train.targets().cpu()
    ).amax(1)
    plain = softplus(doubt) if problem.likelihood.sums_labels(mean) else own
    forgotten = _unmemorized(score, plain, hot)
    weight = 1.0 if problem.likelihood.names_classes else _OWN_WEIGHT
    free = 0.5 * (standard(plain, everything) + standard(doubt, everything))
    combined = standard(score, everything) + weight * forgotten * free
    telling = [c if c.told_apart >= bar else replace(c, weight=1e-9) for c in chains]
    odds, share = _calibrated(problem, telling)
    p_wrong = _never_falling(torch.sigmoid(odds), combined)
    cautions = [*told]
    if agreement < _AGREEING:
        cautions.append(
            f"The walks agree only in part on the ranking (reliability {agreement:.2f}): look "
            "at more than the first rows, or give a larger budget."
        )
    value = float(p_wrong.mean())
    return LabelEvidence(
        scores=Scores(combined, _stderr(chains, combined)),
        p_wrong=p_wrong,
        share=Share(
            value, min(share.low, value) if share.low > 0 else 0.0, min(1.0, max(share.high, value))
        ),
        memory=1 - forgotten,
        told_apart=told_apart,
        reliability=agreement,
        mean=mean,
        fallback="",
        cautions=tuple(cautions),
        influence=influence,
    )


def _unmemorized(score: Tensor, own: Tensor, hot: Tensor) -> float:
    """How much the trained network loses on the most suspicious samples, of what members lose."""
    top = score.argsort(descending=True)[: max(10, len(score) // 20)]
    here = float((own[top] - own.median()).median())
    there = float((hot[top] - hot.median()).median())
    return min(1.0, max(0.0, here / there)) if there > 0 else 0.0


def _calibrated(problem: Problem, chains: list[Chain]) -> tuple[Float[Tensor, " N"], Share]:
    """Log odds of a wrong label, and the ends of the share's interval."""
    odds, lows, highs = [], 0.0, 0.0
    mass = sum(chain.weight for chain in chains)
    for chain in chains:
        contradicted, error = _contradicted(problem, chain)
        most = contradicted + 1.645 * error
        by_doubt = fit_planted(chain.doubt[chain.planted], chain.doubt[chain.rest], most)
        by_score = fit_planted(chain.score[chain.planted], chain.score[chain.rest], most)
        mixed = 0.5 * (by_doubt.log_odds(chain.doubt) + by_score.log_odds(chain.score))
        odds.append(_SLOPE * mixed.clamp(-14, 14) + _SHIFT)
        if not problem.likelihood.names_classes:
            contradicted = most = by_doubt.high
        lows += chain.weight * max(0.0, by_doubt.low - _HARD * contradicted) / mass
        highs += chain.weight * max(by_doubt.high, most) / mass
    return torch.logit(_averaged(chains, [torch.sigmoid(o) for o in odds])), Share(0.0, lows, highs)


def _contradicted(problem: Problem, chain: Chain) -> tuple[float, float]:
    """Share of the labels that members contradict, over the part of planted ones, and its error."""
    if not problem.likelihood.names_classes:
        return 1.0, 0.0
    num_planted, num = int(chain.planted.sum()), int(chain.rest.sum())
    of_planted = max(0.2, float((chain.doubt[chain.planted] > 0).double().mean()))
    of_rest = float((chain.doubt[chain.rest] > 0).double().mean())
    value = min(1.0, of_rest / of_planted)
    drawn = (1 - of_rest) / max(1.0, num * of_rest) + (1 - of_planted) / (num_planted * of_planted)
    return value, value * math.sqrt(drawn)


def _never_falling(p: Float[Tensor, " N"], score: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The probabilities nearest to these that never fall as the score rises."""
    order = score.argsort(stable=True)
    fitted = isotonic_regression(p[order].numpy()).x
    return torch.empty_like(p).scatter_(0, order, torch.from_numpy(fitted.copy()))


def _stderr(chains: list[Chain], combined: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Standard error from the differences of the walks, pooled over samples of like score."""
    scale = float(_averaged(chains, [chain.score for chain in chains]).std()) or 1.0
    scores = torch.stack([chain.score for chain in chains])
    mask = torch.stack([chain.rest for chain in chains]).double()
    weights = mask * torch.tensor([[chain.weight] for chain in chains], dtype=torch.double)
    squares = (weights / weights.sum(0)).square().sum(0)
    number = mask.sum(0)
    usable = number >= 2
    apart = (scores - (mask * scores).sum(0) / number.clamp_min(1)).square()
    variance = (mask * apart).sum(0) / (number - 1).clamp_min(1) * squares
    order = combined.argsort(stable=True)
    width = max(20, len(combined) // 50)
    kernel = torch.ones(1, 1, 2 * width + 1, dtype=torch.double)
    rows = torch.stack([(variance * usable)[order], usable[order].double()])[:, None]
    total, near = torch.nn.functional.conv1d(rows, kernel, padding=width)[:, 0]
    whole = variance[usable].mean()
    pooled = torch.empty_like(variance)
    pooled[order] = torch.where(near >= 10, total / near.clamp_min(1), whole).sqrt()
    return pooled * (squares / squares[usable].mean()).sqrt() / scale


def _agreement(chains: list[Chain]) -> float:
    """Mean rank correlation of two walks, stepped up to all of them."""
    if any(float(chain.score[chain.rest].std()) == 0 for chain in chains):
        return 0.0
    found = [_correlation(one, other) for one, other in combinations(chains, 2)]
    mean = sum(found) / len(found)
    return len(chains) * mean / (1 + (len(chains) - 1) * mean) if mean > 0 else mean


def _correlation(one: Chain, other: Chain) -> float:
    both = one.rest & other.rest
    return float(spearmanr(one.score[both], other.score[both])[0])  # pyright: ignore[reportArgumentType]


def by_loss(
    problem: Problem, found: Float[Tensor, "N C"], own: Float[Tensor, " N"], reason: str
) -> LabelEvidence:
    """Rank by the loss of the trained network, and say why."""
    unknown = torch.full_like(own, torch.nan)
    likelihood = problem.likelihood
    mean = likelihood.mean(found).cpu() if likelihood.says("mean") else found.cpu()
    return LabelEvidence(
        scores=Scores(own, unknown),
        p_wrong=unknown,
        share=None,
        memory=float("nan"),
        told_apart=float("nan"),
        reliability=float("nan"),
        mean=mean,
        fallback=reason,
        cautions=(f"Ranked by the loss of the trained network, ranked list only: {reason}.",),
        influence=None,
    )

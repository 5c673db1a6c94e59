"""How well scores foretell the loss after training on a part of the data.

The linear datamodeling score (LDS) of Park et al. 2023, with the two numbers without which it says
little: an interval, and the ceiling that the noise of the trainings themselves leaves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Generator, Tensor

from afterfit.evaluate.correlation import Correlation

Values = NDArray[np.float64]
Places = NDArray[np.int64]


@final
@dataclass(frozen=True)
class Retrainings:
    """What queries lose after trainings on S subsets of N samples, with R seeds each.

    Attributes
    ----------
    kept
        Which samples each subset holds, (S, N).
    losses
        Loss of Q queries after each training, (S, R, Q), in nats.
    correct
        1 where the query was classified rightly, 0 where not, NaN where there are no classes.

    Raises
    ------
    ValueError
        If shapes do not fit, or a loss is not finite.
    """

    kept: Bool[Tensor, "S N"]
    losses: Float[Tensor, "S R Q"]
    correct: Float[Tensor, "S R Q"]

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.losses) or self.losses.shape != self.correct.shape:
            message = (
                f"kept is {tuple(self.kept.shape)}, losses {tuple(self.losses.shape)} and correct "
                f"{tuple(self.correct.shape)}, expected (S, N), (S, R, Q) and (S, R, Q)"
            )
            raise ValueError(message)
        bad = ~torch.isfinite(self.losses)
        if bool(bad.any()):
            subset, seed, query = bad.nonzero()[0].tolist()
            message = (
                f"the loss of query {query} after training {seed} on subset {subset} is not "
                f"finite ({int(bad.sum())} such), expected numbers: lower the learning rate of "
                "the retraining"
            )
            raise ValueError(message)


@final
@dataclass(frozen=True)
class Ceiling:
    """How much of the truth is signal.

    Attributes
    ----------
    between_seeds
        Mean rank correlation of the losses of two trainings on the same subsets, -1 to 1.
    reliability
        The same for the mean over all R seeds (Spearman and Brown 1910).
    highest
        The score that perfect knowledge would reach: the root of the reliability.
    """

    between_seeds: float
    reliability: float
    highest: float


def drawn_subsets(
    num_samples: int, num_subsets: int, generator: Generator, share: float = 0.5
) -> Bool[Tensor, "S N"]:
    """Subsets that hold a given share of the samples, drawn without replacement.

    Examples
    --------
    >>> drawn_subsets(10, 3, torch.Generator().manual_seed(0)).sum(1).tolist()
    [5, 5, 5]
    """
    held = int(share * num_samples)
    if not 0 < held < num_samples:
        message = (
            f"a share of {share} of {num_samples} samples is {held}, expected at least one sample "
            "in each subset and one outside"
        )
        raise ValueError(message)
    kept = torch.zeros(num_subsets, num_samples, dtype=torch.bool)
    for row in kept:
        row[torch.randperm(num_samples, generator=generator)[:held]] = True
    return kept


def linear_datamodeling_score(
    scores: Float[Tensor, "Q N"], truth: Retrainings
) -> Float[Tensor, " Q"]:
    """Rank correlation, for every query, of foretold and true losses over the subsets.

    Foretold is the sum of the scores of the samples that a subset leaves out, since a positive
    score says that the query's loss rises without the sample. True is the mean loss over the
    seeds. The mean over the queries is the LDS. NaN where all foretold or all true losses of a
    query are equal.

    References
    ----------
    Park, Georgiev, Ilyas, Leclerc and Madry (2023), TRAK: Attributing model behavior at scale,
    ICML, definition 2.3. arXiv:2303.14186
    """
    foretold, true = _foretold(scores, truth), _true(truth)
    return torch.from_numpy(_spearman(foretold, true))


def linear_datamodeling_interval(
    scores: Float[Tensor, "Q N"],
    truth: Retrainings,
    num_resamples: int,
    generator: Generator,
    level: float = 0.95,
) -> Correlation:
    """The LDS with a percentile interval under resampling of subsets and of queries.

    Both are drawn with replacement in every resample, which errs on the wide side (Owen 2007,
    "The pigeonhole bootstrap").
    """
    foretold, true = _foretold(scores, truth), _true(truth)

    def value(rows: Places, columns: Places) -> float:
        picked = np.ix_(rows, columns)
        return _mean(_spearman(foretold[picked], true[picked]))

    return _interval(value, foretold.shape, num_resamples, generator, level)


def linear_datamodeling_difference(
    scores: Float[Tensor, "Q N"],
    others: Float[Tensor, "Q N"],
    truth: Retrainings,
    num_resamples: int,
    generator: Generator,
    level: float = 0.95,
) -> Correlation:
    """How much higher the LDS of ``scores`` is than that of ``others``, on the same resamples.

    Both are judged by the same trainings, so that the interval of the difference is far narrower
    than the two intervals suggest: a method beats another where ``low`` is above 0.
    """
    one, two, true = _foretold(scores, truth), _foretold(others, truth), _true(truth)

    def value(rows: Places, columns: Places) -> float:
        picked = np.ix_(rows, columns)
        seen = true[picked]
        return _mean(_spearman(one[picked], seen)) - _mean(_spearman(two[picked], seen))

    return _interval(value, one.shape, num_resamples, generator, level)


def truth_ceiling(truth: Retrainings) -> Ceiling:
    """Say how far the trainings agree among themselves, and what a perfect score could reach.

    By the law of attenuation (Spearman 1904) a perfect predictor correlates with a noisy mean as
    the root of its reliability. The law is exact for linear correlations of independent noise, and
    close for ranks. All three numbers are NaN with one seed.
    """
    runs = truth.losses.double().cpu().numpy()
    num = runs.shape[1]
    pairs = [_mean(_spearman(runs[:, a].T, runs[:, b].T)) for a, b in combinations(range(num), 2)]
    between = float(np.mean(pairs)) if pairs else math.nan
    stepped = num * between / (1 + (num - 1) * between)
    return Ceiling(between, stepped, math.sqrt(stepped) if stepped >= 0 else math.nan)


def subset_effects(
    truth: Retrainings,
) -> tuple[Float[Tensor, "Q N"], Float[Tensor, "Q N"]]:
    """True influence by random subsets: how much lower a query's loss is where a sample was kept.

    The mean loss of subsets without the sample, minus that of subsets with it, and its standard
    error. It is the influence at half the data, in nats, and noisy unless there are hundreds of
    subsets; a sample's own row is its memorization.

    Returns
    -------
    effect, stderr
        Positive where training without the sample raises the loss.

    References
    ----------
    Feldman and Zhang (2020), What neural networks memorize and why, NeurIPS, equation (2), there
    for accuracies. arXiv:2008.03703
    """
    losses = truth.losses.double().mean(1)
    with_sample = truth.kept.double()
    means, errors = [], []
    for held in (1 - with_sample, with_sample):
        num = held.sum(0)
        if float(num.min()) < 2:
            message = (
                f"sample {int(num.argmin())} is on one side of {int(num.min())} subsets, expected "
                "at least 2 subsets with every sample and 2 without: train on more subsets"
            )
            raise ValueError(message)
        mean = losses.mT @ held / num
        spread = (losses.square().mT @ held / num - mean.square()).clamp_min(0)
        means.append(mean)
        errors.append(spread / (num - 1))
    return means[0] - means[1], (errors[0] + errors[1]).sqrt()


def _foretold(scores: Tensor, truth: Retrainings) -> Values:
    num_queries, num_samples = truth.losses.shape[2], truth.kept.shape[1]
    if scores.shape != (num_queries, num_samples):
        message = (
            f"scores have shape {tuple(scores.shape)}, expected ({num_queries}, {num_samples}): "
            "one row for each query of the retrainings, one column for each training sample"
        )
        raise ValueError(message)
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).sum())
        message = f"scores hold {bad} values that are NaN or infinite, expected numbers"
        raise ValueError(message)
    left_out = (~truth.kept).double().cpu()
    return (scores.detach().double().cpu() @ left_out.mT).numpy()


def _true(truth: Retrainings) -> Values:
    return truth.losses.double().mean(1).mT.cpu().numpy()


def _spearman(first: Values, second: Values) -> Values:
    """Rank correlation of each row of the one with the same row of the other."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    one, two = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    norm = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    return np.divide((one * two).sum(1), norm, out=np.full(len(norm), np.nan), where=norm > 0)


def _mean(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _interval(
    value: Callable[[Places, Places], float],
    shape: tuple[int, ...],
    num_resamples: int,
    generator: Generator,
    level: float,
) -> Correlation:
    if not 0 < level < 1:
        message = f"level is {level}, expected a number between 0 and 1: pass 0.95"
        raise ValueError(message)
    if num_resamples < 2:
        message = f"num_resamples is {num_resamples}, expected at least 2: pass 200 or so"
        raise ValueError(message)
    here = value(*(np.arange(size) for size in shape))
    draws = [
        value(*(torch.randint(size, (size,), generator=generator).numpy() for size in shape))
        for _ in range(num_resamples)
    ]
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(here, float(low), float(high), level, num_resamples)

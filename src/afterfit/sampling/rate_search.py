"""The learning rate of a geometric ensemble, found without knowing which labels are wrong.

Too cold and the members stay in the basin that memorized the training set; too hot and they know
nothing. In between, the losses of the samples fall into two groups, and the rate at which they do
so most clearly is taken: Otsu's separability of the losses, under a cap on the median loss.

Losses also differ by what the target is: a constant prediction of two classes has two losses. So
they are centered among samples with like targets, and a member must know more than a constant.
"""

import logging
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.evaluate.separation import otsu
from afterfit.problem.data import Batches, TrainingStream
from afterfit.problem.ensemble import Member
from afterfit.problem.likelihood import Likelihood
from afterfit.problem.persample import losses
from afterfit.problem.problem import Problem
from afterfit.sampling.geometric import GeometricEnsemble, adamw
from afterfit.sampling.walk import Diverged

_log = logging.getLogger(__name__)

GRID = tuple(0.4 * 2.0**k for k in range(-9, 5))
"""Rates that the search may try: 0.0008 to 6.4, each twice the one before."""


HOTTEST_ADAM = 0.1

_LEVEL = 0.01  # separabilities of single members differ by about as much from seed to seed

_ONE_GROUP = 0.66  # separability of one exponential or normal population, and a little

_KNOWS_NOTHING = 0.95  # share of the loss of a constant at which a member knows too little

_SMALLEST_CLASS = 5  # samples from which a median is taken


_ROUNDING = 32  # units in the last place of the largest loss


def with_forgetting_decay(problem: Problem, sampler: GeometricEnsemble) -> GeometricEnsemble:
    """Give a sampler the weight decay, and where need be the steps, by which a network forgets.

    A table that embeds indices, with no normalization behind it, moves hardly at all by plain SGD:
    a row has a gradient only where its word occurs. It gets :func:`~afterfit.sampling.adamw`, whose
    steps do not depend on that. A sampler with a ``step`` of its own keeps it.
    """
    if sampler.step is None and problem.lookups and not problem.normalizations:
        return replace(sampler, step=adamw(), weight_decay=0.0)
    return replace(sampler, weight_decay=default_weight_decay(problem))


def default_weight_decay(problem: Problem) -> float:
    """Decay of plain SGD at which a network forgets: 0.0005 with normalization layers, 0.1 without.

    Weights before a normalization layer have no scale that the function could feel (van Laarhoven
    2017, "L2 regularization versus batch and weight normalization"), and a high rate alone
    unsettles them. Without one, a high rate makes a network that fits its data only more sure of
    what it remembers; the pull to zero is what makes it forget. Both numbers were chosen with the
    truth in sight on the data named in experiments/gex/NOTES.md.
    """
    return 5e-4 if problem.normalizations else 0.1


def first_rate(sampler: GeometricEnsemble) -> float:
    """Where the search begins: lower where strong decay or Adam already unsettles the network."""
    plain = sampler.step is None and sampler.weight_decay < 0.01
    return 0.4 if plain else 0.1


@final
@dataclass(frozen=True)
class Trial:
    """What one member at one rate shows.

    ``separability`` is Otsu's η of the losses, centered among like targets (a single normal
    population has 0.64); ``median`` is the median loss in nats. ``admissible`` says whether the
    median is under the cap, and the mean under that of a constant prediction.
    """

    learning_rate: float
    separability: float
    median: float
    admissible: bool


@final
@dataclass(frozen=True)
class RateSearch:
    """All trials of a search, the cap on the median loss in nats, and the rate chosen."""

    trials: tuple[Trial, ...]
    cap: float
    learning_rate: float

    @property
    def found(self) -> bool:
        """Whether any rate was admissible."""
        return any(trial.admissible for trial in self.trials)


def loss_cap(problem: Problem, train: Batches) -> float:
    """Half way from the median loss of the trained network to that of a network that knows nothing.

    Raises
    ------
    TypeError
        If the likelihood has no predictor that ignores its input (``PerSample``).
    """
    targets = train.targets()
    try:
        constant = problem.likelihood.null_outputs(targets)
    except TypeError as error:
        message = f"{error}; or give learning_rate a number, or cap a median loss in nats"
        raise TypeError(message) from error
    nothing = problem.likelihood.loss(constant, targets)
    fitted = losses(problem, train).median()
    return float(fitted + 0.5 * (nothing.mean() - fitted))


def find_learning_rate(
    problem: Problem,
    train: Batches,
    fit: TrainingStream,
    sampler: GeometricEnsemble,
    max_trials: int = 6,
    cap: float | None = None,
    limit: float = GRID[-1],
) -> tuple[RateSearch, dict[float, Member]]:
    """Climb over the grid of rates, one member each, towards the clearest separation.

    Parameters
    ----------
    max_trials
        Members to make at the most; each costs ``sampler.steps``.
    cap
        Largest median loss of the training set, in nats; by default :func:`loss_cap`.
    limit
        Largest rate to try. A step of Adam moves every weight by the rate, whatever its size:
        above :data:`HOTTEST_ADAM` nothing of the trained network is left.

    Returns
    -------
    tuple
        The search, and the members that it made by their rate: the one at the chosen rate is the
        first member of the ensemble.
    """
    most = loss_cap(problem, train) if cap is None else cap
    made: dict[float, Member] = {}
    trials: dict[int, Trial] = {}
    position: int | None = GRID.index(first_rate(sampler))
    while position is not None and len(trials) < max_trials:
        rate = GRID[position]
        trials[position] = _try(
            problem, train, fit, replace(sampler, learning_rate=rate), most, made
        )
        _log.info(_told(trials[position], most))
        position = _next(trials, limit)
    ordered = tuple(trials[k] for k in sorted(trials))
    return RateSearch(ordered, most, _chosen(ordered).learning_rate), made


def _chosen(trials: tuple[Trial, ...]) -> Trial:
    """The clearest separation; of those that are level with it, the coldest.

    A colder member is nearer to the trained network, and its losses carry less noise of its own.
    """
    best = max(trials, key=_merit)
    level = best.separability - _LEVEL
    return next(t for t in trials if t is best or (t.admissible and t.separability >= level))


def _try(
    problem: Problem,
    train: Batches,
    fit: TrainingStream,
    sampler: GeometricEnsemble,
    cap: float,
    made: dict[float, Member],
) -> Trial:
    rate = sampler.learning_rate
    one = replace(sampler, members=1, chains=1)
    try:
        member = next(one.walk(problem, fit))
        column = losses(problem, train, member.params)
    except (Diverged, ValueError):  # losses that are not finite
        return Trial(rate, 0.0, float("inf"), admissible=False)
    made[rate] = member
    median, targets = float(column.median()), train.targets()
    apart = separability(problem.likelihood, targets, column)
    knows = float(column.double().mean()) < _ceiling(problem.likelihood, targets)
    return Trial(rate, apart, median, admissible=median < cap and knows)


def separability(likelihood: Likelihood, y: Tensor, column: Float[Tensor, " N"]) -> float:
    """Otsu's separability of losses less the median of their class, 0 to 1.

    The class is the given one; of targets that are numbers, a tenth of the samples by their order.
    A class of fewer than 5 samples takes the median of all. With several outputs, and for the
    user's own loss, the losses are taken as they are.
    """
    group = likelihood.alike(y)
    if group is None:
        return otsu(column).separability
    column = column.detach().cpu()
    center = column.median().repeat(len(column))
    for members in group.argsort(stable=True).split(group.bincount().tolist()):
        if len(members) >= _SMALLEST_CLASS:
            center[members] = column[members].median()
    centered = column - center
    rounding = _ROUNDING * torch.finfo(column.dtype).eps * column.abs().max()
    return otsu(centered).separability if bool(centered.abs().max() > rounding) else 0.0


def _ceiling(likelihood: Likelihood, y: Tensor) -> float:
    """Mean loss in nats at which a member knows hardly more than the best constant does.

    It is 0.95 of the loss of that constant, beyond what a perfect prediction pays as well; without
    a bound for the user's own loss, which has no such constant.
    """
    if not likelihood.says("null_outputs"):
        return float("inf")
    nothing = float(likelihood.loss(likelihood.null_outputs(y), y).double().mean())
    exact = likelihood.exact_outputs(y)
    least = 0.0 if exact is None else float(likelihood.loss(exact, y).mean())
    return nothing - (1 - _KNOWS_NOTHING) * abs(nothing - least)


def _merit(trial: Trial) -> tuple[bool, float]:
    """Admissible first, then separated; among the inadmissible the coldest."""
    return trial.admissible, trial.separability if trial.admissible else -trial.learning_rate


def _next(trials: dict[int, Trial], limit: float) -> int | None:
    """Position to try next: hotter while that separates better, then colder while that does.

    One fall on the way to hotter rates is forgiven: a memorized network seems to separate a little
    by the tail of its losses alone, and loses that before wrong labels come loose. As long as
    nothing separates, a fall means nothing, and the search goes on to the cap.
    """
    hottest, coldest = max(trials), min(trials)
    best = max(trials, key=lambda k: _merit(trials[k]))
    still_rising = hottest - best <= 1 or trials[best].separability < _ONE_GROUP
    room = hottest + 1 < len(GRID) and GRID[hottest + 1] <= limit
    if trials[hottest].admissible and still_rising and room:
        return hottest + 1
    return coldest - 1 if best == coldest and coldest > 0 else None


def _told(trial: Trial, cap: float) -> str:
    above = trial.median >= cap
    reason = "median loss above the cap" if above else "knows hardly more than a constant"
    verdict = "" if trial.admissible else f" ({reason})"
    return (
        f"learning rate {trial.learning_rate:g}: separability {trial.separability:.3f}, median "
        f"loss {trial.median:.3f}{verdict}"
    )

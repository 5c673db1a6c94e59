"""Which labels a network holds on to by memory alone, with planted wrong labels to judge by.

Training goes on from the trained network at rising rates (:mod:`afterfit.sampling.heated`), on data
in which a few percent of the labels were made wrong. What was memorized is unlearned, the planted
labels with it, and they show how a wrong label scores on this network and these data. Two walks,
of little and of much decay, each with wrong labels of its own; which of them tells more shows in
how well it tells its planted labels apart. Losses are true losses, as in GEX (Kim, Kim and Yang
2023, NeurIPS); the numbers below were chosen on the data named in experiments/gex/NOTES.md and
are reported on others there.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from afterfit.evaluate.attribution import auc
from afterfit.influence.covariance import LossTable
from afterfit.influence.evidence import Chain, LabelEvidence, by_loss, judged, standard
from afterfit.influence.loss_covariance import CovarianceInfluence, LossCovariance
from afterfit.problem.data import Augment, Batches, TrainingStream
from afterfit.problem.ensemble import (
    Ensemble,
    Member,
    MemberStore,
    MemoryStore,
    Store,
    settings_key,
)
from afterfit.problem.persample import losses_of, outputs
from afterfit.problem.problem import Problem
from afterfit.sampling.forecast import Forecast, forecast_walks
from afterfit.sampling.heated import RATES, HeatedWalk
from afterfit.sampling.naming import named
from afterfit.sampling.walk import Diverged

_log = logging.getLogger(__name__)

_KEPT = 4
"""Stages that are scored, the hottest of a walk; those before them only lead there."""

_SHARPNESS = 0.05  # a stage whose planted labels are told apart by so much less in AUC weighs 1/e
_FEWEST_PLANTED = 40
_FEWEST_FITTED = 8
_FEWEST_SAMPLES = 50
_SMALL = range(320, 1000)  # so many samples: chance is large, and four walks are soon made
_PASS = 1 / 3  # of an epoch of training: a forward pass against a forward and a backward one
_SHORTEST = 0.25


@final
@dataclass(frozen=True)
class Unlearning:
    """Score labels by walks that unlearn, and calibrate the scores by planted wrong labels.

    Parameters
    ----------
    decays
        Decay of each walk; of 320 to 999 samples each is walked twice, if the budget allows.
    rates
        Rates of the stages of a walk; the last four are scored.
    epochs
        Length of a stage.
    planted
        Share of the labels that each walk makes wrong; at least 40 are, and at most a quarter.
    batch_size, augment
        How members train, unless ``fit`` is given a loader of its own.
    budget
        Cost at the most, in epochs of training: stages are shortened to fit.
    seed
        Of everything that is drawn.

    References
    ----------
    Kim, Kim and Yang 2023, "GEX: A flexible method for approximating influence via Geometric
    Ensemble", NeurIPS, section 4, for true losses over members; Pleiss et al. 2020, "Identifying
    mislabeled data using the area under the margin ranking", NeurIPS, for threshold samples of
    known wrong labels.
    """

    decays: tuple[float, ...] = (1.0, 4.0)
    rates: tuple[float, ...] = RATES
    epochs: float | int = 2.0
    planted: float = 0.06
    batch_size: int = 128
    augment: Augment | None = None
    budget: float | int | None = None
    seed: int = 0

    reference = "Kim, Kim and Yang 2023, GEX: A flexible method for approximating influence via Geometric Ensemble, NeurIPS"  # noqa: E501

    def __post_init__(self) -> None:
        if len(self.decays) < 2 or len(self.rates) < _KEPT:
            message = (
                f"Unlearning: {len(self.decays)} decays and {len(self.rates)} rates, expected at "
                f"least 2 decays, since a walk cannot judge the labels that it made wrong, and "
                f"{_KEPT} rates"
            )
            raise ValueError(message)
        if not 0 < self.planted <= 0.25:
            message = f"Unlearning: planted is {self.planted}, expected above 0, at most 0.25"
            raise ValueError(message)
        if self.budget is not None and not self.budget > 0:
            message = f"Unlearning: budget is {self.budget} epochs, expected above 0"
            raise ValueError(message)

    def fit(
        self,
        problem: Problem,
        train: Batches,
        fit: TrainingStream | DataLoader[Any] | None = None,
        folder: Path | str | None = None,
    ) -> LabelEvidence:
        """Walk, and judge every label.

        The forecast and every stage are told to the logger ``afterfit``.

        Parameters
        ----------
        train
            The training data with its labels as given, not augmented.
        fit
            What the network trained on, where that was augmented: a loader or a stream over the
            same samples in the same order.
        folder
            Where members are kept as they are made; a run that was killed goes on from there.

        Raises
        ------
        ValueError
            If targets do not fit the network, a loss is not finite, or the folder holds another
            run.
        """
        found, targets = outputs(problem, train), train.targets().cpu()
        own = losses_of(problem, train, found).cpu().double()
        stream = TrainingStream.over(train, fit, self.batch_size, self.augment)
        stream.require_samples_of(train)
        reason = _too_little(problem, found, targets)
        if reason:
            return by_loss(problem, found, own, reason)
        walks = self._walks(stream)
        cost = forecast_walks(problem, train, stream, walks, folder=folder is not None)
        _log.info(f"{len(walks)} walks of {len(self.rates)} stages: {cost}")
        told = self._told(walks, stream, cost.epochs)
        store = self._store(problem, train, stream, walks, folder)
        generator = Generator().manual_seed(_own_seed(self.seed))
        free = torch.randperm(train.num_samples, generator=generator)
        count = min(
            max(_FEWEST_PLANTED, round(self.planted * train.num_samples)),
            max(_FEWEST_FITTED, train.num_samples // (4 * len(walks))),
        )
        chains = []
        for walk, planted in zip(walks, free.split(count), strict=False):
            wrong = problem.likelihood.mistaken(found, targets, generator)
            taught = targets.clone()
            taught[planted] = wrong[planted]
            chains.append(
                _observed(problem, train, replace(stream, targets=taught), walk, planted, store)
            )
        influence = _influence(problem, train, stream, walks, store, chains, own, cost)
        return judged(problem, train, own, found, chains, influence, told)

    def _walks(self, stream: TrainingStream) -> list[HeatedWalk]:
        """The walks, with stages as long as the budget lets them be."""
        decays, epochs = self.decays, self.epochs
        stage, limit = len(decays) * len(self.rates) * (epochs + _PASS), self.budget or math.inf
        if stream.num_samples in _SMALL and 2 * stage <= limit:
            decays = 2 * decays
        stages = len(decays) * len(self.rates)
        if self.budget is not None and stages * (epochs + _PASS) > self.budget:
            rounding = 0.5 * stream.samples_per_step / stream.num_samples
            epochs = max(_SHORTEST, self.budget / stages - _PASS - rounding)
        return [
            HeatedWalk(self.rates, decay, epochs, chain=chain, seed=self.seed)
            for chain, decay in enumerate(decays)
        ]

    def _told(
        self, walks: list[HeatedWalk], stream: TrainingStream, cost: float
    ) -> tuple[str, ...]:
        """What is to be said of the budget."""
        if self.budget is None or walks[0].epochs >= self.epochs:
            return ()
        length = walks[0].steps(stream) * stream.samples_per_step / stream.num_samples
        told = (
            f"A stage is {length:.2g} epochs long instead of {self.epochs:g}, since the budget is "
            f"{self.budget:g} epochs."
        )
        if cost > 1.05 * self.budget:
            told += f" No stage can be shorter, so that the whole takes {cost:.3g} epochs."
        return (told,)

    def _store(
        self,
        problem: Problem,
        train: Batches,
        stream: TrainingStream,
        walks: list[HeatedWalk],
        folder: Path | str | None,
    ) -> Store:
        if folder is None:
            return MemoryStore()
        reading = (
            named(stream.augment), stream.samples_per_step, stream.num_samples, self.planted
        )  # fmt: skip
        key = settings_key(problem, train.fingerprint(), walks, reading)
        return MemberStore(Path(folder) / "members", key)


def _own_seed(seed: int) -> int:
    """A seed that nobody else starts from.

    Noise that was drawn from a generator with the user's seed, as in experiments, would otherwise
    be planted upon: the same permutation gives the same samples.
    """
    return (seed * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**63


def _observed(
    problem: Problem,
    train: Batches,
    stream: TrainingStream,
    walk: HeatedWalk,
    planted: Tensor,
    store: Store,
) -> Chain:
    """Walk, and weigh each hot stage by how well it tells the planted labels apart."""
    taught = stream.targets
    assert taught is not None
    chosen = torch.zeros(train.num_samples, dtype=torch.bool)
    chosen[planted] = True
    total, mean, loss = 0.0, torch.zeros(()), torch.zeros(())
    keys, columns = [], []
    for member in _hot(walk, problem, stream, store):
        found = outputs(problem, train, member.params)
        column = _stage_loss(problem, found, taught, member)
        if not bool(column.isfinite().all()):
            break
        weight = math.exp((auc(column, chosen) - 1) / _SHARPNESS)
        total += weight
        mean = mean + weight * problem.likelihood.mean(found).cpu().double()
        loss = loss + weight * column
        keys.append((member.chain, member.stage))
        columns.append(problem.likelihood.loss(found, train.targets().to(found.device)).cpu())
    if not keys:
        message = "the walk gave no finite losses; lower the rates, or look at the network's losses"
        raise ValueError(message)
    mean, loss = mean / total, loss / total
    doubt = problem.likelihood.doubts(mean, taught).amax(1)
    if problem.likelihood.sums_labels(mean):
        loss = softplus(doubt)  # of the output that is doubted most
    score = 0.5 * (standard(doubt, ~chosen) + standard(loss, ~chosen))
    return Chain(
        planted=chosen,
        weight=total / len(keys),
        mean=mean,
        doubt=doubt,
        loss=loss,
        score=score,
        told_apart=auc(score, chosen),
        keys=tuple(keys),
        columns=tuple(columns),
    )


def _hot(
    walk: HeatedWalk, problem: Problem, stream: TrainingStream, store: Store
) -> Iterator[Member]:
    try:
        for member in walk.walk(problem, stream, store):
            _log.info(
                f"walk {walk.chain + 1}, stage {member.stage + 1} of {len(walk.rates)} is made"
            )
            if member.stage >= len(walk.rates) - _KEPT:
                yield member
    except Diverged as error:
        _log.info(f"walk {walk.chain + 1} ends early: {error}")


def _stage_loss(
    problem: Problem, found: Tensor, taught: Tensor, member: Member
) -> Float[Tensor, " N"]:
    """Mean of the loss at the member and of that seen on the way there."""
    at = problem.likelihood.loss(found, taught.to(found.device)).cpu().double()
    seen = at if member.seen is None else member.seen.cpu().double()
    return 0.5 * (at + torch.where(seen.isnan(), at, seen))


def _influence(
    problem: Problem,
    train: Batches,
    stream: TrainingStream,
    walks: list[HeatedWalk],
    store: Store,
    chains: list[Chain],
    own: Float[Tensor, " N"],
    cost: Forecast,
) -> CovarianceInfluence:
    """The hot members of all walks, to be asked about other samples."""
    keys = [key for chain in chains for key in chain.keys]
    columns = torch.stack([column for chain in chains for column in chain.columns], 1)
    table = LossTable(own.to(columns), columns, torch.arange(len(keys)))
    ensemble = Ensemble(keys, store, problem.device)
    return CovarianceInfluence(
        LossCovariance(walks[0]), problem, train, stream, ensemble, table, None, cost
    )


def _too_little(problem: Problem, found: Float[Tensor, "N C"], targets: Tensor) -> str:
    """Why these data cannot be judged by planted labels, or nothing."""
    if len(targets) < _FEWEST_SAMPLES:
        return (
            f"there are {len(targets)} samples, and at least {_FEWEST_SAMPLES} are needed to "
            "tell how a wrong label scores"
        )
    if len(targets.reshape(len(targets), -1).unique(dim=0)) < 2:
        return "all labels are the same, so that nothing can be compared"
    try:
        problem.likelihood.mistaken(found[:8], targets[:8], Generator())
    except TypeError as error:
        return str(error)
    return ""

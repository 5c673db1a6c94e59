"""GEX: influence from true losses over a geometric ensemble.

Kim, Kim and Yang 2023, "GEX: A flexible method for approximating influence via Geometric
Ensemble", NeurIPS. The influence function is the covariance of *linearized* losses over Laplace's
posterior (their section 3); GEX takes the losses as they are, over parameters that SGD reaches.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from torch.utils.data import DataLoader

from afterfit.influence.covariance import (
    Moment,
    Move,
    covariance,
    loss_there,
    product_of_means,
    there_minus_floored_here,
    there_minus_here,
    uncentered_moment,
)
from afterfit.influence.loss_covariance import CovarianceInfluence, LossCovariance, Recorded
from afterfit.problem.data import Augment, Batches, TrainingStream
from afterfit.problem.ensemble import MemberStore, MemoryStore, Store, settings_key
from afterfit.problem.persample import losses
from afterfit.problem.problem import Problem
from afterfit.sampling.forecast import forecast, within_budget
from afterfit.sampling.geometric import GeometricEnsemble, reference
from afterfit.sampling.naming import named
from afterfit.sampling.rate_search import (
    GRID,
    HOTTEST_ADAM,
    RateSearch,
    Trial,
    find_learning_rate,
    with_forgetting_decay,
)

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class GEX:
    """Influence by true losses over a geometric ensemble, with settings that find themselves.

    Parameters
    ----------
    members, steps, chains, seed
        As in :class:`~afterfit.sampling.GeometricEnsemble`; ``steps=None`` is two epochs a member.
    learning_rate
        The temperature: ``"auto"`` searches for the rate at which the losses fall into two groups
        most clearly (:mod:`afterfit.sampling.rate_search`) while members know more than a constant
        prediction does; or a number.
    weight_decay
        L2 pull while members train; ``"auto"`` is what
        :func:`~afterfit.sampling.rate_search.with_forgetting_decay` says, which for embeddings
        without normalization takes AdamW in place of SGD.
    batch_size, augment
        How members train, unless ``fit`` is given a loader of its own.
    losses
        Self-influence from losses at the ``"members"``, ``"seen"`` in training, or ``"both"``.
    move, moment
        Of self-influence: see :mod:`afterfit.influence.covariance`. :func:`published_gex` has the
        paper's.
    cross_move, cross_moment
        Of influence between samples; the covariance by default, whose sign does not depend on
        whether the members are better or worse than the trained network.
    budget
        Cost at the most, in epochs of training: members, trials and steps are taken away to fit.
    max_trials, cap
        Of the search for the rate: members to try, and the largest median loss in nats.
    sampler
        Makes the sampler from the settings above; ``partial(GeometricEnsemble, clip=None)`` has
        the rest of them: schedule, optimizer, clipping, restarts, BatchNorm.

    References
    ----------
    Kim, Kim and Yang 2023, "GEX: A flexible method for approximating influence via Geometric
    Ensemble", NeurIPS, section 4.
    """

    members: int = 8
    steps: int | None = None
    learning_rate: float | Literal["auto"] = "auto"
    weight_decay: float | Literal["auto"] = "auto"
    batch_size: int = 128
    augment: Augment | None = None
    chains: int = 1
    seed: int = 0
    losses: Recorded = "both"
    move: Move = loss_there
    moment: Moment = product_of_means
    cross_move: Move = there_minus_here
    cross_moment: Moment = covariance
    budget: float | int | None = None
    max_trials: int = 6
    cap: float | int | None = None
    sampler: Callable[..., GeometricEnsemble] = GeometricEnsemble

    reference = "Kim, Kim and Yang 2023, GEX: A flexible method for approximating influence via Geometric Ensemble, NeurIPS"  # noqa: E501

    def __post_init__(self) -> None:
        if self.learning_rate != "auto" and not (
            isinstance(self.learning_rate, (int, float)) and self.learning_rate > 0
        ):
            message = (
                f"GEX: learning_rate is {self.learning_rate!r}, expected 'auto' or a number above 0"
            )
            raise ValueError(message)
        if self.max_trials < 1:
            message = f"GEX: max_trials is {self.max_trials}, expected at least 1"
            raise ValueError(message)
        self._made(0.0)

    def _made(self, weight_decay: float) -> GeometricEnsemble:
        rate = {} if self.learning_rate == "auto" else {"learning_rate": float(self.learning_rate)}
        return self.sampler(
            members=self.members, steps=self.steps, chains=self.chains, seed=self.seed,
            weight_decay=weight_decay, **rate,
        )  # fmt: skip

    def fit(
        self,
        problem: Problem,
        train: Batches,
        fit: TrainingStream | DataLoader[Any] | None = None,
        folder: Path | str | None = None,
    ) -> CovarianceInfluence:
        """Find the rate, make the members, and observe the losses of the training data.

        Forecast, trials and members are told to the logger ``afterfit``.

        Parameters
        ----------
        train
            The training data with its labels as given, not augmented: what gets a score.
        fit
            What the members train on: a :class:`~afterfit.problem.TrainingStream`, or the user's
            loader with its own shuffling and augmentation. By default ``train``, with ``augment``.
        folder
            Where members are kept as they are made, and losses in a memory-mapped file; a run that
            was killed goes on from there. By default they stay in memory.

        Raises
        ------
        ValueError
            If targets do not fit the network, a loss is not finite, the folder holds another run,
            or the budget is too small.
        """
        stream = TrainingStream.over(train, fit, self.batch_size, self.augment)
        if self.losses != "members":
            stream.require_samples_of(train, "; or use losses='members'")
        losses(problem, train)  # what is wrong with the data is said before anything is trained
        if self.weight_decay == "auto":
            sampler = with_forgetting_decay(problem, self._made(0.0))
        else:
            sampler = self._made(float(self.weight_decay))
        trials = self.max_trials if self.learning_rate == "auto" else 0
        if self.budget is not None:
            sampler, trials = within_budget(sampler, stream, trials, self.budget)
        cost = forecast(problem, train, stream, sampler, trials, folder=folder is not None)
        _log.info(f"{sampler.describe(stream)}: {cost}")
        store = self._store(problem, train, stream, sampler, folder)
        search = None
        if self.learning_rate == "auto":
            search = self._search(problem, train, stream, sampler, trials, folder, store)
            sampler = replace(sampler, learning_rate=search.learning_rate)
        engine = LossCovariance(
            sampler, self.losses, move=self.move, moment=self.moment,
            cross_move=self.cross_move, cross_moment=self.cross_moment,
        )  # fmt: skip
        kept = None if folder is None else Path(folder)
        return engine.over(problem, train, stream, store, search=search, cost=cost, folder=kept)

    def _store(
        self,
        problem: Problem,
        train: Batches,
        stream: TrainingStream,
        sampler: GeometricEnsemble,
        folder: Path | str | None,
    ) -> Store:
        if folder is None:
            return MemoryStore()
        search = (self.learning_rate, self.max_trials, self.cap)
        given = named((stream.augment, stream.targets))
        reading = (given, stream.samples_per_step, stream.num_samples)
        key = settings_key(problem, train.fingerprint(), sampler.key(), search, reading)
        return MemberStore(Path(folder) / "members", key)

    def _search(
        self,
        problem: Problem,
        train: Batches,
        stream: TrainingStream,
        sampler: GeometricEnsemble,
        trials: int,
        folder: Path | str | None,
        store: Store,
    ) -> RateSearch:
        """Search for the rate, or read the search of a run that is taken up again."""
        path = None if folder is None else Path(folder) / "search.json"
        if path is not None and path.exists() and store.holds(0, 0):
            return _read_search(path)
        limit = GRID[-1] if sampler.step is self._made(0.0).step else HOTTEST_ADAM
        search, made = find_learning_rate(problem, train, stream, sampler, trials, self.cap, limit)
        if not search.found:
            warnings.warn(
                "no learning rate keeps the median training loss under "
                f"{search.cap:.3g} nats and the mean under that of a constant prediction: the "
                "members may know too little; give learning_rate a number, raise cap, or train the "
                "network longer",
                stacklevel=3,
            )
        if search.learning_rate in made:
            store.save(made[search.learning_rate])
        if path is not None:
            _write_search(path, search)
        return search


def published_gex(members: int = 32, seed: int = 0) -> GEX:
    """GEX with the settings of the authors' scripts, their floor of 0.05 and the second moment.

    It is slow (800 steps a member) and the floor hurts on memorized data; it is here so that the
    paper can be reproduced. The sampler is :func:`afterfit.sampling.reference`.
    """
    sampler = reference(seed)
    return GEX(
        members=members,
        steps=sampler.steps,
        learning_rate=sampler.learning_rate,
        weight_decay=sampler.weight_decay,
        chains=sampler.chains,
        seed=seed,
        losses="members",
        move=there_minus_floored_here(0.05),
        moment=uncentered_moment,
        sampler=partial(replace, sampler),
    )


def _write_search(path: Path, search: RateSearch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(search), indent=1))
    temporary.replace(path)


def _read_search(path: Path) -> RateSearch:
    try:
        found = json.loads(path.read_text())
        trials = tuple(Trial(**trial) for trial in found["trials"])
        return RateSearch(trials, found["cap"], found["learning_rate"])
    except (ValueError, KeyError, TypeError) as error:
        message = (
            f"{path} cannot be read ({type(error).__name__}: {error}), expected the search of a "
            "run that was interrupted; remove this file and the folder 'members' beside it, and "
            "run again"
        )
        raise ValueError(message) from error

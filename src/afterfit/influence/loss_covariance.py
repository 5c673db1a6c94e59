"""Influence over any sampler's members, and what it can be asked.

The influence function, the Bayesian influence function and GEX differ in where the members come
from and in which moves are taken; :class:`LossCovariance` is what they share.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.influence.base import Influence
from afterfit.influence.covariance import (
    LossTable,
    Moment,
    Move,
    Scores,
    by_rows,
    covariance,
    cross_influence_with_stderr,
    inner,
    reliability,
    secant,
    second_moment,
    self_influence_with_stderr,
)
from afterfit.influence.table import (
    Columns,
    InMemory,
    Observe,
    OnDisk,
    member_losses,
    seen_losses,
    side_by_side,
)
from afterfit.problem.data import Batches, TrainingStream
from afterfit.problem.ensemble import Ensemble, MemoryStore, Sampler, Store
from afterfit.problem.problem import Problem
from afterfit.sampling.forecast import Forecast
from afterfit.sampling.temperature import RateSearch

_log = logging.getLogger(__name__)

Recorded = Literal["members", "seen", "both"]


@final
@dataclass(frozen=True)
class LossCovariance:
    """Influence as the covariance of losses over the members of a sampler.

    Parameters
    ----------
    sampler
        Where members come from: a geometric ensemble, Laplace draws, the user's checkpoints.
    losses
        What self-influence is computed from: losses at the ``"members"``, those ``"seen"`` while
        they trained (only for samplers that train), or ``"both"`` side by side.
    observe
        How a table is made of a data set: :func:`~afterfit.influence.table.member_losses`, or
        :func:`~afterfit.influence.table.tangents` for the linear influence.
    move, moment
        Of self-influence.
    cross_move, cross_moment
        Of influence between samples.
    """

    sampler: Sampler
    losses: Recorded = "members"
    observe: Observe = member_losses
    move: Move = secant
    moment: Moment = second_moment
    cross_move: Move = secant
    cross_moment: Moment = covariance

    reference = "Kim, Kim and Yang 2023, GEX, NeurIPS, section 3"

    def fit(
        self, problem: Problem, train: Batches, fit: TrainingStream | None = None
    ) -> "CovarianceInfluence":
        """Make the members, in memory, and observe the losses of the training data."""
        stream = TrainingStream(train) if fit is None else fit
        return self.over(problem, train, stream, MemoryStore())

    def over(
        self,
        problem: Problem,
        train: Batches,
        stream: TrainingStream,
        store: Store,
        *,
        search: RateSearch | None = None,
        cost: Forecast | None = None,
        folder: Path | None = None,
    ) -> "CovarianceInfluence":
        """Walk with a store that may hold members already, and observe.

        With a ``folder`` the table of losses is memory-mapped there.
        """
        keys = []
        for member in self.sampler.walk(problem, stream, store):
            if not store.holds(member.chain, member.stage):
                store.save(member)
            keys.append((member.chain, member.stage))
            _log.info(f"member {len(keys)} is made")
        ensemble = Ensemble(keys, store, problem.device)
        place: Place = InMemory if folder is None else partial(OnDisk, folder)
        table = _RECORDED[self.losses](self.observe, problem, train, ensemble, place)
        return CovarianceInfluence(self, problem, train, stream, ensemble, table, search, cost)


Place = Callable[[], Columns]


def _members(
    observe: Observe, problem: Problem, train: Batches, members: Ensemble, place: Place
) -> LossTable:
    return observe(problem, train, members, place())


def _seen(
    observe: Observe,  # noqa: ARG001
    problem: Problem,
    train: Batches,
    members: Ensemble,
    place: Place,
) -> LossTable:
    return seen_losses(problem, train, members, place())


def _both(
    observe: Observe, problem: Problem, train: Batches, members: Ensemble, place: Place
) -> LossTable:
    at_members = observe(problem, train, members, place())
    return side_by_side(at_members, seen_losses(problem, train, members, place()), place())


_RECORDED = {"members": _members, "seen": _seen, "both": _both}


@final
@dataclass(frozen=True)
class CovarianceInfluence(Influence):
    """Influence whose every answer is an inner product of rows of a loss table.

    Attributes
    ----------
    method
        The settings.
    ensemble
        The members; new queries are observed at them.
    table
        Losses of the training samples, from which self-influence is computed.
    search, cost
        The search for the learning rate and the forecast, where there were any.
    """

    method: LossCovariance
    problem: Problem
    train: Batches
    stream: TrainingStream
    ensemble: Ensemble
    table: LossTable
    search: RateSearch | None = None
    cost: Forecast | None = None

    def self_scores(self) -> Float[Tensor, " N"]:
        """Self-influence of each training sample; large where it had to be memorized."""
        return self.self_influence().value

    def self_influence(self) -> Scores:
        """Self-influence with its standard error."""
        return self_influence_with_stderr(self.table, self.method.move, self.method.moment)

    def reliability(self) -> float:
        """How far two halves of the ensemble agree on the ranking, stepped up to the whole."""
        return reliability(self.table, self.method.move, self.method.moment)

    def observe(self, data: Batches) -> LossTable:
        """Losses of any samples at the members; keep it to ask about them again."""
        return self.method.observe(self.problem, data, self.ensemble)

    def train_table(self) -> LossTable:
        """Losses of the training samples at the members themselves."""
        if self.method.losses == "members":
            return self.table
        if self.method.losses == "both":
            half = len(self.ensemble)
            units = self.table.units[:half]  # a slice is a view, also of a file
            return replace(self.table, columns=self.table.columns[:, :half], units=units)
        return self.observe(self.train)

    def scores(self, query: Batches | LossTable) -> Float[Tensor, "Q N"]:
        """Influence of each training sample (columns) on the loss of each query (rows)."""
        return self.cross_influence(query).value

    def cross_influence(self, query: Batches | LossTable) -> Scores:
        """Cross-influence (Q, N) with its standard error."""
        asked = query if isinstance(query, LossTable) else self.observe(query)
        return cross_influence_with_stderr(
            asked, self.train_table(), self.method.cross_move, self.method.cross_moment
        )

    def mean_scores(self, query: Batches | LossTable) -> Float[Tensor, " N"]:
        """Influence of each training sample on the mean loss of the queries.

        Warns where the second moment was asked for and the members fit the queries worse than the
        trained network does: the common drift then turns the sign around (harmful samples score
        high).
        """
        asked = query if isinstance(query, LossTable) else self.observe(query)
        drift = float(self.method.cross_move(asked).mean())
        if self.method.cross_moment is second_moment and drift > 0:
            warnings.warn(
                f"the members raise the mean loss of the queries by {drift:.3g} nats, so the sign "
                "of their aggregated second moment is not determined; use "
                "cross_moment=covariance",
                stacklevel=2,
            )
        moved = self._moved(asked).mean(0, keepdim=True)
        return by_rows(self.train_table(), lambda rows: inner(moved, self._moved(rows)))[0]

    def group_scores(
        self, groups: Sequence[Tensor], query: Batches | LossTable
    ) -> Float[Tensor, "Q G"]:
        """Influence on each query of taking away whole groups of training samples.

        To first order the influence of a group is the sum over its members.
        """
        asked = query if isinstance(query, LossTable) else self.observe(query)
        own = self.train_table()
        summed = torch.stack([self._moved(own.rows(group)).sum(0) for group in groups])
        return inner(self._moved(asked), summed)

    def block(self, rows: Int[Tensor, " A"], columns: Int[Tensor, " B"]) -> Float[Tensor, "A B"]:
        """Influence of training samples on each other, for these rows and columns only."""
        own = self.train_table()
        return inner(self._moved(own.rows(rows)), self._moved(own.rows(columns)))

    def _moved(self, table: LossTable) -> Float[Tensor, "A R"]:
        return self.method.cross_moment(self.method.cross_move(table))

    def extend(self, members: int) -> "CovarianceInfluence":
        """Add members; those that are there are kept, and training goes on from the last.

        Raises
        ------
        TypeError
            If the sampler has no number of members that could be raised, as with checkpoints.
        """
        sampler: Any = self.method.sampler
        if "members" not in getattr(type(sampler), "__dataclass_fields__", {}):
            message = (
                f"{type(sampler).__name__} has no setting 'members' to raise; fit again with a "
                "sampler that holds more"
            )
            raise TypeError(message)
        larger = replace(
            self.method, sampler=replace(sampler, members=len(self.ensemble) + members)
        )
        return larger.over(
            self.problem, self.train, self.stream, self.ensemble.store, search=self.search
        )

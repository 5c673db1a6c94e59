"""Influence as the covariance, over an ensemble, of how much each sample's loss moves.

Everything is an inner product of rows of one table: N samples by R columns of *moves*. What a move
is (:func:`there_minus_here`, :func:`tangent_moves`, :func:`loss_there`) and which moment of it is
taken (:func:`uncentered_moment`, :func:`covariance`, :func:`product_of_means`) are two independent
choices.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from afterfit.problem._autodiff import jvp
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Member
from afterfit.problem.persample import batch_losses
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class LossTable:
    """Losses of N samples at the trained network and at M other points, in nats.

    Attributes
    ----------
    trained
        Loss of each sample at the trained parameters, (N,).
    columns
        Loss of each sample at each point, (N, M); may be memory-mapped.
    units
        Which columns belong together (the chain, or the member), (M,): standard errors leave out
        one unit at a time.
    """

    trained: Float[Tensor, " N"]
    columns: Float[Tensor, "N M"]
    units: Int[Tensor, " M"]

    def rows(self, index: Tensor | slice) -> "LossTable":
        """Only these samples."""
        return replace(self, trained=self.trained[index], columns=self.columns[index])

    def only(self, kept: Bool[Tensor, " M"]) -> "LossTable":
        """Only these columns."""
        return replace(self, columns=self.columns[:, kept], units=self.units[kept])

    def without(self, unit: int) -> "LossTable":
        """All columns but those of one unit."""
        return self.only(self.units != unit)


_ROWS = 2**16
"""Rows that are worked on at a time."""

Move = Callable[[LossTable], Float[Tensor, "N M"]]
Moment = Callable[[Float[Tensor, "N M"]], Float[Tensor, "N R"]]


def there_minus_here(table: LossTable) -> Float[Tensor, "N M"]:
    """Loss there minus loss here: the paper's move, without linearization (eq. for I_GEX)."""
    return table.columns - table.trained[:, None]


def there_minus_floored_here(floor: float) -> Move:
    """Take the loss here as at least ``floor``, as the authors' code has it (0.05).

    On a network that has memorized its training set the floor gives every easy sample the same
    move, -floor, and can turn the ranking around. It is here to reproduce the authors' figures.
    """

    def move(table: LossTable) -> Float[Tensor, "N M"]:
        return table.columns - table.trained.clamp_min(floor)[:, None]

    return move


def loss_there(table: LossTable) -> Float[Tensor, "N M"]:
    """Move from a perfect fit: the loss itself.

    Where the network has memorized a sample this is :func:`there_minus_here`, since the loss here
    is zero. Where training stopped before that, the difference forgets what the network could not
    fit, which is the strongest sign of a wrong label; this move keeps it.
    """
    return table.columns


def uncentered_moment(moves: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """E[Δl Δl'], about the trained network (the paper's estimator, with 1/M)."""
    return moves


def covariance(moves: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Cov[Δl, Δl'], unbiased: the drift that all samples share is taken out.

    With the sign turned around it is the Bayesian influence function (Kreer et al. 2025) of the
    same draws.
    """
    num = moves.shape[1]
    if num < 2:
        message = f"covariance needs at least 2 members, got {num}; raise members"
        raise ValueError(message)
    return (moves - moves.mean(1, keepdim=True)) * (num / (num - 1)) ** 0.5


def product_of_means(moves: Float[Tensor, "N M"]) -> Float[Tensor, "N 1"]:
    """E[Δl] E[Δl'], the part of the second moment that is not covariance."""
    return moves.mean(1, keepdim=True)


def inner(left: Float[Tensor, "A R"], right: Float[Tensor, "B R"]) -> Float[Tensor, "A B"]:
    """Average over columns of the product of moves: one matrix product."""
    return left @ right.T / left.shape[1]


@final
@dataclass(frozen=True)
class Scores:
    """Scores with their standard errors.

    Attributes
    ----------
    value, stderr
        (N,) or (Q, N), in nats squared; the error is over members, or chains where there are four.
    """

    value: Tensor
    stderr: Tensor


def by_rows(
    table: LossTable, compute: Callable[[LossTable], Float[Tensor, "*q n"]]
) -> Float[Tensor, "*q N"]:
    """Compute what each row has on its own, a block of rows at a time.

    A memory-mapped table is so never whole in memory, nor are its moves.
    """
    starts = range(0, len(table.trained), _ROWS)
    return torch.cat([compute(table.rows(slice(k, k + _ROWS))) for k in starts], -1)


def self_influence(table: LossTable, move: Move, moment: Moment) -> Float[Tensor, " N"]:
    """Diagonal of the kernel, without the kernel."""
    return by_rows(table, lambda rows: moment(move(rows)).square().mean(1))


def self_influence_with_stderr(table: LossTable, move: Move, moment: Moment) -> Scores:
    """Self-influence, and its jackknife error over units (Efron and Stein 1981)."""
    value = self_influence(table, move, moment)
    units = table.units.unique().tolist()
    if len(units) < 3:
        return Scores(value, torch.full_like(value, torch.nan))

    def spread(rows: LossTable) -> Tensor:
        left_out = torch.stack([self_influence(rows.without(unit), move, moment) for unit in units])
        return (left_out - left_out.mean(0)).square().sum(0)

    return Scores(value, (by_rows(table, spread) * (len(units) - 1) / len(units)).sqrt())


def cross_influence(
    query: LossTable, train: LossTable, move: Move, moment: Moment
) -> Float[Tensor, "Q N"]:
    """Score of every training sample (columns) for every query (rows)."""
    asked = moment(move(query))
    return by_rows(train, lambda rows: inner(asked, moment(move(rows))))


def cross_influence_with_stderr(
    query: LossTable, train: LossTable, move: Move, moment: Moment
) -> Scores:
    """Cross-influence, and its error over columns: two matrix products."""
    left = moment(move(query))
    value, num = by_rows(train, lambda rows: inner(left, moment(move(rows)))), left.shape[1]
    if num < 3:
        return Scores(value, torch.full_like(value, torch.nan))
    squares = by_rows(train, lambda rows: inner(left.square(), moment(move(rows)).square()))
    return Scores(value, ((squares - value.square()).clamp_min(0) / (num - 1)).sqrt())


def reliability(table: LossTable, move: Move, moment: Moment) -> float:
    """Split-half reliability of the self-influence: how far half of the members agree.

    Rank correlation of the scores of every other unit with those of the rest, stepped up to the
    full length by Spearman and Brown (1910) where it is positive. NaN with fewer than four units.
    """
    units = table.units.unique()
    if len(units) < 4:
        return float("nan")
    halves = []
    for half in range(2):
        kept = torch.isin(table.units, units[half::2])
        scores = by_rows(table, lambda rows, k=kept: self_influence(rows.only(k), move, moment))
        halves.append(scores.cpu().numpy())
    correlation = float(spearmanr(*halves)[0])  # pyright: ignore[reportArgumentType]
    return 2 * correlation / (1 + correlation) if correlation > 0 else correlation


def tangent_moves(
    problem: Problem, data: Batches, members: Iterable[Member]
) -> Float[Tensor, "N M"]:
    """First-order moves g·(θ_m - θ̂): over exact Laplace draws they give the influence function.

    One forward-mode derivative of the losses for each member and batch.
    """
    columns = []
    for member in members:
        along = {name: member.params[name] - p for name, p in problem.params.items()}
        parts = [
            jvp(lambda at, b=batch: batch_losses(problem, at, b), problem.params, along)[1]
            for batch in data
        ]
        columns.append(torch.cat(parts))
    return torch.stack(columns, dim=1)

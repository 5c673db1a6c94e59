"""How the columns of a loss table are observed: after a member is made, or while it is made."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from afterfit.influence.covariance import LossTable, tangent_moves
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Member
from afterfit.problem.persample import losses
from afterfit.problem.problem import Problem

Observe = Callable[[Problem, Batches, Iterable[Member]], LossTable]
"""Makes the table of any data set; members may be streamed, and are read once."""

_ENOUGH_CHAINS = 4


def member_losses(problem: Problem, data: Batches, members: Iterable[Member]) -> LossTable:
    """Losses in evaluation mode at each member: one forward pass a sample and member."""
    columns, chains = [], []
    for member in members:
        columns.append(losses(problem, data, member.params))
        chains.append(member.chain)
    return LossTable(losses(problem, data), torch.stack(columns, 1), _units(chains))


def tangents(problem: Problem, data: Batches, members: Iterable[Member]) -> LossTable:
    """First-order moves to each member, as a table about zero: its secant is linear influence."""
    kept = list(members)
    moves = tangent_moves(problem, data, kept)
    return LossTable(torch.zeros_like(moves[:, 0]), moves, _units([m.chain for m in kept]))


def seen_losses(problem: Problem, data: Batches, members: Iterable[Member]) -> LossTable:
    """Losses seen while the members trained: the online form, which costs nothing.

    Only for the data that the members trained on. A sample that one stage did not read takes the
    mean of what the other stages saw.

    Raises
    ------
    ValueError
        If the members carry no training losses, those of other data, or left a sample unread.
    """
    columns, chains = [], []
    for member in members:
        if member.seen is None or len(member.seen) != data.num_samples:
            found = "none" if member.seen is None else f"those of {len(member.seen)} samples"
            message = (
                f"the members carry {found} of the training losses, expected {data.num_samples}: "
                "the data that they train on must be the data that is scored, in the same order; "
                "or use losses='members'"
            )
            raise ValueError(message)
        columns.append(member.seen)
        chains.append(member.chain)
    seen = torch.stack(columns, 1)
    filled = torch.where(seen.isnan(), seen.nanmean(1, keepdim=True), seen)
    unread = int(filled.isnan().any(1).sum())
    if unread:
        message = (
            f"{unread} samples were never read while the members trained; raise steps or members, "
            "or use losses='members'"
        )
        raise ValueError(message)
    trained = losses(problem, data)
    return LossTable(trained, filled.to(trained), _units(chains))


def _units(chains: list[int]) -> Int[Tensor, " M"]:
    """Leave out chains where there are enough of them, members otherwise."""
    labels = torch.tensor(chains)
    return labels if len(labels.unique()) >= _ENOUGH_CHAINS else torch.arange(len(chains))


def side_by_side(left: LossTable, right: LossTable) -> LossTable:
    """Join the columns of two tables of the same members; a member stays one unit."""
    columns = torch.cat([left.columns, right.columns], 1)
    return LossTable(left.trained, columns, torch.cat([left.units, right.units]))

"""How the columns of a loss table are observed: after a member is made, or while it is made."""

import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.influence.covariance import LossTable, tangent_moves
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Member
from afterfit.problem.persample import losses
from afterfit.problem.problem import Problem

_ENOUGH_CHAINS = 4


@runtime_checkable
class Columns(Protocol):
    """Where the columns of a table are kept while they are made."""

    def add(self, column: Float[Tensor, " N"]) -> None:
        """Keep one more."""
        ...

    def stack(self) -> Float[Tensor, "N M"]:
        """All of them, one beside the other."""
        ...


@final
class InMemory:
    """Columns in memory, on the device where they were made."""

    def __init__(self) -> None:
        self._columns: list[Tensor] = []

    def add(self, column: Float[Tensor, " N"]) -> None:
        self._columns.append(column)

    def stack(self) -> Float[Tensor, "N M"]:
        return torch.stack(self._columns, 1)


@final
class OnDisk:
    """Columns in a memory-mapped file without a name, which goes when the table does.

    Only one column at a time is in memory while the table is made, and the rows that are asked for
    afterwards.

    Parameters
    ----------
    folder
        Where there is room for a number per sample and column.
    """

    def __init__(self, folder: Path | str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # a mapping has its own handle
        self._dtype = np.dtype(np.float32)
        self._shape = (0, 0)

    def add(self, column: Float[Tensor, " N"]) -> None:
        row = column.detach().cpu().numpy()
        row.tofile(self._file)
        self._dtype, self._shape = row.dtype, (self._shape[0] + 1, len(row))

    def stack(self) -> Float[Tensor, "N M"]:
        self._file.flush()
        mapped = np.memmap(self._file, self._dtype, mode="r+", shape=self._shape)
        return torch.from_numpy(mapped).T


@runtime_checkable
class Observe(Protocol):
    """Makes the table of any data set; members may be streamed, and are read once."""

    def __call__(
        self,
        problem: Problem,
        data: Batches,
        members: Iterable[Member],
        columns: Columns | None = None,
    ) -> LossTable:
        """Observe; columns are kept in memory unless they are given a place."""
        ...


def member_losses(
    problem: Problem, data: Batches, members: Iterable[Member], columns: Columns | None = None
) -> LossTable:
    """Losses in evaluation mode at each member: one forward pass a sample and member."""
    kept, chains = columns or InMemory(), []
    for member in members:
        kept.add(losses(problem, data, member.params))
        chains.append(member.chain)
    return _table(losses(problem, data), kept.stack(), _units(chains))


def tangents(
    problem: Problem, data: Batches, members: Iterable[Member], columns: Columns | None = None
) -> LossTable:
    """First-order moves to each member, as a table about zero: its secant is linear influence."""
    kept, chains = columns or InMemory(), []
    for member in members:
        kept.add(tangent_moves(problem, data, [member])[:, 0])
        chains.append(member.chain)
    moves = kept.stack()
    return LossTable(torch.zeros_like(moves[:, 0]), moves, _units(chains))


def seen_losses(
    problem: Problem, data: Batches, members: Iterable[Member], columns: Columns | None = None
) -> LossTable:
    """Losses seen while the members trained: the online form, which costs nothing.

    Only for the data that the members trained on. A sample that one stage did not read takes the
    mean of what the other stages saw.

    Raises
    ------
    ValueError
        If the members carry no training losses, those of other data, or left a sample unread.
    """
    trained = losses(problem, data)
    kept, chains = columns or InMemory(), []
    total, times = torch.zeros_like(trained), torch.zeros_like(trained)
    for member in members:
        if member.seen is None or len(member.seen) != data.num_samples:
            found = "none" if member.seen is None else f"those of {len(member.seen)} samples"
            message = (
                f"the members carry {found} of the training losses, expected {data.num_samples}: "
                "the data that they train on must be the data that is scored, in the same order; "
                "or use losses='members'"
            )
            raise ValueError(message)
        seen = member.seen.to(trained)
        total += seen.nan_to_num()
        times += ~seen.isnan()
        kept.add(seen)
        chains.append(member.chain)
    unread = int((times == 0).sum())
    if unread:
        message = (
            f"{unread} samples were never read while the members trained; raise steps or members, "
            "or use losses='members'"
        )
        raise ValueError(message)
    seen = kept.stack()
    mean = (total / times).to(seen.device)
    for column in seen.unbind(1):
        column.copy_(torch.where(column.isnan(), mean, column))
    return _table(trained, seen, _units(chains))


def _table(
    trained: Float[Tensor, " N"], columns: Float[Tensor, "N M"], units: Int[Tensor, " M"]
) -> LossTable:
    return LossTable(trained.to(columns.device), columns, units)


def _units(chains: list[int]) -> Int[Tensor, " M"]:
    """Leave out chains where there are enough of them, members otherwise."""
    labels = torch.tensor(chains)
    return labels if len(labels.unique()) >= _ENOUGH_CHAINS else torch.arange(len(chains))


def side_by_side(left: LossTable, right: LossTable, columns: Columns | None = None) -> LossTable:
    """Join the columns of two tables of the same members; a member stays one unit."""
    kept = columns or InMemory()
    for table in (left, right):
        for column in table.columns.unbind(1):
            kept.add(column)
    return _table(left.trained, kept.stack(), torch.cat([left.units, right.units]))

"""What one call of a layer does with its parameters: gradients of each sample in factors.

A call is described by where its parameters stand in the flat vector, and turns what went in
(activations) and the gradient at what came out into sums over samples that need no gradient of a
single sample for all parameters at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_ENTRIES_AT_ONCE = 2**20
"""Entries of the per-sample gradients of one layer that are held together."""


@final
@dataclass(frozen=True)
class Slot:
    """Where a tensor of parameters, or a view of one, stands in the flat vector.

    Attributes
    ----------
    name, start, length
        Of the parameter, where it begins in the flat vector of all parameters, and its entries.
    offset, size, stride
        Of the view within the parameter, as it is flattened.
    shape
        In which a layer uses the view, with as many entries in the same order.
    """

    name: str
    start: int
    length: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """Read the entries of a flat vector of all parameters, in `shape`; a view if it can be."""
        return self._view(flat).reshape(self.shape)

    def add_to(self, flat: Tensor, values: Tensor) -> None:
        """Add values (*shape) to the entries of a flat vector of all parameters."""
        self._view(flat).add_(values.reshape(self.size))

    def add_within(self, rows: Tensor, values: Tensor) -> None:
        """Add values (B, *shape) to rows (B, n) of the flattened parameter alone."""
        size, stride = (len(rows), *self.size), (rows.stride(0), *self.stride)
        rows.as_strided(size, stride, self.offset).add_(values.reshape(size))

    def _view(self, flat: Tensor) -> Tensor:
        start = flat.storage_offset() + self.start + self.offset
        return flat.as_strided(self.size, self.stride, start)


class Call(ABC):
    """One call of a layer function, without its data."""

    @property
    @abstractmethod
    def slots(self) -> tuple[Slot, ...]:
        """The parameters that it uses."""

    @abstractmethod
    def prepare(self, activations: Tensor) -> Tensor:
        """Turn activations (B, …) into what the other methods take, once for all columns."""

    @abstractmethod
    def gradients(self, entered: Tensor, pulled: Tensor) -> Iterator[tuple[Slot, Tensor]]:
        """Gradient of every sample, (B, *shape) for each slot.

        ``entered`` are prepared activations (B, …), ``pulled`` the gradients at the output (B, …).
        """

    @abstractmethod
    def add_squares(self, entered: Tensor, pulled: Tensor, total: Tensor) -> None:
        """Add the squares of all gradients to a flat vector (P,).

        ``pulled`` holds several gradients (K, B, …) at the output, and squares are summed over both
        axes.
        """

    @abstractmethod
    def squared_norms(self, entered: Tensor, pulled: Tensor, weights: Tensor) -> Tensor:
        """Sums of the squares of each gradient (K, B), entries weighted by a flat vector (P,)."""


@final
@dataclass(frozen=True)
class Multiply(Call):
    """Linear layers and convolutions: at every position a matrix times a vector, by groups.

    The gradient of a sample is ``Σ_s g_s a_sᵀ`` over its positions s.

    Attributes
    ----------
    weight, bias
        (groups, out, in) and (groups, out); None where the problem holds them still.
    patches
        Turns activations (B, …) into (B, S, groups, in).
    channels
        Turns gradients at the output (B, …) into (B, S, groups, out).
    """

    weight: Slot | None
    bias: Slot | None
    patches: Callable[[Tensor], Tensor]
    channels: Callable[[Tensor], Tensor]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in (self.weight, self.bias) if slot is not None)

    def prepare(self, activations: Tensor) -> Tensor:
        return activations if self.weight is None else self.patches(activations)

    def gradients(self, entered: Tensor, pulled: Tensor) -> Iterator[tuple[Slot, Tensor]]:
        g = self.channels(pulled)
        if self.weight is not None:
            yield self.weight, _outer(entered, g)
        if self.bias is not None:
            yield self.bias, g.sum(1)

    def add_squares(self, entered: Tensor, pulled: Tensor, total: Tensor) -> None:
        if self.channels(pulled[0]).shape[1] == 1:
            self._add_squares_of_one(entered, self.channels(pulled.square().sum(0)), total)
            return
        g = self._by_sample(pulled)
        if self.bias is not None:
            self.bias.add_to(total, g.sum(2).square().sum((0, 1)))
        if self.weight is None:
            return
        groups, out, width = self.weight.shape
        rows = torch.zeros(groups, g.shape[1] * out, width, dtype=g.dtype, device=g.device)
        for part, _ in self._outer_products(entered, g):
            rows += part.square_().sum(0)
        self.weight.add_to(total, rows.unflatten(1, (-1, out)).sum(1))

    def _add_squares_of_one(self, entered: Tensor, squares: Tensor, total: Tensor) -> None:
        """One position: the square of an outer product is that of its factors."""
        if self.bias is not None:
            self.bias.add_to(total, squares.sum((0, 1)))
        if self.weight is not None:
            products = torch.einsum("bsgo,bsgi->goi", squares, entered.square())
            self.weight.add_to(total, products)

    def squared_norms(self, entered: Tensor, pulled: Tensor, weights: Tensor) -> Tensor:
        g = self._by_sample(pulled)
        norms = g.new_zeros(g.shape[:2])
        if self.bias is not None:
            norms = (g.sum(2).square() * self.bias.of(weights)).sum((2, 3))
        if self.weight is None:
            return norms.mT
        factor = self.weight.of(weights)
        if g.shape[2] == 1:
            through = torch.einsum("bkgo,goi->bkgi", g[:, :, 0].square(), factor)
            return (norms + (through * entered[:, :1].square()).sum((2, 3))).mT
        for part, chosen in self._outer_products(entered, g):
            squares = part.square_().unflatten(2, (g.shape[1], -1)).movedim(2, 1)
            norms[chosen] += squares.flatten(2) @ factor.flatten()
        return norms.mT

    def _by_sample(self, pulled: Tensor) -> Tensor:
        """Gradients (K, B, …) as (B, K, S, groups, out)."""
        first = pulled.movedim(0, 1)
        return self.channels(first.flatten(0, 1)).unflatten(0, first.shape[:2])

    def _outer_products(self, a: Tensor, g: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Gradients of all columns, (b, groups, K out, in), some samples b at a time."""
        columns = g.permute(0, 3, 1, 4, 2).flatten(2, 3)
        patches = a.permute(0, 2, 1, 3)
        chunk = max(1, _ENTRIES_AT_ONCE // (columns[0, :, :, 0].numel() * a.shape[-1]))
        for start in range(0, len(a), chunk):
            chosen = slice(start, start + chunk)
            yield columns[chosen] @ patches[chosen], chosen


def _outer(a: Tensor, g: Tensor) -> Tensor:
    """Sums over positions of outer products: (B, S, G, I) and (B, S, G, O) give (B, G, O, I)."""
    return g.permute(0, 2, 3, 1) @ a.permute(0, 2, 1, 3)


@final
@dataclass(frozen=True)
class Broadcast(Call):
    """Parameters that are multiplied with or added to something, entry by entry.

    The affine part of normalizations, scales and embeddings of positions.

    Attributes
    ----------
    weight
        What multiplies the activations, in a shape that broadcasts against them.
    bias
        What is added.
    part
        Takes the part of the gradient at the output that concerns the parameters.
    """

    weight: Slot | None
    bias: Slot | None
    part: Callable[[Tensor], Tensor]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in (self.weight, self.bias) if slot is not None)

    def prepare(self, activations: Tensor) -> Tensor:
        return activations

    def gradients(self, entered: Tensor, pulled: Tensor) -> Iterator[tuple[Slot, Tensor]]:
        g = self.part(pulled)
        if self.weight is not None:
            yield self.weight, _sum_to(g * entered, self.weight.shape)
        if self.bias is not None:
            yield self.bias, _sum_to(g, self.bias.shape)

    def add_squares(self, entered: Tensor, pulled: Tensor, total: Tensor) -> None:
        for column in pulled:
            for slot, rows in self.gradients(entered, column):
                slot.add_to(total, rows.square().sum(0))

    def squared_norms(self, entered: Tensor, pulled: Tensor, weights: Tensor) -> Tensor:
        norms = pulled.new_zeros(pulled.shape[:2])
        for column, row in zip(pulled, norms, strict=True):
            for slot, rows in self.gradients(entered, column):
                row += (rows.square() * slot.of(weights)).reshape(len(rows), -1).sum(1)
        return norms


def _sum_to(rows: Tensor, size: tuple[int, ...]) -> Tensor:
    """Sum (B, …) over the axes that were broadcast, down to (B, *size)."""
    lead = rows.ndim - 1 - len(size)
    rows = rows.sum(tuple(range(1, 1 + lead))) if lead else rows
    axes = [i + 1 for i, length in enumerate(size) if length == 1 and rows.shape[i + 1] > 1]
    return rows.sum(axes, keepdim=True) if axes else rows


@final
@dataclass(frozen=True)
class Look(Call):
    """Rows of a table that are looked up by indices.

    Attributes
    ----------
    table
        (rows, entries).
    padding
        Index whose row has no gradient; -1 for none.
    """

    table: Slot
    padding: int

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (self.table,)

    def prepare(self, activations: Tensor) -> Tensor:
        return activations

    def gradients(self, entered: Tensor, pulled: Tensor) -> Iterator[tuple[Slot, Tensor]]:
        size, width = self.table.shape
        rows = pulled.new_zeros(len(pulled), size, width)
        keys, where, kept = self._looked_up(entered)
        rows[keys // size, keys % size] = _summed_by(where, pulled.reshape(-1, width)[kept])
        yield self.table, rows

    def add_squares(self, entered: Tensor, pulled: Tensor, total: Tensor) -> None:
        size, width = self.table.shape
        keys, where, kept = self._looked_up(entered)
        into = self.table.of(total)
        for column in pulled:
            sums = _summed_by(where, column.reshape(-1, width)[kept])
            into.index_add_(0, keys % size, sums.square().to(into.dtype))

    def squared_norms(self, entered: Tensor, pulled: Tensor, weights: Tensor) -> Tensor:
        size, width = self.table.shape
        keys, where, kept = self._looked_up(entered)
        norms, factor = pulled.new_zeros(pulled.shape[:2]), self.table.of(weights)[keys % size]
        for column, row in zip(pulled, norms, strict=True):
            sums = _summed_by(where, column.reshape(-1, width)[kept])
            row.index_add_(0, keys // size, (sums.square() * factor).sum(1))
        return norms

    def _looked_up(self, entered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of sample and row, which pair each look-up belongs to, and which count."""
        index = entered.reshape(len(entered), -1)
        sample = torch.arange(len(index), device=index.device)[:, None]
        kept = (index != self.padding).flatten()
        found = (sample * self.table.shape[0] + index).flatten()[kept]
        keys, where = torch.unique(found, return_inverse=True)
        return keys, where, kept


def _summed_by(group: Tensor, rows: Tensor) -> Tensor:
    """Sum the rows of each group, which are numbered without gaps."""
    num = int(group.max()) + 1 if len(group) else 0
    return rows.new_zeros(num, rows.shape[1]).index_add_(0, group, rows)

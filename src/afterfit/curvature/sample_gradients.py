"""Gradients of single samples, kept in the factors in which a layer makes them.

The gradient of a sample in the weight of a layer is ``Σ_s g_s a_sᵀ`` over the positions s at which
the layer works: inputs a times gradients g at the output. Inner products of two such gradients need
none of them, ``Σ_st (a_s · a'_t)(g_s · g'_t)`` ("ghost" products), and one position takes
``in + out`` numbers in place of ``in × out``. Where a layer has so many positions that the matrix
is smaller, or cheaper, the matrix is taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.diagonal import (
    by_visibility,
    flat_scale,
    joined_gradients,
)
from afterfit.curvature.factors import loose, stacked
from afterfit.curvature.tracing import Trace, Tracer
from afterfit.curvature.units import Unit, units_of
from afterfit.problem.data import Batch, Batches
from afterfit.problem.persample import GIBIBYTE, gradients
from afterfit.problem.problem import Problem

_ENTRIES_AT_ONCE = 2**24
"""Entries of what is made on the way to a block of inner products."""


@final
@dataclass(frozen=True)
class Factored:
    """Gradients of B samples in the parameters of one block: ``Σ_s outputs_s inputs_sᵀ``.

    Rows (B, n) that come from no layer have one position and one output, which is 1.

    Attributes
    ----------
    inputs
        (B, S, I).
    outputs
        (B, S, O).
    """

    inputs: Float[Tensor, "B S I"]
    outputs: Float[Tensor, "B S O"]

    @classmethod
    def of_rows(cls, rows: Float[Tensor, "B n"]) -> "Factored":
        """Gradients that are whole."""
        return cls(rows[:, None], rows.new_ones(len(rows), 1, 1))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes that the factors take."""
        return self.inputs.nbytes + self.outputs.nbytes

    @property
    def num_entries(self) -> int:
        """Number of parameters of the block."""
        return self.inputs.shape[2] * self.outputs.shape[2]

    def matrices(self) -> Float[Tensor, "B O I"]:
        """Gradients as the matrices that they are."""
        return self.outputs.mT @ self.inputs

    def rows(self) -> Float[Tensor, "B n"]:
        """Gradients as vectors; the order within the block is that of ``matrices``."""
        return self.matrices().flatten(1)

    def smallest(self) -> "Factored":
        """Keep whichever is smaller: the factors, or the gradients themselves."""
        _, positions, width = self.inputs.shape
        if positions * (width + self.outputs.shape[2]) <= self.num_entries + 1:
            return self
        return Factored.of_rows(self.rows())

    def scaled(self, weights: Float[Tensor, " B"]) -> "Factored":
        """Gradient of each sample times a number."""
        return Factored(self.inputs, self.outputs * weights[:, None, None].to(self.outputs))

    def to(self, dtype: torch.dtype) -> "Factored":
        """The same in another precision."""
        return Factored(self.inputs.to(dtype), self.outputs.to(dtype))

    def at(self, index: slice | Tensor) -> "Factored":
        """Only these samples."""
        return Factored(self.inputs[index], self.outputs[index])

    def squared_norms(self) -> Float[Tensor, " B"]:
        """Squared norm of each gradient."""
        _, positions, width = self.inputs.shape
        if positions == 1:
            return self.inputs.square().sum((1, 2)) * self.outputs.square().sum((1, 2))
        if positions * (width + self.outputs.shape[2]) < self.num_entries:
            grams = [part @ part.mT for part in (self.inputs, self.outputs)]
            return (grams[0] * grams[1]).sum((1, 2))
        chunks = self._chunks(self.num_entries)
        return torch.cat([part.matrices().square().sum((1, 2)) for part in chunks])

    def inner(self, other: "Factored") -> Float[Tensor, "A B"]:
        """Inner product of each of these gradients with each of others in the same block."""
        if len(self) == 0 or len(other) == 0:
            return self.inputs.new_zeros(len(self), len(other))
        alike = self.inputs.shape[2] == other.inputs.shape[2]
        positions = self.inputs.shape[1] * other.inputs.shape[1]
        factors = self.inputs.shape[2] + self.outputs.shape[2]
        if alike and positions * factors <= max(self.num_entries, factors):
            return self._ghost(other)
        pieces = [
            torch.cat([part.rows() @ block for part in self._chunks(self.num_entries)])
            for block in (part.rows().mT for part in other._chunks(self.num_entries))
        ]
        return torch.cat(pieces, dim=1)

    def _ghost(self, other: "Factored") -> Float[Tensor, "A B"]:
        if self.inputs.shape[1] == other.inputs.shape[1] == 1:
            return self._ghost_of_one(other)
        positions = other.inputs.shape[1]
        rows = []
        for part in self._chunks(self.inputs.shape[1] * positions * len(other)):
            both = part.inputs.flatten(0, 1) @ other.inputs.flatten(0, 1).mT
            both *= part.outputs.flatten(0, 1) @ other.outputs.flatten(0, 1).mT
            shape = (len(part), -1, len(other), positions)
            rows.append(both.view(shape).sum((1, 3)))
        return torch.cat(rows)

    def _ghost_of_one(self, other: "Factored") -> Float[Tensor, "A B"]:
        found = self.inputs[:, 0] @ other.inputs[:, 0].mT
        if self.outputs.shape[2] == 1:
            return found.mul_(self.outputs[:, 0]).mul_(other.outputs[:, 0].mT)
        return found.mul_(self.outputs[:, 0] @ other.outputs[:, 0].mT)

    def _chunks(self, entries: int) -> Iterator["Factored"]:
        size = max(1, _ENTRIES_AT_ONCE // max(entries, 1))
        for start in range(0, len(self), size):
            yield self.at(slice(start, start + size))


Blocks = dict[str, Factored]
"""Gradients of some samples, by the block of parameters that they are in."""


def inner(left: Mapping[str, Factored], right: Mapping[str, Factored]) -> Float[Tensor, "A B"]:
    """Inner products of whole gradients: the sum of those of their blocks."""
    products = (left[name].inner(right[name]) for name in left if name in right)
    total = next(products)
    for product in products:
        total += product
    return total


def squared_norms(blocks: Mapping[str, Factored]) -> Float[Tensor, " B"]:
    """Squared norms of whole gradients."""
    return torch.stack([part.squared_norms() for part in blocks.values()]).sum(0)


def joined(chunks: Sequence[Mapping[str, Factored]]) -> Blocks:
    """Samples of several chunks one after the other; zeros where a chunk lacks a block."""
    if len(chunks) == 1:
        return dict(chunks[0])
    names = dict.fromkeys(name for chunk in chunks for name in chunk)
    lengths = [len(next(iter(chunk.values()))) for chunk in chunks]
    return {name: _joined_block([chunk.get(name) for chunk in chunks], lengths) for name in names}


def _joined_block(parts: Sequence[Factored | None], lengths: Sequence[int]) -> Factored:
    there = [part for part in parts if part is not None]
    widths = {(part.inputs.shape[2], part.outputs.shape[2]) for part in there}
    if len(widths) > 1:  # some are whole and some in factors
        parts = [None if part is None else Factored.of_rows(part.rows()) for part in parts]
        there = [part for part in parts if part is not None]
    positions = max(part.inputs.shape[1] for part in there)
    padded = [
        there[0].to(there[0].inputs.dtype).at(slice(0, 0)) if part is None else part
        for part in parts
    ]
    pairs = [(part.inputs, part.outputs) for part in padded]
    inputs, outputs = (
        torch.cat([_padded(p, n, positions) for p, n in zip(side, lengths, strict=True)])
        for side in zip(*pairs, strict=True)
    )
    return Factored(inputs, outputs)


def _padded(factor: Tensor, length: int, positions: int) -> Tensor:
    """Fill with zeros up to so many samples and positions; zeros change no inner product."""
    if factor.shape[:2] == (length, positions):
        return factor
    whole = factor.new_zeros(length, positions, factor.shape[2])
    whole[: len(factor), : factor.shape[1]] = factor
    return whole


def sample_gradients(
    problem: Problem, data: Batches, memory_budget: int = GIBIBYTE
) -> Iterator[tuple[Int[Tensor, " B"], Blocks]]:
    """Gradient of every sample's loss at the trained parameters, in factors, batch by batch.

    One forward and one backward pass. The sum over blocks is the gradient: parameters of layers in
    factors (the weight of a layer with its bias), tables, normalizations and weights that several
    layers share in rows. What no rule describes, and problems whose layers cannot be seen, are
    differentiated sample by sample (:func:`~afterfit.problem.persample.gradients`).

    Parameters
    ----------
    memory_budget
        Bytes that gradients outside of layers may take at once.

    Raises
    ------
    ValueError
        If targets do not fit the outputs.
    """
    seen, unseen = by_visibility(problem, data)
    tracer = None if seen is None else Tracer.of(seen, data)
    for index, rows in _visited(unseen, data, memory_budget):
        blocks = {} if rows is None else {UNSEEN: Factored.of_rows(rows)}
        if tracer is not None and seen is not None:
            blocks |= _of_layers(seen, tracer, data.fetch(index))
        yield index, blocks


UNSEEN = "without layers"
"""Name of the block of all parameters that no known layer uses."""


def _visited(
    problem: Problem | None, data: Batches, memory_budget: int
) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B P"] | None]]:
    if problem is not None:
        yield from gradients(problem, data, memory_budget)
        return
    for index in torch.arange(data.num_samples).split(data.batch_size):
        yield index, None


def _of_layers(problem: Problem, tracer: Tracer, batch: Batch) -> Blocks:
    targets = batch.targets.to(problem.device)
    chunks = []
    for positions, trace in tracer.traces(batch):
        y = targets[positions.to(problem.device)]
        found = trace.outputs.detach()
        problem.likelihood.check(found, y)
        slopes = loss_slopes(problem.likelihood.loss, found, y)
        chunks.append(blocks_of(problem, trace, trace.pull(slopes[None])))
    return joined(chunks)


def loss_slopes(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
) -> Tensor:
    """Gradient of each sample's loss in its own outputs."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(leaf, targets).sum()
    return torch.autograd.grad(total, leaf)[0]


def blocks_of(problem: Problem, trace: Trace, pulled: Sequence[Tensor]) -> Blocks:
    """Gradients (first of the columns) in all blocks of a run."""
    units, found = units_of(trace.calls), {}
    scale = {} if problem.coordinates is None else problem.coordinates.scale
    for unit in units:
        part = Factored(unit.inputs(trace), stacked(unit, trace, pulled)[0])
        found[block_name(unit.names, unit.group)] = (
            part if scale.keys().isdisjoint(unit.names) else _stretched(problem, unit, part)
        )
    rest, kept = loose(trace, units, pulled)
    names = {slot.name for call in rest.calls for slot in call.slots}
    names -= {name for unit in units for name in unit.names}
    for slot, rows in joined_gradients(rest, [g[0] for g in kept], names):
        factor = scale.get(slot.name)
        whole = rows if factor is None else rows * factor.flatten()
        found[slot.name] = Factored.of_rows(whole)
    return found


def block_name(names: tuple[str, ...], group: int) -> str:
    """Name of the block of some parameters, and of a group of a convolution after the first."""
    return "+".join(names) + (f"#{group}" if group else "")


def _stretched(problem: Problem, unit: Unit, part: Factored) -> Factored:
    """Gradients in relative coordinates: entry by entry times the scale, which has no factors."""
    factor = flat_scale(problem)[unit.positions(problem.num_params).to(problem.device)]
    return Factored.of_rows((part.matrices() * factor).flatten(1))


__all__ = [
    "UNSEEN",
    "Blocks",
    "Factored",
    "block_name",
    "blocks_of",
    "inner",
    "joined",
    "loss_slopes",
    "sample_gradients",
    "squared_norms",
]

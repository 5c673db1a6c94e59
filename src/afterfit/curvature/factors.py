"""Sums over all samples from which Kronecker-factored curvature is made."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.diagonal import add_squares, flat_scale, pulled_columns
from afterfit.curvature.tracing import Trace, Tracer
from afterfit.curvature.units import Block, Unit, units_of
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

Sharing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Turns inputs (B, S, I) and gradients (K, B, S, O) at S positions into the rows of the factors."""


def expand(
    inputs: Float[Tensor, "B S I"], outputs: Float[Tensor, "K B S O"]
) -> tuple[Float[Tensor, "B S I"], Float[Tensor, "K B S O"]]:
    """Every position is a row of its own: exact where the loss is a sum over positions."""
    return inputs, outputs


def reduce(
    inputs: Float[Tensor, "B S I"], outputs: Float[Tensor, "K B S O"]
) -> tuple[Float[Tensor, "B 1 I"], Float[Tensor, "K B 1 O"]]:
    """One row a sample: exact where a linear network averages over positions; cheaper."""
    return inputs.mean(1, keepdim=True), outputs.sum(2, keepdim=True)


@final
@dataclass(frozen=True)
class Factors:
    """Sums over all samples.

    Attributes
    ----------
    units
        What each block covers.
    outputs, inputs
        Factors of each block in the parameters of the network, float64: sums over samples of the
        first kind, means of the second.
    squares
        For all other parameters their exact diagonal (P,), in the coordinates of the problem.
    """

    units: tuple[Unit, ...]
    outputs: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    squares: Float[Tensor, " P"]


def factors(problem: Problem, data: Batches, sharing: Sharing) -> Factors:
    """Run all samples forward once, backward C times, and sum the factors of every layer.

    Raises
    ------
    ValueError
        If a parameter is used in one way for some samples and in another for others.
    """
    total = torch.zeros(problem.num_params, dtype=torch.float64, device=problem.device)
    left: dict[Block, _Gram] = {}
    right: dict[Block, _Gram] = {}
    known: dict[Block, Unit] = {}
    apart: set[str] = set()
    for trace, units, pulls in pulled_traces(problem, data, problem.likelihood.root):
        known = {unit.block: unit for unit in units} | known
        apart |= _without_block(trace, units)
        for first, pulled in enumerate(pulls):
            for unit in units:
                a, g = sharing(unit.inputs(trace), stacked(unit, trace, pulled))
                left.setdefault(unit.block, _Gram()).add(g)
                if not first:
                    right.setdefault(unit.block, _Gram()).add(a)
            add_squares(*loose(trace, units, pulled), total)
    units = tuple(known[block] for block in left)
    _require_one_block_each(units, apart)
    sums = tuple(gram.total() for gram in left.values())
    means = tuple(right[block].total() / max(right[block].count, 1) for block in left)
    squares = total.to(problem.dtype) * flat_scale(problem).square()
    return Factors(units, sums, means, squares)


def _without_block(trace: Trace, units: Sequence[Unit]) -> set[str]:
    """Parameters that a run uses, and that are in none of its blocks."""
    taken = {name for unit in units for name in unit.names}
    return {slot.name for call in trace.calls for slot in call.slots} - taken


def _require_one_block_each(units: Sequence[Unit], apart: set[str]) -> None:
    """Refuse networks that use a parameter in one way for some samples and in another for others.

    Raises
    ------
    ValueError
        If a parameter is in two blocks, or in one for some samples only.
    """
    pairs: dict[str, set[tuple[str, ...]]] = {}
    for unit in units:
        for name in unit.names:
            pairs.setdefault(name, set()).add(unit.names)
    torn = [name for name, found in pairs.items() if len(found) > 1 or name in apart]
    if torn:
        message = (
            f"{torn[0]} is used with other parameters, or by other functions, for some samples "
            "than for others, expected one way of use: there is no one Kronecker block; leave it "
            "out with restrict(problem, ...), or take curvature=diagonal"
        )
        raise ValueError(message)


@final
class _Gram:
    """Sum of ``rowsᵀ rows``, float64; rows wait until there are as many of them as columns.

    Few rows of a wide layer are quickly multiplied, but to add the matrix takes long.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, rows: Float[Tensor, "*B n"]) -> None:
        """Take more rows."""
        flat = rows.reshape(-1, rows.shape[-1])
        self.count += len(flat)
        self._waiting.append(flat)
        if sum(map(len, self._waiting)) >= flat.shape[1]:
            self.total()

    def total(self) -> Float[Tensor, "n n"]:
        """Multiply what waits, and give the sum of all."""
        if self._waiting:
            flat = torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
            new = flat.mT @ flat
            self._sum = new.double() if self._sum is None else self._sum.add_(new)
            self._waiting.clear()
        assert self._sum is not None
        return self._sum


def pulled_traces(
    problem: Problem, data: Batches, columns: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Trace, list[Unit], Iterator[tuple[Tensor, ...]]]]:
    """Run all samples: what was seen, its blocks, and gradients along some columns at a time."""
    tracer = Tracer.of(problem, data)
    for batch in data:
        targets = batch.targets.to(problem.device)
        for positions, trace in tracer.traces(batch):
            found = trace.outputs.detach()
            problem.likelihood.check(found, targets[positions.to(problem.device)])
            yield trace, units_of(trace.calls), pulled_columns(trace, columns(found))


def stacked(unit: Unit, trace: Trace, pulled: Sequence[Tensor]) -> Float[Tensor, "K B S O"]:
    """Gradients at the output of a layer along several columns."""
    sizes = pulled[0].shape[1], len(pulled[0])
    each = {i: pulled[i].movedim(0, 1).flatten(0, 1) for i in unit.calls}
    return unit.outputs(trace, each).unflatten(0, sizes).movedim(1, 0)


def loose(
    trace: Trace, units: Sequence[Unit], pulled: Sequence[Tensor]
) -> tuple[Trace, tuple[Tensor, ...]]:
    """The calls that belong to no block."""
    taken = {name for unit in units for name in unit.names}
    kept = [
        i
        for i, call in enumerate(trace.calls)
        if not all(slot.name in taken for slot in call.slots)
    ]
    part = replace(
        trace,
        calls=tuple(trace.calls[i] for i in kept),
        activations=tuple(trace.activations[i] for i in kept),
        probes=tuple(trace.probes[i] for i in kept),
    )
    return part, tuple(pulled[i] for i in kept)

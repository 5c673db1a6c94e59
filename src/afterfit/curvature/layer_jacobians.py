"""Jacobians kept as the factors that layers give, for predictions that need no rows of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.diagonal import (
    flat_scale,
    joined_gradients,
    only,
    pulled_columns,
    unit_columns,
)
from afterfit.curvature.factors import loose, stacked
from afterfit.curvature.jacobian import jacobian_rows
from afterfit.curvature.kfac import places_of
from afterfit.curvature.tracing import Trace, Tracer
from afterfit.curvature.units import Unit, units_of
from afterfit.problem.data import Batches
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class FactoredPart:
    """Jacobian of some samples in a layer's weight and bias, ``scale ⊙ Σ_s g_s a_sᵀ``.

    Attributes
    ----------
    names, positions
        The parameters, and the entries of the flat vector, as (out, in) row by row.
    inputs
        ``a`` at S positions (B, S, in), ending in a one where there is a bias.
    outputs
        ``g`` for each output of the network (B, C, S, out).
    scale
        Of the coordinates of the problem (out, in); ones where parameters move absolutely.
    """

    names: tuple[str, ...]
    positions: Int[Tensor, " n"]
    inputs: Float[Tensor, "B S I"]
    outputs: Float[Tensor, "B C S O"]
    scale: Float[Tensor, "O I"]

    def rows(self) -> Float[Tensor, "B C n"]:
        """Jacobian in the coordinates of the problem, multiplied out."""
        return ((self.outputs.mT @ self.inputs[:, None]) * self.scale).flatten(2)


@final
@dataclass(frozen=True)
class RowsPart:
    """Jacobian of some samples in parameters without factors, in the coordinates of the problem."""

    names: tuple[str, ...]
    positions: Int[Tensor, " n"]
    values: Float[Tensor, "B C n"]

    def rows(self) -> Float[Tensor, "B C n"]:
        """Jacobian in the coordinates of the problem."""
        return self.values


@final
@dataclass(frozen=True)
class UnusedPart:
    """Parameters that some samples do not use, as those of an expert that is not asked.

    Attributes
    ----------
    names, positions
        The parameters, and the entries of the flat vector.
    outputs
        Of the network (B, C).
    """

    names: tuple[str, ...]
    positions: Int[Tensor, " n"]
    outputs: Float[Tensor, "B C"]

    def rows(self) -> Float[Tensor, "B C n"]:
        """Zeros."""
        return self.outputs.new_zeros(*self.outputs.shape, len(self.positions))


Parts = FactoredPart | RowsPart | UnusedPart
"""Parts of a Jacobian."""


@final
@dataclass(frozen=True)
class LayerJacobian:
    """Outputs of some samples and their Jacobian, by the blocks of ``kfac`` that these samples use.

    Attributes
    ----------
    index
        Positions of the samples in the data.
    outputs
        Of the network (B, C).
    parts
        Of the Jacobian.
    """

    index: Int[Tensor, " B"]
    outputs: Float[Tensor, "B C"]
    parts: tuple[Parts, ...]


def layer_jacobians(problem: Problem, data: Batches) -> Iterator[LayerJacobian]:
    """Run all samples forward once and backward C times, and keep the factors of every layer.

    Parameters that no known layer function uses come as rows, those that the samples do not use as
    an `UnusedPart`.
    """
    uncovered = Tracer.of(problem, data).uncovered
    seen = [name for name in problem.params if name not in uncovered]
    places = places_of(problem)
    if not seen:
        yield from _by_rows(problem, data)
        return
    layered = only(problem, seen)
    within = torch.cat([places[name] for name in seen])
    tracer, blocks = Tracer.of(layered, data), _Blocks(layered, within)
    for batch in data:
        for chosen, trace in tracer.traces(batch):
            index = batch.index[chosen]
            parts: list[Parts] = [*_parts(layered, trace, blocks)]
            if uncovered:
                parts.append(_rows_of(only(problem, uncovered), data.subset(index), places))
            parts.sort(key=lambda part: int(part.positions[0]))
            yield LayerJacobian(index, trace.outputs.detach(), tuple(parts))


def _by_rows(problem: Problem, data: Batches) -> Iterator[LayerJacobian]:
    names, everything = tuple(problem.params), torch.arange(problem.num_params).to(problem.device)
    for index, rows in jacobian_rows(problem, data):
        found = outputs(problem, data.subset(index))
        yield LayerJacobian(index, found, (RowsPart(names, everything, rows),))


@final
class _Blocks:
    """Places and scales of blocks, looked up once for all batches."""

    def __init__(self, problem: Problem, within: Int[Tensor, " P"]) -> None:
        self._size, self._scale, self._within = problem.num_params, flat_scale(problem), within
        self._found: dict[Unit, tuple[Tensor, Tensor]] = {}

    def of(self, unit: Unit) -> tuple[Int[Tensor, " n"], Float[Tensor, "O I"]]:
        """Entries of the flat vector that a block acts on, and their scale."""
        if unit not in self._found:
            where = unit.positions(self._size).to(self._scale.device)
            self._found[unit] = self._within[where.flatten()], self._scale[where]
        return self._found[unit]

    def alone(self, where: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """As `of`, for a parameter in no block."""
        return self._within[where], self._scale[where]


def _parts(problem: Problem, trace: Trace, blocks: _Blocks) -> Iterator[Parts]:
    pulls = list(pulled_columns(trace, unit_columns(trace.outputs.detach())))
    pulled = [_joined(part) for part in zip(*pulls, strict=True)]
    units = units_of(trace.calls)
    for unit in units:
        positions, scale = blocks.of(unit)
        outputs = stacked(unit, trace, pulled).movedim(0, 1)
        yield FactoredPart(unit.names, positions, unit.inputs(trace), outputs, scale)
    taken = {name for unit in units for name in unit.names}
    used = {slot.name for call in trace.calls for slot in call.slots}
    free = {name: where for name, where in places_of(problem).items() if name not in taken}
    rest, kept = loose(trace, units, pulled)
    found = [
        {slot.name: rows for slot, rows in joined_gradients(rest, [g[c] for g in kept], free)}
        for c in range(len(pulled[0]))
    ]
    for name, where in free.items():
        positions, scale = blocks.alone(where)
        if name in used:
            columns = torch.stack([one[name] for one in found], dim=1)
            yield RowsPart((name,), positions, columns * scale)
        else:
            yield UnusedPart((name,), positions, trace.outputs.detach())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _rows_of(problem: Problem, data: Batches, places: dict[str, Tensor]) -> RowsPart:
    names = tuple(problem.params)
    rows = torch.cat([part for _, part in jacobian_rows(problem, data)])
    return RowsPart(names, torch.cat([places[name] for name in names]), rows)

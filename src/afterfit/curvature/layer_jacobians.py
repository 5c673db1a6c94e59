"""Jacobians kept as the factors that layers give, for predictions that need no rows of them."""

from collections.abc import Iterator
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
from afterfit.curvature.units import units_of
from afterfit.problem.data import Batches
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
class LayerJacobian:
    """Outputs of some samples and their Jacobian, by the blocks of ``kfac`` in the same order.

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
    parts: tuple[FactoredPart | RowsPart, ...]


def layer_jacobians(problem: Problem, data: Batches) -> Iterator[LayerJacobian]:
    """Run all samples forward once and backward C times, and keep the factors of every layer.

    Parameters that no known layer function uses come as rows.
    """
    uncovered = Tracer.of(problem, data).uncovered
    seen = [name for name in problem.params if name not in uncovered]
    layered, places = only(problem, seen), places_of(problem)
    within = torch.cat([places[name] for name in seen])
    tracer, scale = Tracer.of(layered, data), flat_scale(layered)
    for batch in data:
        for chosen, trace in tracer.traces(batch):
            index = batch.index[chosen]
            parts = [*_parts(layered, trace, scale, within)]
            if uncovered:
                parts.append(_rows_of(only(problem, uncovered), data.subset(index), places))
            parts.sort(key=lambda part: int(part.positions[0]))
            yield LayerJacobian(index, trace.outputs.detach(), tuple(parts))


def _parts(
    problem: Problem, trace: Trace, scale: Tensor, within: Tensor
) -> Iterator[FactoredPart | RowsPart]:
    pulls = list(pulled_columns(trace, unit_columns(trace.outputs.detach())))
    pulled = [torch.cat(part) for part in zip(*pulls, strict=True)]
    units = units_of(trace.calls)
    for unit in units:
        where = unit.positions(problem.num_params).to(problem.device)
        yield FactoredPart(
            unit.names,
            within[where.flatten()],
            unit.inputs(trace),
            stacked(unit, trace, pulled).movedim(0, 1),
            scale[where],
        )
    taken = {name for unit in units for name in unit.names}
    free = {name: where for name, where in places_of(problem).items() if name not in taken}
    rest, kept = loose(trace, units, pulled)
    found = [
        {slot.name: rows for slot, rows in joined_gradients(rest, [g[c] for g in kept], free)}
        for c in range(len(pulled[0]))
    ]
    for name, where in free.items():
        columns = [one[name] if name in one else _nothing(trace, where) for one in found]
        yield RowsPart((name,), within[where], torch.stack(columns, dim=1) * scale[where])


def _nothing(trace: Trace, where: Tensor) -> Float[Tensor, "B n"]:
    return trace.outputs.new_zeros(len(trace.outputs), len(where))


def _rows_of(problem: Problem, data: Batches, places: dict[str, Tensor]) -> RowsPart:
    names = tuple(problem.params)
    rows = torch.cat([part for _, part in jacobian_rows(problem, data)])
    return RowsPart(names, torch.cat([places[name] for name in names]), rows)

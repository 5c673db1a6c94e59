"""Exact diagonals: of the generalized Gauss-Newton matrix, and of the Jacobian's square."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from glob import escape

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.jacobian import jacobian_rows
from afterfit.curvature.layers import Call, Slot
from afterfit.curvature.tracing import Trace, Tracer
from afterfit.linalg.structured import Diagonal
from afterfit.problem.data import Batches
from afterfit.problem.persample import flatten, outputs, unflatten
from afterfit.problem.problem import Problem
from afterfit.problem.transform import restrict

_ENTRIES_AT_ONCE = 2**22
"""Entries of the gradients at the outputs of layers that are held together."""

Columns = Callable[[Float[Tensor, "B C"]], Float[Tensor, "B C R"]]
"""For given outputs the vectors that are pulled back, R for each sample."""


def squared_jacobian(problem: Problem, data: Batches) -> dict[str, Tensor]:
    """For each parameter ``Σ_n Σ_c (∂f_c(x_n)/∂θ_i)²``, by name and in the shape of the parameter.

    The diagonal of ``Jᵀ J``, which is the generalized Gauss-Newton matrix of the squared loss; its
    sum is the trace of the tangent kernel. C backward passes, and no Jacobian: the square of the
    outer product ``g aᵀ`` of a linear layer is the outer product of the squares. Parameters that no
    known layer function uses are squared from Jacobian rows of theirs alone.
    """
    return _squares(problem, data, unit_columns)


def unit_columns(found: Float[Tensor, "B C"]) -> Float[Tensor, "B C C"]:
    """One column for each output."""
    identity = torch.eye(found.shape[1], dtype=found.dtype, device=found.device)
    return identity.expand(len(found), -1, -1)


def diagonal(problem: Problem, data: Batches) -> Diagonal:
    """Exact diagonal of the generalized Gauss-Newton matrix ``Σ_n J_nᵀ Λ_n J_n``.

    With ``Λ = R Rᵀ`` it is ``Σ_n Σ_r (Rᵀ J)²``, computed as in :func:`squared_jacobian`.

    Raises
    ------
    TypeError
        If the likelihood has no curvature (``PerSample``).
    """
    return Diagonal(flatten(_squares(problem, data, problem.likelihood.root)))


def _squares(problem: Problem, data: Batches, columns: Columns) -> dict[str, Tensor]:
    seen, unseen = by_visibility(problem, data)
    parts: dict[str, Tensor] = {}
    if unseen is not None:
        parts.update(_by_rows(unseen, data, columns))
    if seen is not None:
        parts.update(_by_layers(seen, data, columns))
    return {name: parts[name] for name in problem.params}


def by_visibility(problem: Problem, data: Batches) -> tuple[Problem | None, Problem | None]:
    """Split a problem into the parameters whose layers are known, and the others."""
    if problem.coordinates is None:
        return None, problem
    uncovered = Tracer.of(problem, data).uncovered
    if not uncovered:
        return problem, None
    seen = [name for name in problem.params if name not in uncovered]
    return (only(problem, seen) if seen else None), only(problem, uncovered)


def only(problem: Problem, names: Iterable[str]) -> Problem:
    """Restrict a problem to parameters by their very names."""
    return restrict(problem, "|".join(escape(name) for name in names))


def _by_rows(problem: Problem, data: Batches, columns: Columns) -> dict[str, Tensor]:
    total = torch.zeros(problem.num_params, dtype=torch.float64, device=problem.device)
    for index, rows in jacobian_rows(problem, data):
        factors = columns(outputs(problem, data.subset(index)))
        total += (factors.mT @ rows).double().square().sum((0, 1))
    return unflatten(total.to(problem.dtype), problem.params)


def _by_layers(problem: Problem, data: Batches, columns: Columns) -> dict[str, Tensor]:
    tracer = Tracer.of(problem, data)
    total = torch.zeros(problem.num_params, dtype=torch.float64, device=problem.device)
    for batch in data:
        for _, trace in tracer.traces(batch):
            for pulled in pulled_columns(trace, columns(trace.outputs.detach())):
                add_squares(trace, pulled, total)
    squares = total.to(problem.dtype) * flat_scale(problem).square()
    return unflatten(squares, problem.params)


def flat_scale(problem: Problem) -> Float[Tensor, " P"]:
    """Derivative of the network's parameters in the coordinates of a problem; ones if absolute."""
    scale = {} if problem.coordinates is None else problem.coordinates.scale
    parts = {name: scale.get(name, torch.ones_like(p)) for name, p in problem.params.items()}
    return flatten(parts)


def pulled_columns(trace: Trace, columns: Float[Tensor, "B C R"]) -> Iterator[tuple[Tensor, ...]]:
    """Gradients at the output of each call for all columns, (K, B, …), some columns at a time."""
    size = sum(probe.numel() for probe in trace.probes)
    for chosen in columns.movedim(-1, 0).split(max(1, _ENTRIES_AT_ONCE // max(size, 1))):
        yield trace.pull(chosen)


def add_squares(trace: Trace, pulled: Sequence[Tensor], total: Float[Tensor, " P"]) -> None:
    """Add the squared gradients of all calls, each pulled back along several columns (K, B, …)."""
    tied = shared_names(trace.calls)
    for i, (call, g) in enumerate(zip(trace.calls, pulled, strict=True)):
        if not any(slot.name in tied for slot in call.slots):
            call.add_squares(trace.entered(i), g, total)
    if tied:
        for column in range(len(pulled[0])):
            for slot, rows in joined_gradients(trace, [g[column] for g in pulled], tied):
                into = total[slot.start : slot.start + rows.shape[1]]
                into += rows.square().sum(0)


def joined_gradients(
    trace: Trace, pulled: Sequence[Tensor], names: Collection[str]
) -> Iterator[tuple[Slot, Tensor]]:
    """Gradients (B, n) of some parameters, by sample, summed over the calls that use them."""
    sums: dict[str, tuple[Slot, Tensor]] = {}
    for i, (call, g) in enumerate(zip(trace.calls, pulled, strict=True)):
        if any(slot.name in names for slot in call.slots):
            for slot, rows in call.gradients(trace.entered(i), g):
                if slot.name not in names:
                    continue
                new = rows.new_zeros(len(rows), slot.length)
                _, joined = sums.setdefault(slot.name, (slot, new))
                slot.add_within(joined, rows)
    yield from sums.values()


def shared_names(calls: tuple[Call, ...]) -> frozenset[str]:
    """Names of parameters that more than one call uses, and of all others in such calls."""
    counts = Counter(slot.name for call in calls for slot in call.slots)
    names = [{slot.name for slot in call.slots} for call in calls]
    return frozenset().union(*(some for some in names if any(counts[n] > 1 for n in some)))

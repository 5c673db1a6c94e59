"""All edges of SGC with two hops at once, exactly, by the algebra of one changed pair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from afterfit.graph.balls import coordinates, row_sizes
from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import Edits, affected
from afterfit.graph.exact import directional_losses
from afterfit.graph.linear import LinearNetwork, degrees, normalized
from afterfit.graph.method import Query
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target
from afterfit.problem.persample import GIBIBYTE, unflatten
from afterfit.typing import Params

_COPIES_OF_A_ROW, _MAX_DENSE = 12, 20_000_000


@final
@dataclass(frozen=True)
class ClosedForm:
    """Exact finite edits of single edges for SGC with K = 2, with no network run at all.

    Removing or inserting (u, v) scales the rows and columns u and v of ``S`` and changes one entry,
    so that every row of ``S² Y`` after the edit is a combination of a few rows of ``Y``, ``S Y``
    and ``S² Y`` before it. With ``Y = [X Wᵀ, X Uᵀ]`` the width of the features is gone. Equal to
    `Exact`, and much faster where nearly all edges are asked for.

    Parameters
    ----------
    memory_budget
        Bytes that rows in flight may take.

    References
    ----------
    The estimator is that of Song, Kim, Yang (2023), "RGE", ICML, PMLR 202:32331; SGC is Wu,
    Souza, Zhang, Fifty, Yu, Weinberger (2019), "Simplifying graph convolutional networks", ICML,
    arXiv:1902.07153.
    """

    memory_budget: int = GIBIBYTE // 2
    reference: ClassVar[str] = (
        "Song, Kim, Yang (2023), RGE: A repulsive graph rectification for node classification via "
        "influence, ICML, PMLR 202:32331"
    )

    def shift(self, problem: GraphProblem, edits: Edits, query: Query) -> Float[Tensor, "E K"]:
        linear = _require_closed(problem, edits)
        points = [problem.problem.params[linear.weight]]
        offsets = [_bias(problem.problem.params, linear, points[0])]
        for u in query.solved.value.T:
            parts = unflatten(u.to(problem.x.dtype), problem.problem.params)
            points.append(parts[linear.weight])
            offsets.append(_bias(parts, linear, points[0]))
        y = torch.cat([problem.x @ point.T for point in points], 1)
        offset = torch.cat(offsets)
        total = torch.zeros(
            edits.num_edits, len(points) - 1, dtype=torch.float64, device=problem.x.device
        )
        before: Tensor | None = None
        for rows in self._rows(edits, problem.train, y):
            if before is None:
                before = _losses_along(problem, rows.whole + offset, problem.train)
            after = _losses_along(problem, rows.values + offset, problem.train[rows.place])
            total.index_add_(0, rows.edit, (after - before[rows.place]).double())
        return -total / len(problem.train)

    def propagation(
        self, problem: GraphProblem, edits: Edits, targets: Sequence[Target]
    ) -> Float[Tensor, "E K"]:
        linear = _require_closed(problem, edits)
        point = problem.problem.params[linear.weight]
        offset = _bias(problem.problem.params, linear, point)
        everything = torch.arange(problem.num_nodes, device=problem.x.device)
        outputs = problem.outputs(edits.graph)
        before = torch.stack([target(problem, outputs) for target in targets])
        changes = torch.zeros(edits.num_edits, len(targets), dtype=torch.float64)
        for rows in self._rows(edits, everything, problem.x @ point.T):
            found, sizes = rows.edit.unique_consecutive(return_counts=True)
            pieces = zip(
                found.tolist(),
                rows.place.split(sizes.tolist()),
                (rows.values + offset).split(sizes.tolist()),
                strict=True,
            )
            for edit, places, values in pieces:
                after = outputs.index_copy(0, places, values)
                moved = torch.stack([target(problem, after) for target in targets]) - before
                changes[edit] = moved.double().cpu()
        return changes.to(outputs.device)

    def _rows(self, edits: Edits, watched: Tensor, y: Tensor) -> Iterator["_After"]:
        system = _System.of(edits.graph, watched, y)
        moves = _Moves.of(system, edits)
        row = _COPIES_OF_A_ROW * y.shape[1] * y.element_size()
        reached = affected(edits, watched, 2)
        sizes = row_sizes(reached).cumsum()
        limit = max(1, self.memory_budget // row)
        start = 0
        while start < edits.num_edits:
            used = sizes[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(sizes, used + limit, side="right")))
            edit, place = (at.to(y.device) for at in coordinates(csr_matrix(reached[start:stop])))
            edit = edit + start
            if len(edit):
                yield system.after(edits, moves, edit, place)
            start = stop


class _After(NamedTuple):
    edit: Int[Tensor, " R"]
    place: Int[Tensor, " R"]
    values: Float[Tensor, "R D"]
    whole: Float[Tensor, "W D"]


@final
@dataclass(frozen=True)
class _System:
    """``S`` and ``S²`` in the rows of watched nodes, and Y, S Y, S² Y before any edit."""

    watched: Int[Tensor, " W"]
    one: csr_matrix | Tensor
    two: csr_matrix | Tensor
    degree: Float[Tensor, " V"]
    y: Float[Tensor, "V D"]
    first: Float[Tensor, "V D"]
    second: Float[Tensor, "V D"]

    @classmethod
    def of(cls, graph: EdgeList, watched: Int[Tensor, " W"], y: Float[Tensor, "V D"]) -> "_System":
        matrix = normalized(graph)
        rows = watched.cpu().numpy()
        one = csr_matrix(matrix[rows])
        values = y.detach().cpu().double().numpy()
        first = matrix @ values
        like = y.detach()
        return cls(
            watched,
            _quick(one, like),
            _quick(csr_matrix(one @ matrix), like),
            degrees(graph, like),
            like,
            torch.from_numpy(first).to(like),
            torch.from_numpy(matrix @ first).to(like),
        )

    def after(
        self, edits: Edits, moves: "_Moves", edit: Int[Tensor, " R"], place: Int[Tensor, " R"]
    ) -> _After:
        """Rows of ``S′² Y`` for pairs of an edit and a watched node."""
        u, v = edits.pairs[edit].T
        x = self.watched[place]
        values = self.second[x]
        for ends, step, two_steps in ((u, moves.one_u, moves.two_u), (v, moves.one_v, moves.two_v)):
            values.addcmul_(self._entries(self.one, place, ends), step[edit])
            values.addcmul_(self._entries(self.two, place, ends), two_steps[edit])
        for ends, own, cross in ((u, moves.own_u, moves.end_u), (v, moves.own_v, moves.end_v)):
            there = (x == ends).nonzero()[:, 0]
            at = edit[there]
            values[there] = own[at] * (values[there] + cross[at])
        return _After(edit, place, values, self.second[self.watched])

    def _entries(
        self, matrix: csr_matrix | Tensor, rows: Int[Tensor, " R"], columns: Int[Tensor, " R"]
    ) -> Float[Tensor, "R 1"]:
        if isinstance(matrix, Tensor):
            return matrix[rows, columns][:, None]
        at = rows.cpu().numpy().copy(), columns.cpu().numpy().copy()  # scipy wants to own them
        found = np.asarray(matrix[at]).ravel()
        return torch.from_numpy(found).to(self.y)[:, None]


@final
@dataclass(frozen=True)
class _Moves:
    """What each edit adds to a row x of ``S² Y``, for each unit of S[x, u], S²[x, u] and so for v.

    S′ equals S but for the factors ``α = √(d / (d ± 1))`` on the rows and columns u and v, and for
    the entry (u, v), which goes from a·s to b·s: a = 1, b = 0 for removal, the reverse for
    insertion. The rows u and v of the result have a factor α and a term of their own.
    """

    one_u: Float[Tensor, "E D"]
    one_v: Float[Tensor, "E D"]
    two_u: Float[Tensor, "E D"]
    two_v: Float[Tensor, "E D"]
    own_u: Float[Tensor, "E 1"]
    own_v: Float[Tensor, "E 1"]
    end_u: Float[Tensor, "E D"]
    end_v: Float[Tensor, "E D"]

    @classmethod
    def of(cls, system: _System, edits: Edits) -> "_Moves":
        u, v = edits.pairs.T
        a, b, sign = (0.0, 1.0, 1.0) if edits.inserts else (1.0, 0.0, -1.0)
        du, dv = system.degree[u][:, None], system.degree[v][:, None]
        au, av = (du / (du + sign)).sqrt(), (dv / (dv + sign)).sqrt()
        suv = (du * dv).rsqrt()
        yu, yv, fu, fv = system.y[u], system.y[v], system.first[u], system.first[v]
        # rows u and v of S′ Y
        hu = au * (fu + (au - 1) / du * yu + suv * (b * av * yv - a * yv))
        hv = av * (fv + (av - 1) / dv * yv + suv * (b * au * yu - a * yu))
        return cls(
            one_u=au * hu - fu - (au - 1) / du * yu - (av - 1) * a * suv * yv,
            one_v=av * hv - fv - (av - 1) / dv * yv - (au - 1) * a * suv * yu,
            two_u=(au - 1) * yu,
            two_v=(av - 1) * yv,
            own_u=au,
            own_v=av,
            end_u=(b - a) * av * suv * hv,
            end_v=(b - a) * au * suv * hu,
        )


def _quick(matrix: csr_matrix, like: Tensor) -> csr_matrix | Tensor:
    """Keep a matrix dense where it is small: entries are looked up by the million."""
    if matrix.shape[0] * matrix.shape[1] > _MAX_DENSE:  # pyright: ignore[reportOptionalSubscript]
        return matrix
    return torch.from_numpy(matrix.toarray()).to(like)


def _bias(parts: Params, linear: LinearNetwork, weight: Tensor) -> Float[Tensor, " C"]:
    return weight.new_zeros(len(weight)) if linear.bias is None else parts[linear.bias]


def _losses_along(
    problem: GraphProblem, rows: Float[Tensor, "R D"], nodes: Int[Tensor, " R"]
) -> Float[Tensor, "R K"]:
    """Derivative of each node's loss along every direction: outputs first, then their moves."""
    outputs, *moves = rows.split(len(problem.problem.params[_weight(problem)]), 1)
    columns = [directional_losses(problem, torch.cat([outputs, m], 1), nodes) for m in moves]
    return torch.stack(columns, 1)


def _weight(problem: GraphProblem) -> str:
    assert problem.linear is not None
    return problem.linear.weight


def _require_closed(problem: GraphProblem, edits: Edits) -> LinearNetwork:
    linear = problem.linear
    if linear is None or linear.hops != 2:
        found = "another network" if linear is None else f"SGC with K={linear.hops}"
        message = (
            f"the network is {found}, expected SGC with K=2 on an undirected graph (one SGConv and "
            "nothing else); use method=Exact()"
        )
        raise ValueError(message)
    if len(edits.pairs) != edits.num_edits:
        message = (
            f"{len(edits.pairs)} pairs in {edits.num_edits} edits, expected one each: groups of "
            "edges have no closed form; use method=Exact()"
        )
        raise ValueError(message)
    return linear

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

_COPIES_OF_A_ROW = 16


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
        row = _COPIES_OF_A_ROW * y.shape[1] * y.element_size()
        reached = affected(edits, watched, 2)
        sizes = row_sizes(reached).cumsum()
        limit = max(1, self.memory_budget // row)
        start = 0
        while start < edits.num_edits:
            used = sizes[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(sizes, used + limit, side="right")))
            edit, place = coordinates(csr_matrix(reached[start:stop]))
            edit = edit + start
            if len(edit):
                yield system.after(edits, edit, place)
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
    one: csr_matrix
    two: csr_matrix
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
            one,
            csr_matrix(one @ matrix),
            degrees(graph, like),
            like,
            torch.from_numpy(first).to(like),
            torch.from_numpy(matrix @ first).to(like),
        )

    def after(self, edits: Edits, edit: Int[Tensor, " R"], place: Int[Tensor, " R"]) -> _After:
        """Rows of ``S′² Y`` for pairs of an edit and a watched node.

        S′ equals S but for the factors ``α = √(d / (d ± 1))`` on the rows and columns u and v, and
        for the entry (u, v), which goes from a·s to b·s: a = 1, b = 0 for removal, the reverse for
        insertion.
        """
        u, v = edits.pairs[edit].T
        x = self.watched[place]
        a, b, sign = (0.0, 1.0, 1.0) if edits.inserts else (1.0, 0.0, -1.0)
        du, dv = self.degree[u], self.degree[v]
        au, av = (du / (du + sign)).sqrt()[:, None], (dv / (dv + sign)).sqrt()[:, None]
        suu, svv, suv = (1 / du)[:, None], (1 / dv)[:, None], (du * dv).rsqrt()[:, None]
        yu, yv = self.y[u], self.y[v]
        # rows u and v of S′ Y
        cross = suv * (b * av * yv - a * yv), suv * (b * au * yu - a * yu)
        hu = au * (self.first[u] + (au - 1) * suu * yu + cross[0])
        hv = av * (self.first[v] + (av - 1) * svv * yv + cross[1])
        # S[x, ·] and S²[x, ·] at u and v
        sxu, sxv = self._entries(self.one, place, u), self._entries(self.one, place, v)
        qxu, qxv = self._entries(self.two, place, u), self._entries(self.two, place, v)
        # two steps from x by way of neither u nor v, in S′ but for x's own factor
        rest = (
            self.second[x]
            - sxu * self.first[u]
            - sxv * self.first[v]
            + (au - 1) * (qxu - sxu * suu - sxv * a * suv) * yu
            + (av - 1) * (qxv - sxv * svv - sxu * a * suv) * yv
        )
        at_u, at_v = (x == u)[:, None], (x == v)[:, None]
        elsewhere = rest + au * sxu * hu + av * sxv * hv
        ends_u = au * (rest + au * suu * hu + b * av * suv * hv)
        ends_v = av * (rest + av * svv * hv + b * au * suv * hu)
        values = torch.where(at_u, ends_u, torch.where(at_v, ends_v, elsewhere))
        return _After(edit, place, values, self.second[self.watched])

    def _entries(
        self, matrix: csr_matrix, rows: Int[Tensor, " R"], columns: Int[Tensor, " R"]
    ) -> Float[Tensor, "R 1"]:
        at = rows.cpu().numpy().copy(), columns.cpu().numpy().copy()  # scipy wants to own them
        found = np.asarray(matrix[at]).ravel()
        return torch.from_numpy(found).to(self.y)[:, None]


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

"""Solving with the damped curvature of the mean training loss: ``u = (H + damping I)⁻¹ g``.

``H = (1/N) Σ_v J_vᵀ Λ_v J_v`` is the generalized Gauss-Newton matrix of the training nodes: never
indefinite, and the Hessian itself for SGC. A weight decay of ``(γ/2) ‖θ‖²`` beside the mean loss
belongs to the curvature and is ``damping=γ``.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.linear import LinearNetwork
from afterfit.graph.problem import GraphProblem
from afterfit.problem._autodiff import differentiable_attention, jvp
from afterfit.problem.persample import flat_after, flatten, unflatten
from afterfit.typing import Params

MAX_DUAL = 4_000
"""Above this many training outputs N·C the dual matrix is not formed unless asked for."""

_ROWS_AT_ONCE, _MAX_STEPS, _TOLERANCE = 32, 2_000, 1e-10


@final
@dataclass(frozen=True)
class Solved:
    """Solutions, one column for each right-hand side, and how they were found.

    Attributes
    ----------
    value
        Columns (P, K), float64.
    steps
        Products with the curvature; 0 for a factorization.
    residual
        Largest of ``‖(H + damping I) u − g‖ / ‖g‖``; NaN where it was not looked at.
    converged
        Whether the tolerance was reached.
    method
        Which solver it was.
    """

    value: Float[Tensor, "P K"]
    steps: int
    residual: float
    converged: bool
    method: str


Inverse = Callable[[GraphProblem, Float[Tensor, "P K"], float], Solved]
"""Solves for columns of right-hand sides: `dual`, `conjugate_gradients`, or `smaller`."""


def smaller(problem: GraphProblem, columns: Float[Tensor, "P K"], damping: float | int) -> Solved:
    """Take the dual for SGC with few training outputs, conjugate gradients otherwise."""
    few = len(problem.train) * _num_outputs(problem) <= MAX_DUAL
    chosen = dual if few and problem.linear is not None else conjugate_gradients
    return chosen(problem, columns, damping)


def dual(problem: GraphProblem, columns: Float[Tensor, "P K"], damping: float | int) -> Solved:
    """Factor a matrix of the size of the training outputs (Woodbury), exactly.

    With ``H = AᵀA`` the solution is ``(g − Aᵀ (A Aᵀ + damping I)⁻¹ A g) / damping``. For SGC the
    matrix ``A Aᵀ`` comes from inner products of nodes, and A is never formed.

    Raises
    ------
    ValueError
        If the damping is not above 0.
    """
    _require_positive(damping)
    root = _linear_root(problem) if problem.linear is not None else _dense_root(problem)
    matrix = root.gram()
    matrix.diagonal().add_(damping)
    factor = torch.linalg.cholesky(matrix)
    value = columns.double()
    inner = torch.cholesky_solve(root.apply(value), factor)
    value = (value - root.transpose(inner)) / damping
    return Solved(value, 0, float("nan"), converged=True, method="dual")


def conjugate_gradients(
    problem: GraphProblem, columns: Float[Tensor, "P K"], damping: float | int
) -> Solved:
    """Solve each column by products with the curvature, two passes through the network each.

    Raises
    ------
    ValueError
        If the damping is not above 0.
    """
    _require_positive(damping)
    product = ggn_product(problem)
    solved = [_solve(product, column, damping) for column in columns.T]
    value = torch.stack([u for u, _, _ in solved], 1)
    residual = max(r for _, _, r in solved)
    steps = sum(s for _, s, _ in solved)
    converged = residual <= _reachable(columns.dtype)
    if not converged:
        message = (
            f"conjugate gradients stopped at a relative residual of {residual:.1e} after {steps} "
            f"products, expected {_reachable(columns.dtype):.0e}; raise damping (it is "
            f"{damping:g}), or compute in float64"
        )
        warnings.warn(message, stacklevel=2)
    return Solved(value, steps, residual, converged, "conjugate gradients")


def _reachable(dtype: torch.dtype) -> float:
    return _TOLERANCE if dtype == torch.float64 else 1e-4


def _solve(
    product: Callable[[Tensor], Tensor], column: Tensor, damping: float | int
) -> tuple[Tensor, int, float]:
    """Conjugate gradients with sums in float64; the products are in the network's own type."""
    target = column.double()
    size = float(target.norm())
    if size == 0:
        return target, 0, 0.0
    solution, remainder = torch.zeros_like(target), target.clone()
    direction, square = remainder.clone(), float(remainder @ remainder)
    best, best_size, steps = solution.clone(), square, 0
    while steps < _MAX_STEPS and square**0.5 > 0.3 * _reachable(column.dtype) * size:
        image = product(direction.to(column.dtype)).double() + damping * direction
        step = square / float(direction @ image)
        solution += step * direction
        remainder -= step * image
        square, before = float(remainder @ remainder), square
        direction = remainder + square / before * direction
        steps += 1
        if square < best_size:
            best, best_size = solution.clone(), square
    image = product(best.to(column.dtype)).double() + damping * best
    return best, steps + 1, float((image - target).norm()) / size


def ggn_product(problem: GraphProblem) -> Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]:
    """Product with the generalized Gauss-Newton matrix of the mean training loss."""
    params, edge_index = problem.problem.params, problem.edges.edge_index()

    def outputs(at: Params) -> Tensor:
        return problem.forward(at, edge_index)[problem.train]

    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    with differentiable_attention(), torch.enable_grad():
        found = outputs(leaves)

    def product(vector: Tensor) -> Tensor:
        _, moved = jvp(outputs, params, unflatten(vector, params))
        pulled = problem.likelihood.hessian(found.detach(), moved) / len(problem.train)
        with differentiable_attention():
            parts = torch.autograd.grad(
                found, tuple(leaves.values()), pulled, retain_graph=True, materialize_grads=True
            )
        return torch.cat([part.flatten() for part in parts])

    return product


@final
@dataclass(frozen=True)
class _DenseRoot:
    """Rows ``Bᵀ J / √N`` of the root A of the curvature, kept."""

    rows: Float[Tensor, "R P"]

    def gram(self) -> Tensor:
        return self.rows @ self.rows.T

    def apply(self, columns: Tensor) -> Tensor:
        return self.rows @ columns

    def transpose(self, columns: Tensor) -> Tensor:
        return self.rows.T @ columns


def _dense_root(problem: GraphProblem) -> _DenseRoot:
    return _DenseRoot(root_rows(problem, problem.edges, problem.train))


def root_rows(
    problem: GraphProblem, edges: EdgeList, nodes: Int[Tensor, " N"]
) -> Float[Tensor, "R P"]:
    """Rows ``Bᵀ J / √N`` with ``Λ = B Bᵀ`` of some nodes, float64: one backward pass each."""
    leaves = {name: p.clone().requires_grad_() for name, p in problem.problem.params.items()}
    with differentiable_attention(), torch.enable_grad():
        found = problem.forward(leaves, edges.edge_index())[nodes]
    root = problem.likelihood.root(found.detach()) / len(problem.train) ** 0.5
    cotangents = torch.zeros(root.shape[0], root.shape[2], *found.shape).to(found)
    places = torch.arange(len(root))
    cotangents[places, :, places] = root.mT
    rows = []
    for chunk in cotangents.flatten(0, 1).split(_ROWS_AT_ONCE):
        with differentiable_attention():
            parts = torch.autograd.grad(
                found,
                tuple(leaves.values()),
                chunk,
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
        rows.append(torch.cat([flat_after(1, part) for part in parts], 1).double())
    return torch.cat(rows)


@final
@dataclass(frozen=True)
class _LinearRoot:
    """The root of SGC's curvature, known by node features z and roots B: ``A = Bᵀ ⊗ z / √N``."""

    z: Float[Tensor, "N F"]
    root: Float[Tensor, "N C R"]
    biased: bool
    order: tuple[int, ...]

    def gram(self) -> Tensor:
        inner = self.z @ self.z.T + self.biased
        blocks = torch.einsum("vca,wcb->vawb", self.root, self.root)
        size = self.root.shape[0] * self.root.shape[2]
        return (blocks * inner[:, None, :, None]).reshape(size, size)

    def apply(self, columns: Tensor) -> Tensor:
        weight, bias = self._parts(columns)
        moved = torch.einsum("nf,cfk->nck", self.z, weight) + bias
        return torch.einsum("ncr,nck->nrk", self.root, moved).flatten(0, 1)

    def transpose(self, columns: Tensor) -> Tensor:
        rows = columns.view(self.root.shape[0], self.root.shape[2], -1)
        pulled = torch.einsum("ncr,nrk->nck", self.root, rows)
        weight = torch.einsum("nck,nf->cfk", pulled, self.z).flatten(0, 1)
        parts = [weight, pulled.sum(0)] if self.biased else [weight]
        return torch.cat([parts[i] for i in self.order])

    def _parts(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        num_outputs, width = self.root.shape[1], self.z.shape[1]
        sizes = [num_outputs * width, num_outputs][: len(self.order)]
        split = columns.split([sizes[i] for i in self.order])
        parts = [split[self.order.index(i)] for i in range(len(self.order))]
        bias = parts[1] if self.biased else columns.new_zeros(num_outputs, columns.shape[1])
        return parts[0].view(num_outputs, width, -1), bias


def _linear_root(problem: GraphProblem) -> _LinearRoot:
    linear = problem.linear
    if linear is None:
        message = "the network is not linear in its parameters, expected SGC"
        raise ValueError(message)
    z = linear.features(problem.x, problem.edges, problem.train)
    found = problem.outputs(problem.edges)[problem.train].double()
    root = problem.likelihood.root(found) / len(problem.train) ** 0.5
    names = [linear.weight, *([linear.bias] if linear.bias else [])]
    order = tuple(names.index(name) for name in problem.problem.params)
    return _LinearRoot(z, root, linear.bias is not None, order)


def target_gradient(
    problem: GraphProblem, target: Callable[[GraphProblem, Tensor], Tensor]
) -> Float[Tensor, " P"]:
    """Gradient of a target in the parameters, on the graph that targets are read on."""
    if problem.linear is not None:
        return _linear_gradient(problem, problem.linear, target)
    leaves = {name: p.clone().requires_grad_() for name, p in problem.problem.params.items()}
    with differentiable_attention(), torch.enable_grad():
        found = problem.forward(leaves, problem.read_on.edge_index())
        parts = torch.autograd.grad(
            target(problem, found), tuple(leaves.values()), materialize_grads=True
        )
    return flatten(dict(zip(leaves, parts, strict=True)))


def _linear_gradient(
    problem: GraphProblem, linear: LinearNetwork, target: Callable[[GraphProblem, Tensor], Tensor]
) -> Float[Tensor, " P"]:
    outputs = problem.outputs(problem.read_on).requires_grad_()
    with torch.enable_grad():
        (cotangent,) = torch.autograd.grad(target(problem, outputs), outputs)
    parts = linear.pull(cotangent, problem.x, problem.read_on)
    return flatten({name: parts[name] for name in problem.problem.params})


def _num_outputs(problem: GraphProblem) -> int:
    return problem.outputs(problem.edges).shape[1]


def _require_positive(damping: float | int) -> None:
    if not 0 < damping < float("inf"):
        message = (
            f"damping is {damping}, expected a finite number above 0: the weight decay that the "
            "network was trained with, or more"
        )
        raise ValueError(message)

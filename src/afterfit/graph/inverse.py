"""Solving with the damped curvature of the mean training loss: ``u = (H + damping I)⁻¹ g``.

``H = (1/N) Σ_v J_vᵀ Λ_v J_v`` is the generalized Gauss-Newton matrix of the training nodes: never
indefinite, and the Hessian itself for SGC. A weight decay of ``(γ/2) ‖θ‖²`` beside the mean loss
belongs to the curvature and is ``damping=γ``. The solvers are those of
:func:`afterfit.curvature.inverse`; here are the roots of a graph's curvature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature import CG, Dual, Gram, Root, Solver, inverse
from afterfit.curvature.products import pull
from afterfit.curvature.root import Rows, transposed
from afterfit.graph.linear import LinearNetwork
from afterfit.graph.problem import GraphProblem
from afterfit.linalg import Kind, LinearOperator, Solution
from afterfit.problem._autodiff import differentiable_attention, jvp
from afterfit.problem.mappable import Mappable
from afterfit.problem.persample import flat_after, flatten, unflatten
from afterfit.typing import Params

MAX_DUAL = 4_000
"""Above this many training outputs N·C the dual matrix is not formed unless asked for."""

_ROWS_AT_ONCE, _MAX_STEPS = 32, 2_000

Inverse = Callable[[GraphProblem, Float[Tensor, "P K"], float], Solution]
"""Solves for columns of right-hand sides: `dual`, `conjugate_gradients`, or `smaller`."""


def smaller(problem: GraphProblem, columns: Float[Tensor, "P K"], damping: float | int) -> Solution:
    """Take the dual for SGC with few training outputs, conjugate gradients otherwise."""
    curvature = mean_ggn(problem)
    few = problem.linear is not None and curvature.root.shape[0] <= MAX_DUAL
    return _solved(curvature, columns, damping, Dual() if few else _iterations(problem))


def dual(problem: GraphProblem, columns: Float[Tensor, "P K"], damping: float | int) -> Solution:
    """Factor a matrix of the size of the training outputs (Woodbury), exactly.

    For SGC it comes from inner products of nodes, and no row of the root is formed.

    Raises
    ------
    ValueError
        If the damping is not above 0.
    """
    return _solved(mean_ggn(problem), columns, damping, Dual())


def conjugate_gradients(
    problem: GraphProblem, columns: Float[Tensor, "P K"], damping: float | int
) -> Solution:
    """Solve by products with the curvature: two passes through the network each.

    For SGC a product takes the propagated features of the training nodes, made once, and no pass.

    Raises
    ------
    ValueError
        If the damping is not above 0.
    """
    return _solved(mean_ggn(problem), columns, damping, _iterations(problem))


def _iterations(problem: GraphProblem) -> CG:
    tolerance = 1e-10 if problem.problem.dtype == torch.float64 else 1e-4
    return CG(tolerance / 2, _MAX_STEPS)


def _solved(
    curvature: Gram, columns: Float[Tensor, "P K"], damping: float | int, solver: Solver
) -> Solution:
    if not 0 < damping < float("inf"):
        message = (
            f"damping is {damping}, expected a finite number above 0: the weight decay that the "
            "network was trained with, or more"
        )
        raise ValueError(message)
    return inverse(curvature, damping, solver).solve(columns.double())


def mean_ggn(problem: GraphProblem) -> Gram:
    """Generalized Gauss-Newton matrix of the mean training loss, by its root ``Bᵀ J / √N``."""
    linear = problem.linear
    return Gram(NodeRoot(problem) if linear is None else _linear_root(problem, linear))


@final
@dataclass(frozen=True)
class NodeRoot(Root):
    """Rows ``Bᵀ J / √N`` of the training nodes with ``Λ = B Bᵀ``, by passes over the whole graph.

    One forward pass is recorded and used again by every product.
    """

    problem: GraphProblem

    @property
    def kind(self) -> Kind:
        problem = self.problem.problem
        return Kind((self._root[..., 0].numel(), problem.num_params), problem.dtype, problem.device)

    def _outputs(self, at: Params) -> Float[Tensor, "N C"]:
        graph = self.problem
        return graph.forward(at, graph.edges.edge_index())[graph.train]

    @cached_property
    def _recorded(self) -> tuple[Float[Tensor, "N C"], tuple[Tensor, ...]]:
        params = self.problem.problem.params
        leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
        with differentiable_attention(), torch.enable_grad():
            return self._outputs(leaves), tuple(leaves.values())

    @cached_property
    def _root(self) -> Float[Tensor, "N R C"]:
        found = self._recorded[0].detach()
        return self.problem.likelihood.root(found).mT / len(found) ** 0.5

    def _pulled(self, cotangents: Float[Tensor, "K N C"]) -> Float[Tensor, "K P"]:
        found, leaves = self._recorded
        parts = pull(found, leaves, cotangents, Mappable())
        return torch.cat([flat_after(1, part) for part in parts], 1)

    def curved(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        params, found = self.problem.problem.params, self._recorded[0].detach()
        products = []
        for column in columns.mT:
            _, moved = jvp(self._outputs, params, unflatten(column, params))
            middle = self.problem.likelihood.hessian(found, moved) / len(found)
            products.append(self._pulled(middle[None])[0])
        return torch.stack(products, 1)

    def to_dense(self) -> Tensor:
        rows, nodes = self._root.flatten(0, 1), torch.arange(len(self._root))
        owners = nodes.repeat_interleave(self._root.shape[1])
        parts = []
        for chosen in torch.arange(len(rows)).split(_ROWS_AT_ONCE):
            cotangents = rows.new_zeros(len(chosen), *self._recorded[0].shape)
            cotangents[torch.arange(len(chosen)), owners[chosen]] = rows[chosen]
            parts.append(self._pulled(cotangents))
        return torch.cat(parts)

    def apply(self, columns: Tensor) -> Tensor:
        return self.to_dense() @ columns

    @property
    def T(self) -> LinearOperator:
        return transposed(self, lambda rows: self.to_dense().mT @ rows)

    def gram(self) -> Tensor:
        return self.held().gram()

    def square(self) -> Tensor:
        return self.held().square()

    def held(self) -> Rows:
        return Rows(self.to_dense().double())


@final
@dataclass(frozen=True)
class LinearRoot(Root):
    """The root of SGC's curvature, known by node features z and roots B: ``A = Bᵀ ⊗ z / √N``."""

    z: Float[Tensor, "N F"]
    root: Float[Tensor, "N C R"]
    biased: bool
    order: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        nodes, outputs, width = self.root.shape
        size = outputs * (self.z.shape[1] + self.biased)
        return Kind((nodes * width, size), self.z.dtype, self.z.device)

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
        """``Aᵀ @ columns``."""
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

    @property
    def T(self) -> LinearOperator:
        return transposed(self, self.transpose)

    def to_dense(self) -> Tensor:
        return self.transpose(torch.eye(self.shape[0]).to(self.z)).mT

    def curved(self, columns: Tensor) -> Tensor:
        return self.transpose(self.apply(columns))

    def square(self) -> Tensor:
        return self.curved(torch.eye(self.shape[1]).to(self.z))

    def held(self) -> "LinearRoot":
        return self


def _linear_root(problem: GraphProblem, linear: LinearNetwork) -> LinearRoot:
    z = linear.features(problem.x, problem.edges, problem.train)
    found = problem.outputs(problem.edges)[problem.train].double()
    root = problem.likelihood.root(found) / len(problem.train) ** 0.5
    names = [linear.weight, *([linear.bias] if linear.bias else [])]
    order = tuple(names.index(name) for name in problem.problem.params)
    return LinearRoot(z, root, linear.bias is not None, order)


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

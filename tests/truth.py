"""Oracles: dense, slow and obvious, in float64, one sample and one row at a time.

Everything is written from the definitions, with plain autograd and ``torch.distributions``. Of our
own code only the network's function, the data and the names of the likelihoods are used, so that
an error there cannot hide in both sides of a comparison. Flat vectors and matrices follow the order
of ``problem.params``. Matrices are sums over samples.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, distributions, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit.problem import (
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    PerSample,
    Poisson,
    Problem,
)

Leaves = dict[str, Tensor]
DenseCurvature = Callable[[Problem, Batches], Float[Tensor, "P P"]]


@singledispatch
def negative_log_likelihood(likelihood: Any, outputs: Tensor, y: Tensor) -> Float[Tensor, " B"]:
    """Loss of each sample in nats, from ``torch.distributions``."""
    raise TypeError(type(likelihood).__name__)


@negative_log_likelihood.register
def _(likelihood: Categorical, outputs: Tensor, y: Tensor) -> Tensor:
    return -distributions.Categorical(logits=outputs).log_prob(y)


@negative_log_likelihood.register
def _(likelihood: Bernoulli, outputs: Tensor, y: Tensor) -> Tensor:
    target = y.view(outputs.shape).to(outputs.dtype)
    return -distributions.Bernoulli(logits=outputs).log_prob(target).sum(1)


@negative_log_likelihood.register
def _(likelihood: Gaussian, outputs: Tensor, y: Tensor) -> Tensor:
    return -distributions.Normal(outputs, likelihood.sigma).log_prob(y.view(outputs.shape)).sum(1)


@negative_log_likelihood.register
def _(likelihood: Poisson, outputs: Tensor, y: Tensor) -> Tensor:
    count = y.view(outputs.shape).to(outputs.dtype)
    return -distributions.Poisson(outputs.exp()).log_prob(count).sum(1)


@negative_log_likelihood.register
def _(likelihood: PerSample, outputs: Tensor, y: Tensor) -> Tensor:
    return likelihood.function(outputs, y)


def samples(data: Batches) -> Iterator[tuple[Any, Tensor]]:
    """Inputs and target of one sample after another, as batches of one."""
    for i in range(data.num_samples):
        _, inputs, target = data.fetch(torch.tensor([i]))
        yield inputs, target


def leaves(problem: Problem) -> Leaves:
    """Copies of the parameters that record what is done to them."""
    return {name: p.clone().requires_grad_() for name, p in problem.params.items()}


def flat(parts: Any) -> Float[Tensor, " P"]:
    """Join tensors (or those of a dict) into one vector."""
    values = parts.values() if isinstance(parts, dict) else parts
    return torch.cat([value.flatten() for value in values])


def along(problem: Problem, vector: Float[Tensor, " P"]) -> dict[str, Tensor]:
    """Take a flat vector apart into a dict like ``problem.params``."""
    parts, start = {}, 0
    for name, p in problem.params.items():
        parts[name] = vector[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    return parts


def derivative(value: Tensor, at: Leaves) -> Float[Tensor, " P"]:
    """Gradient of one number, itself differentiable; zeros where it does not depend."""
    if not value.requires_grad:
        return flat([torch.zeros_like(leaf) for leaf in at.values()])
    parts = torch.autograd.grad(
        value, tuple(at.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return flat(parts)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by its formula, which can be differentiated twice."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(before)


def outputs(problem: Problem, data: Batches) -> Float[Tensor, "N C"]:
    """Outputs of the network, one sample at a time."""
    return torch.cat([problem.forward(problem.params, x) for x, _ in samples(data)])


def losses(problem: Problem, data: Batches) -> Float[Tensor, " N"]:
    """Losses in nats, one sample at a time."""
    rows = [
        negative_log_likelihood(problem.likelihood, problem.forward(problem.params, x), y)
        for x, y in samples(data)
    ]
    return torch.cat(rows)


def gradients(problem: Problem, data: Batches) -> Float[Tensor, "N P"]:
    """Gradient of every sample's loss."""
    rows, at = [], leaves(problem)
    with plain_attention():
        for x, y in samples(data):
            loss = negative_log_likelihood(problem.likelihood, problem.forward(at, x), y)
            rows.append(derivative(loss.sum(), at).detach())
    return torch.stack(rows)


def jacobian(problem: Problem, data: Batches) -> Float[Tensor, "N C P"]:
    """Derivative of every output of every sample in the parameters."""
    rows, at = [], leaves(problem)
    with plain_attention():
        for x, _ in samples(data):
            (row,) = problem.forward(at, x)
            rows.append(torch.stack([derivative(output, at).detach() for output in row]))
    return torch.stack(rows)


def output_hessian(problem: Problem, data: Batches) -> Float[Tensor, "N C C"]:
    """Second derivative of every sample's loss in its outputs."""
    blocks = []
    for x, y in samples(data):

        def loss(f: Tensor, y: Tensor = y) -> Tensor:
            return negative_log_likelihood(problem.likelihood, f[None], y).sum()

        f = problem.forward(problem.params, x)[0]
        blocks.append(torch.autograd.functional.hessian(loss, f))
    return torch.stack(blocks)


def ggn(problem: Problem, data: Batches) -> Float[Tensor, "P P"]:
    """Generalized Gauss-Newton matrix: sum over samples of Jᵀ Λ J."""
    pairs = zip(jacobian(problem, data), output_hessian(problem, data), strict=True)
    return sum(j.T @ h @ j for j, h in pairs)  # pyright: ignore[reportReturnType]


def empirical_fisher(problem: Problem, data: Batches) -> Float[Tensor, "P P"]:
    """Sum over samples of the outer product of the gradient with itself."""
    return sum(torch.outer(g, g) for g in gradients(problem, data))  # pyright: ignore[reportReturnType]


def hessian(problem: Problem, data: Batches) -> Float[Tensor, "P P"]:
    """Second derivative of the sum of all losses, one row at a time."""
    at = leaves(problem)
    _, inputs, targets = data.fetch(torch.arange(data.num_samples))
    with plain_attention():
        found = problem.forward(at, inputs)
        total = negative_log_likelihood(problem.likelihood, found, targets).sum()
        return torch.stack([_row(entry, at) for entry in derivative(total, at)])


def _row(entry: Tensor, at: Leaves) -> Tensor:
    if not entry.requires_grad:
        return torch.zeros(sum(leaf.numel() for leaf in at.values()), dtype=entry.dtype)
    parts = torch.autograd.grad(
        entry, tuple(at.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return flat(parts)


def influence(
    problem: Problem,
    train: Batches,
    query: Batches,
    damping: float,
    curvature: DenseCurvature = hessian,
) -> Float[Tensor, "Q N"]:
    """Influence of every training sample on every query: gᵀ (H / N + damping I)⁻¹ g.

    Koh and Liang (2017), with our sign: positive where removing the sample raises the loss. To
    first order, removing one sample changes the loss of the query by this over N.
    """
    mean = curvature(problem, train) / train.num_samples
    damped = mean + damping * torch.eye(len(mean), dtype=mean.dtype)
    return gradients(problem, query) @ torch.linalg.solve(damped, gradients(problem, train).T)


def ridge(x: Float[Tensor, "N P"], y: Float[Tensor, " N"], penalty: float) -> Float[Tensor, " P"]:
    """Minimizer of ½ Σ (y - x w)² + ½ penalty |w|²."""
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y)


def ridge_leave_one_out(
    x: Float[Tensor, "N P"],
    y: Float[Tensor, " N"],
    query_x: Float[Tensor, "Q P"],
    query_y: Float[Tensor, " Q"],
    penalty: float,
) -> Float[Tensor, "Q N"]:
    """By how much ½ (y - x w)² of every query rises when a sample is removed and w fitted again."""

    def loss(w: Tensor) -> Tensor:
        return 0.5 * (query_y - query_x @ w).square()

    with_all = loss(ridge(x, y, penalty))
    columns = []
    for removed in range(len(x)):
        kept = torch.arange(len(x)) != removed
        columns.append(loss(ridge(x[kept], y[kept], penalty)) - with_all)
    return torch.stack(columns, dim=1)


def laplace_draws(
    mean: Float[Tensor, " P"], precision: Float[Tensor, "P P"], num: int, generator: Generator
) -> Float[Tensor, "M P"]:
    """Draw from the Gaussian with this mean and the inverse of this precision as covariance."""
    lower = torch.linalg.cholesky(precision)
    noise = torch.randn(len(mean), num, dtype=mean.dtype, generator=generator)
    return mean + torch.linalg.solve_triangular(lower.T, noise, upper=True).T


def kronecker_factors(
    module: nn.Module, layer: str, problem: Problem, data: Batches, reduced: bool
) -> tuple[Float[Tensor, "O O"], Float[Tensor, "I I"]]:
    """Factors G and A of one layer of a module with the parameters of a problem, by loops.

    G sums over samples, columns of a root of the output Hessian, and positions; A is a mean over
    samples and positions. Reduced, the positions of a sample are averaged (in A) or summed (in G)
    first.
    """
    network = copy.deepcopy(module).eval()
    part, seen = network.get_submodule(layer), []
    part.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    left = right = torch.zeros((), dtype=torch.float64)
    count = 0
    for (x, _), curvature in zip(samples(data), output_hessian(problem, data), strict=True):
        seen.clear()
        out = network(x)[0]
        values, vectors = torch.linalg.eigh(curvature)
        columns = vectors * values.clamp_min(0).sqrt()
        rows = torch.cat([input_rows(part, inputs) for inputs, _ in seen])
        rows = rows.mean(0, keepdim=True) if reduced else rows
        right, count = right + rows.T @ rows, count + len(rows)
        for column in columns.T:
            found = torch.autograd.grad(out @ column, [o for _, o in seen], retain_graph=True)
            pulled = torch.cat([output_rows(part, g) for g in found])
            pulled = pulled.sum(0, keepdim=True) if reduced else pulled
            left = left + pulled.T @ pulled
    return left.detach(), right.detach() / count


def input_rows(part: nn.Module, inputs: Tensor) -> Float[Tensor, "S I"]:
    """What a layer multiplies at each position of one sample, with a one where it has a bias."""
    if isinstance(part, nn.Conv2d):
        patches = functional.unfold(
            inputs, part.kernel_size, part.dilation, part.padding, part.stride
        )
        rows = patches[0].T
    else:
        rows = inputs.reshape(-1, inputs.shape[-1])
    return rows if part.bias is None else torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def output_rows(part: nn.Module, pulled: Tensor) -> Float[Tensor, "S O"]:
    """Gradient at the output of a layer at each position of one sample."""
    if isinstance(part, nn.Conv2d):
        return pulled[0].flatten(1).T
    return pulled.reshape(-1, pulled.shape[-1])

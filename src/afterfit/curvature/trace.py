"""Traces of curvature, estimated with probes that are drawn for each sample apart."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature.diagonal import (
    by_visibility,
    flat_scale,
    joined_gradients,
    pulled_columns,
    shared_names,
)
from afterfit.curvature.jacobian import jacobian_rows
from afterfit.curvature.tracing import Trace, Tracer
from afterfit.linalg.estimate import Estimate
from afterfit.problem.data import Batches
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem

Probes = Float[Tensor, "N C R"]


def estimate_squared_jacobian_trace(
    problem: Problem, data: Batches, num_probes: int, generator: Generator
) -> Estimate:
    """Estimate ``tr J Jᵀ = Σ_n Σ_c ‖J_nc‖²``, with signs drawn for each sample apart.

    For each sample ``‖J_nᵀ v_n‖²`` with random signs ``v_n`` has the mean ``tr J_n J_nᵀ``. Since no
    products of different samples enter, one probe has the variance ``2 Σ_n (‖K_n‖² - Σ_c K_n,cc²)``
    with ``K_n`` the kernel of one sample; with one vector of signs for the whole batch it has the
    same form with the kernel of the batch, and is far larger. A probe costs one pass
    forward and backward. The error comes from the spread of the probes of each sample, which has
    N (num_probes - 1) degrees of freedom in all.

    On ``connectivity(problem)`` this is connectivity sharpness as a sum over samples.

    Raises
    ------
    ValueError
        If there are fewer than two probes, of which no error could be told.

    References
    ----------
    Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix for Laplacian
    smoothing splines", Communications in Statistics 19(2). Kim, Park, Kim, Yang (2023),
    "Scale-invariant Bayesian neural networks with connectivity tangent kernel", ICLR,
    arXiv:2209.15208 (with one vector for the batch).
    """
    return _estimate(problem, data, num_probes, generator, lambda _: None)


def estimate_ggn_trace(
    problem: Problem, data: Batches, num_probes: int, generator: Generator
) -> Estimate:
    """Estimate the trace of the generalized Gauss-Newton matrix ``Σ_n tr J_nᵀ Λ_n J_n``.

    As :func:`estimate_squared_jacobian_trace`, with ``R_n v_n`` for ``v_n`` where ``Λ = R Rᵀ``.

    Raises
    ------
    ValueError
        If there are fewer than two probes, of which no error could be told.
    TypeError
        If the likelihood has no curvature (``PerSample``).
    """
    return _estimate(problem, data, num_probes, generator, problem.likelihood.root)


def _estimate(
    problem: Problem,
    data: Batches,
    num_probes: int,
    generator: Generator,
    root: Callable[[Tensor], Tensor | None],
) -> Estimate:
    if num_probes < 2:
        message = f"num_probes is {num_probes}, expected at least 2, to tell the error"
        raise ValueError(message)
    found = outputs(problem, data)
    roots = root(found)
    width = found.shape[1] if roots is None else roots.shape[2]
    signs = random_signs((len(found), width, num_probes), generator).to(found)
    columns = signs if roots is None else roots @ signs
    norms = torch.zeros(num_probes, len(found), dtype=torch.float64, device=problem.device)
    for part in by_visibility(problem, data):
        if part is not None:
            for chosen, values in _squared_norms(part, data, columns):
                norms[:, chosen] += values.double()
    variance = float(norms.var(0).sum()) / num_probes
    return Estimate(float(norms.mean(0).sum()), variance**0.5, num_probes)


def random_signs(shape: tuple[int, ...], generator: Generator) -> Float[Tensor, "..."]:
    """Draw -1 and 1 with equal probability."""
    drawn = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return 2.0 * drawn - 1.0


def _squared_norms(
    problem: Problem, data: Batches, columns: Probes
) -> Iterator[tuple[Tensor, Float[Tensor, "R B"]]]:
    """For each sample and column the squared norm of ``Jᵀ`` times it, by layers where they show."""
    if problem.coordinates is None or Tracer.of(problem, data).uncovered:
        for index, rows in jacobian_rows(problem, data):
            yield index, (columns[index].mT @ rows).square().sum(2).mT
        return
    tracer, weights = Tracer.of(problem, data), flat_scale(problem).square()
    for batch in data:
        for chosen, trace in tracer.traces(batch):
            index = batch.index[chosen]
            pulls = pulled_columns(trace, columns[index])
            yield index, torch.cat([_norms(trace, pulled, weights) for pulled in pulls])


def _norms(
    trace: Trace, pulled: tuple[Tensor, ...], weights: Float[Tensor, " P"]
) -> Float[Tensor, "K B"]:
    tied = shared_names(trace.calls)
    norms = trace.outputs.new_zeros(len(pulled[0]), len(trace.outputs))
    for i, (call, g) in enumerate(zip(trace.calls, pulled, strict=True)):
        if not any(slot.name in tied for slot in call.slots):
            norms += call.squared_norms(trace.entered(i), g, weights)
    if tied:
        for row, *columns in zip(norms, *pulled, strict=True):
            for slot, rows in joined_gradients(trace, columns, tied):
                part = weights[slot.start : slot.start + slot.length]
                row += (rows.square() * part).sum(1)
    return norms.detach()

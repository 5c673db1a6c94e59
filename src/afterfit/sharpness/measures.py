"""Sharpness of a trained network: by connectivity, and what people compare it with.

All values are sums over samples; ``.mean`` divides by their number. Where a measure has a
connectivity twin, it is the same computation on ``connectivity(problem)``.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature import (
    diagonal,
    estimate_ggn_trace,
    estimate_squared_jacobian_trace,
    ggn,
    squared_jacobian,
)
from afterfit.linalg import Estimate
from afterfit.problem.data import Batches
from afterfit.problem.persample import outputs, unflatten
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity
from afterfit.sharpness.result import LINEAR, ORTHOGONAL, RESCALINGS, Sharpness
from afterfit.typing import Params

# Traces -----------------------------------------------------------------------------------------


def connectivity_sharpness(problem: Problem, data: Batches) -> Sharpness:
    """Trace of the connectivity tangent kernel, ``Σ_i θ̂_i² Σ_nk (∂f_k(x_n)/∂θ_i)²``, exact.

    No rescaling that preserves the function changes it. It grows with the square of the outputs:
    compare networks of equal loss or of squared loss, or take :func:`connectivity_curvature` or
    :func:`normalized_connectivity_sharpness`.

    Parameters
    ----------
    problem
        In its own parameters, as ``Problem.from_module`` made it; not a connectivity problem.

    References
    ----------
    Kim, Park, Kim and Yang (2023), Scale-invariant Bayesian neural networks with connectivity
    tangent kernel, ICLR, section 3. arXiv:2209.15208. The authors' code gives ``.mean``.
    """
    parts = _sums(squared_jacobian(connectivity(problem), data))
    return Sharpness(
        "connectivity sharpness",
        sum(parts.values()),
        data.num_samples,
        RESCALINGS,
        by_parameter=parts,
    )


def connectivity_curvature(problem: Problem, data: Batches) -> Sharpness:
    """Trace of the generalized Gauss-Newton matrix in connectivity, ``tr(D Jᵀ Λ J D)``, exact.

    Connectivity sharpness for the likelihood at hand: with cross-entropy it does not grow with the
    size of the logits alone, since Λ vanishes where predictions saturate.

    Raises
    ------
    TypeError
        If the likelihood has no curvature (``PerSample``).
    """
    parts = _diagonal_sums(connectivity(problem), data)
    return Sharpness(
        "connectivity curvature",
        sum(parts.values()),
        data.num_samples,
        RESCALINGS,
        by_parameter=parts,
    )


def normalized_connectivity_sharpness(problem: Problem, data: Batches) -> Sharpness:
    """Connectivity sharpness over the mean variance of a sample's outputs.

    It is also invariant to a temperature, which multiplies the outputs and so sharpness by its
    square.

    Raises
    ------
    ValueError
        If there is one output, or the outputs of each sample are all equal.
    """
    variance = float(outputs(problem, data).double().var(1, correction=0).mean())
    if not variance > 0:
        message = (
            "the outputs of each sample are all equal, expected at least two that differ; use "
            "connectivity_sharpness"
        )
        raise ValueError(message)
    plain = connectivity_sharpness(problem, data)
    return Sharpness(
        "normalized connectivity sharpness",
        plain.total / variance,
        data.num_samples,
        RESCALINGS,
        by_parameter={name: part / variance for name, part in plain.by_parameter.items()},
    )


def tangent_trace(problem: Problem, data: Batches) -> Sharpness:
    """Trace of the tangent kernel, ``Σ_i Σ_nk (∂f_k(x_n)/∂θ_i)²``, exact.

    The Euclidean twin of connectivity sharpness: scaling the weights before a normalization by a
    divides their share by a².
    """
    parts = _sums(squared_jacobian(problem, data))
    total = sum(parts.values())
    return Sharpness("tangent trace", total, data.num_samples, ORTHOGONAL, by_parameter=parts)


def fisher_trace(problem: Problem, data: Batches) -> Sharpness:
    """Trace of the Fisher matrix (= generalized Gauss-Newton, for our likelihoods), exact."""
    parts = _diagonal_sums(problem, data)
    total = sum(parts.values())
    return Sharpness("Fisher trace", total, data.num_samples, ORTHOGONAL, by_parameter=parts)


def estimate_connectivity_sharpness(
    problem: Problem, data: Batches, num_probes: int, generator: Generator
) -> Sharpness:
    """Connectivity sharpness with its standard error, for networks with many outputs.

    Every probe draws signs for each sample apart, at the cost of one backward pass instead of C.
    The value at a seed is itself invariant to rescaling.
    """
    found = estimate_squared_jacobian_trace(connectivity(problem), data, num_probes, generator)
    return _estimated("connectivity sharpness", found, data)


def estimate_connectivity_curvature(
    problem: Problem, data: Batches, num_probes: int, generator: Generator
) -> Sharpness:
    """Connectivity curvature with its standard error, for networks with many outputs."""
    found = estimate_ggn_trace(connectivity(problem), data, num_probes, generator)
    return _estimated("connectivity curvature", found, data)


def _estimated(name: str, found: Estimate, data: Batches) -> Sharpness:
    return Sharpness(
        name, found.value, data.num_samples, RESCALINGS, found.stderr, found.num_probes
    )


def _sums(parts: Params) -> dict[str, float]:
    return {name: float(part.double().sum()) for name, part in parts.items()}


def _diagonal_sums(problem: Problem, data: Batches) -> dict[str, float]:
    entries: Float[Tensor, " P"] = diagonal(problem, data).entries
    return _sums(unflatten(entries, problem.params))


# Quadratic forms ----------------------------------------------------------------------------------


def fisher_rao_norm(problem: Problem, data: Batches) -> Sharpness:
    """``θ̂ᵀ G θ̂`` with the Fisher matrix G: how far outputs move when all weights grow alike.

    References
    ----------
    Liang, Poggio, Rakhlin and Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural
    networks, AISTATS. arXiv:1711.01530
    """
    relative = connectivity(problem)
    ones = torch.ones(problem.num_params, dtype=problem.dtype, device=problem.device)
    total = float(ggn(relative, data).apply(ones[:, None]).double().sum())
    return Sharpness("Fisher-Rao norm", total, data.num_samples, LINEAR)


def squared_norm(problem: Problem, data: Batches) -> Sharpness:  # noqa: ARG001
    """``‖θ̂‖²``: no sharpness at all, and what every other measure should do better than.

    It does not depend on the data: it is one number and no sum over samples.
    """
    parts = {name: float(p.double().square().sum()) for name, p in problem.params.items()}
    total = sum(parts.values())
    return Sharpness("squared norm", total, 1, ORTHOGONAL, by_parameter=parts)

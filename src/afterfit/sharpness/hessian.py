"""Sharpness by the Hessian of the loss: its trace, and the relative flatness of a layer."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature import hessian
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.trace import estimate_trace
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem
from afterfit.problem.transform import restrict
from afterfit.sharpness.result import LAYERWISE, ORTHOGONAL, Sharpness

MOST_INPUTS = 256
"""Relative flatness is computed exactly for layers of at most so many inputs."""


def estimate_hessian_trace(
    problem: Problem, data: Batches, num_probes: int, generator: Generator
) -> Sharpness:
    """Trace of the Hessian of the summed loss, by Hutchinson's estimator.

    Of ``connectivity(problem)`` it is invariant to rescaling (the result, which cannot know of the
    coordinates, claims no more than for the plain problem). It may be negative.
    """
    found = estimate_trace(hessian(problem, data), num_probes, generator)
    return Sharpness(
        "Hessian trace", found.value, data.num_samples, ORTHOGONAL, found.stderr, found.num_probes
    )


def relative_flatness(problem: Problem, data: Batches, weight: str) -> Sharpness:
    """``Σ_{s,t} ⟨w_s, w_t⟩ tr H_{s,t}`` of one layer, with w_s its rows and H_{s,t} their Hessian.

    It is invariant where the layer is scaled as a whole or row by row, not where its columns are
    scaled apart (as when the units below are rescaled); usually the last layer is asked.

    Parameters
    ----------
    weight
        Name of the layer's weight, (out, in) or (out, in, …). The cost is in² products with the
        Hessian of this layer.

    Raises
    ------
    ValueError
        If there is no such weight, it is not a matrix, or it has more than 256 inputs.

    References
    ----------
    Petzka, Kamp, Adilova, Sminchisescu and Boley (2021), Relative flatness and generalization,
    NeurIPS, definition 3. arXiv:2001.00939
    """
    matrix, operator = _layer(problem, data, weight)
    inputs = matrix.shape[1]
    if inputs > MOST_INPUTS:
        message = (
            f"{weight} has {inputs} inputs, expected at most {MOST_INPUTS}: the exact value takes "
            f"{inputs**2} products; use estimate_relative_flatness"
        )
        raise ValueError(message)
    eye = torch.eye(inputs, dtype=matrix.dtype, device=matrix.device)
    total = 0.0
    for column in matrix.mT:  # that column of the weight in the place of each column in turn
        columns = (column[:, None, None] * eye).flatten(0, 1)
        total += float((columns * operator.apply(columns)).double().sum())
    return Sharpness("relative flatness", total, data.num_samples, LAYERWISE)


def estimate_relative_flatness(
    problem: Problem, data: Batches, weight: str, num_probes: int, generator: Generator
) -> Sharpness:
    """:func:`relative_flatness` for wide layers, ``E[vᵀ H v]`` with ``v = (W y) zᵀ``, random signs.

    One product with the Hessian for each probe.
    """
    if num_probes < 2:
        message = f"num_probes is {num_probes}, expected at least 2, to tell the error"
        raise ValueError(message)
    matrix, operator = _layer(problem, data, weight)
    drawn = torch.randint(
        2, (2, num_probes, matrix.shape[1]), generator=generator, device=generator.device
    )
    y, z = (2 * drawn - 1).to(matrix)
    columns = ((y @ matrix.mT)[:, :, None] * z[:, None, :]).flatten(1).mT
    forms = (columns * operator.apply(columns)).double().sum(0)
    return Sharpness(
        "relative flatness",
        float(forms.mean()),
        data.num_samples,
        LAYERWISE,
        float(forms.std()) / math.sqrt(num_probes),
        num_probes,
    )


def _layer(
    problem: Problem, data: Batches, weight: str
) -> tuple[Float[Tensor, "O I"], LinearOperator]:
    """A layer's weight as a matrix, and the Hessian of the summed loss in it alone."""
    value = problem.params.get(weight)
    if value is None or value.ndim < 2:
        seen = "no such parameter" if value is None else f"shape {tuple(value.shape)}"
        matrices = [name for name, p in problem.params.items() if p.ndim > 1]
        message = f"{weight}: {seen}, expected the weight of a layer: {matrices[-5:]}"
        raise ValueError(message)
    return value.flatten(1), hessian(restrict(problem, weight), data)

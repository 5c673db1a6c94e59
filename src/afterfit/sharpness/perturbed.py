"""By how much the loss rises when parameters are perturbed: adversarially, or at random."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.problem.data import Batches
from afterfit.problem.persample import losses, total_gradient, unflatten
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity
from afterfit.sharpness.architecture import ChangeKind
from afterfit.sharpness.result import DIAGONAL, ORTHOGONAL, RESCALINGS, Sharpness


def worst_case_sharpness(
    problem: Problem, data: Batches, radius: float, num_steps: int = 20
) -> Sharpness:
    """``max_{‖δ‖ ≤ radius} Σ_n ℓ_n(θ̂ + δ) - ℓ_n(θ̂)``, by projected gradient ascent.

    The ascent finds a local maximum: a lower bound of the true one. It is deterministic.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur (2021), Sharpness-aware minimization for efficiently
    improving generalization, ICLR. arXiv:2010.01412
    """
    total = _ascent(problem, data, radius, num_steps)
    return Sharpness("worst-case sharpness", total, data.num_samples, ORTHOGONAL)


def adaptive_worst_case_sharpness(
    problem: Problem, data: Batches, radius: float, num_steps: int = 20
) -> Sharpness:
    """Worst case over relative perturbations, ``‖δ ⊘ θ̂‖ ≤ radius``.

    References
    ----------
    Kwon, Kim, Park and Choi (2021), ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks, ICML, definition 1. arXiv:2102.11600
    """
    total = _ascent(connectivity(problem), data, radius, num_steps)
    return Sharpness("adaptive worst-case sharpness", total, data.num_samples, RESCALINGS)


def average_sharpness(
    problem: Problem, data: Batches, std: float, num_draws: int, generator: Generator
) -> Sharpness:
    """Mean rise of the summed loss under perturbations ``N(0, std² I)``, with its standard error.

    Its expectation is invariant to signs and permutations, its value at a seed to nothing.
    """
    return _average("average sharpness", problem, data, std, num_draws, generator, frozenset())


def adaptive_average_sharpness(
    problem: Problem, data: Batches, std: float, num_draws: int, generator: Generator
) -> Sharpness:
    """Mean rise of the summed loss under relative perturbations ``θ̂ ⊙ (1 + N(0, std² I))``.

    Its value at a seed is invariant to all rescalings, its expectation to permutations too.

    References
    ----------
    Andriushchenko, Croce, Müller, Hein and Flammarion (2023), A modern look at the relationship
    between sharpness and generalization, ICML. arXiv:2302.07011
    """
    relative, name = connectivity(problem), "adaptive average sharpness"
    return _average(name, relative, data, std, num_draws, generator, DIAGONAL)


def _average(
    name: str,
    problem: Problem,
    data: Batches,
    std: float,
    num_draws: int,
    generator: Generator,
    invariant_to: frozenset[ChangeKind],
) -> Sharpness:
    _require_above_zero("std", std)
    if num_draws < 2:
        message = f"num_draws is {num_draws}, expected at least 2 for a standard error"
        raise ValueError(message)
    here = losses(problem, data).double().sum()
    rises = []
    for _ in range(num_draws):
        draw = torch.randn(
            problem.num_params, dtype=problem.dtype, generator=generator, device=generator.device
        )
        there = _moved(problem, std * draw.to(problem.device))
        rises.append(float(losses(there, data).double().sum() - here))
    column = torch.tensor(rises, dtype=torch.float64)
    stderr = float(column.std()) / math.sqrt(num_draws)
    return Sharpness(name, float(column.mean()), data.num_samples, invariant_to, stderr, num_draws)


def _ascent(problem: Problem, data: Batches, radius: float, num_steps: int) -> float:
    """Largest rise of the summed loss that normalized gradient ascent on a ball meets."""
    _require_above_zero("radius", radius)
    if num_steps < 1:
        message = f"num_steps is {num_steps}, expected at least 1"
        raise ValueError(message)
    here = losses(problem, data).double().sum()
    step, best = 2.5 * radius / num_steps, 0.0
    move = torch.zeros(problem.num_params, dtype=problem.dtype, device=problem.device)
    for place in range(num_steps):
        slope = total_gradient(_moved(problem, move), data)
        size = float(slope.norm())
        if size == 0:
            break
        move = move + (radius if place == 0 else step) / size * slope
        move = move * min(1.0, radius / float(move.norm()))
        best = max(best, float(losses(_moved(problem, move), data).double().sum() - here))
    return best


def _moved(problem: Problem, move: Float[Tensor, " P"]) -> Problem:
    steps = unflatten(move, problem.params)
    there = {name: value + steps[name] for name, value in problem.params.items()}
    return replace(problem, params=there)


def _require_above_zero(name: str, value: float) -> None:
    if not value > 0:
        message = f"{name} is {value}, expected above 0"
        raise ValueError(message)

"""Coordinate changes: a problem goes in, another problem comes out, and no algorithm notices."""

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from afterfit.problem._autodiff import jvp
from afterfit.problem.problem import Forward, Problem
from afterfit.typing import Inputs, Params


def linearize(problem: Problem) -> Problem:
    """Replace the network by its first-order expansion in the parameters.

    ``f(θ, x) = f(θ̂, x) + J(x) (θ - θ̂)``, the model of which Laplace's predictive and the influence
    function are exact statements (Khan et al. 2019, "Approximate inference turns deep networks into
    Gaussian processes"). The same in training: batch statistics and dropout do not enter.
    Its layers cannot be seen any more; curvature that looks into layers takes the problem as it was
    before, whose Jacobian at the trained parameters is the same.
    """

    def forward(params: Params, inputs: Inputs) -> Tensor:
        moved = {n: params[n] - p if n in params else p * 0 for n, p in problem.params.items()}
        value, change = jvp(lambda at: problem.forward(at, inputs), problem.params, moved)
        return value + change

    return replace(problem, forward=forward, train_forward=forward, coordinates=None)


def restrict(problem: Problem, names: str) -> Problem:
    """Keep only the parameters whose names match, and hold the others where they are.

    Parameters
    ----------
    names
        A pattern with ``*`` and ``?``, or several joined by ``|``: ``"head.*"``, ``"*.bias"``.

    Raises
    ------
    ValueError
        If no parameter matches.
    """
    patterns = [pattern.strip() for pattern in names.split("|")]
    kept = {
        name: value
        for name, value in problem.params.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not kept:
        message = f"no parameter matches {names!r}; the names are {list(problem.params)[:8]} …"
        raise ValueError(message)
    held = {name: value for name, value in problem.params.items() if name not in kept}

    def whole(params: Params) -> Params:
        return {**held, **params}

    return _before(
        whole,
        replace(
            problem,
            params=kept,
            normalizations=tuple(
                layer
                for layer in problem.normalizations
                if any(name.startswith(f"{layer}.") for name in kept)
            ),
        ),
    )


def connectivity(problem: Problem, scale: Params | None = None) -> Problem:
    """Perturb relatively: coordinates ``c`` with ``θ = θ̂ ⊙ (1 + c)``, standing at ``c = 0``.

    The Jacobian in ``c`` is ``J diag(θ̂)``. It stays the same, entry by entry, when the network is
    rescaled without changing its function (a ReLU layer times a and the next one divided by a,
    weights before a normalization together with its statistics, …), and so does everything that is
    built on it: sharpness, spectrum, posterior, evidence.

    A parameter that is exactly zero has no connectivity: its coordinate moves nothing.
    ``connectivity(problem).num_frozen`` counts these.

    Parameters
    ----------
    scale
        Other scales s for ``θ = θ̂ + s ⊙ c``, by the names and with the shapes of the parameters.
        Any s that is rescaled together with the parameters gives the same invariance.

    Raises
    ------
    ValueError
        If names or shapes of `scale` are not those of the parameters, a value is not finite, or
        nothing would move.

    References
    ----------
    Kim, Park, Kim, Yang (2023), "Scale-invariant Bayesian neural networks with connectivity tangent
    kernel", ICLR, arXiv:2209.15208.
    """
    origin = dict(problem.params)
    steps = origin if scale is None else _checked_scale(scale, origin)
    if not any(bool(step.any()) for step in steps.values()):
        message = (
            f"the scale is zero for all {problem.num_params} parameters, so that no coordinate "
            "moves anything; connectivity(problem) must be taken where the network was trained, "
            "and only once"
        )
        raise ValueError(message)

    def moved(params: Params) -> Params:
        around = {
            name: value * (1 + params[name])
            if scale is None
            else value + steps[name] * params[name]
            for name, value in origin.items()
            if name in params
        }
        return {**origin, **params, **around}

    at_rest = {name: torch.zeros_like(value) for name, value in origin.items()}
    return _before(moved, replace(problem, params=at_rest), steps)


def _before(
    change: Callable[[Params], Params], problem: Problem, scale: Params | None = None
) -> Problem:
    """Put a change of coordinates in front of everything that a problem computes."""

    def changed(forward: Forward) -> Forward:
        return lambda params, inputs: forward(change(params), inputs)

    below = problem.coordinates
    return replace(
        problem,
        forward=changed(problem.forward),
        train_forward=changed(problem.train_forward),
        coordinates=None if below is None else below.moved(change, scale),
    )


def _checked_scale(scale: Params, like: Params) -> dict[str, Tensor]:
    if set(scale) != set(like):
        odd = sorted(set(scale) ^ set(like))
        message = (
            f"the scale and the parameters differ in the names {odd[:4]}, expected a scale for "
            f"every parameter: {list(like)[:8]} …; use ones for those that shall move absolutely"
        )
        raise ValueError(message)
    for name, value in like.items():
        if scale[name].shape != value.shape:
            message = (
                f"the scale of {name} has shape {tuple(scale[name].shape)}, expected "
                f"{tuple(value.shape)}, one number for each parameter; expand it"
            )
            raise ValueError(message)
        if not bool(torch.isfinite(scale[name]).all()):
            message = f"the scale of {name} holds NaN or infinite values, expected finite ones"
            raise ValueError(message)
    return {name: scale[name].detach().to(value) for name, value in like.items()}

"""Coordinate changes: a problem goes in, another problem comes out, and no algorithm notices."""

from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from afterfit.problem._autodiff import jvp
from afterfit.problem.problem import Forward, Problem
from afterfit.typing import Inputs, Params


def linearize(problem: Problem) -> Problem:
    """Replace the network by its first-order expansion in the parameters.

    ``f(θ, x) = f(θ̂, x) + J(x) (θ - θ̂)``, the model of which Laplace's predictive and the influence
    function are exact statements (Khan et al. 2019, "Approximate inference turns deep networks into
    Gaussian processes"). The same in training: batch statistics and dropout do not enter.
    """

    def forward(params: Params, inputs: Inputs) -> Tensor:
        moved = {n: params[n] - p if n in params else p * 0 for n, p in problem.params.items()}
        value, change = jvp(lambda at: problem.forward(at, inputs), problem.params, moved)
        return value + change

    return replace(problem, forward=forward, train_forward=forward)


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

    def held_still(forward: Forward) -> Forward:
        return lambda params, inputs: forward({**held, **params}, inputs)

    return replace(
        problem,
        params=kept,
        forward=held_still(problem.forward),
        train_forward=held_still(problem.train_forward),
        normalizations=_touched(problem.normalizations, kept),
        lookups=_touched(problem.lookups, kept),
    )


def _touched(layers: tuple[str, ...], kept: Params) -> tuple[str, ...]:
    """The layers that own one of the parameters."""
    return tuple(layer for layer in layers if any(name.startswith(f"{layer}.") for name in kept))

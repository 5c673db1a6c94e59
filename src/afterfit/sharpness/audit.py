"""An invariance audit of the user's own network: which numbers a rescaling can fake."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, final

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from afterfit.linalg import Estimate
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Likelihood
from afterfit.problem.problem import Problem
from afterfit.sharpness.architecture import CHANGES, Architecture, ChangeKind, explore
from afterfit.sharpness.double import in_double
from afterfit.sharpness.measures import (
    connectivity_sharpness,
    fisher_rao_norm,
    squared_norm,
    tangent_trace,
)
from afterfit.sharpness.result import Sharpness

Measure = Callable[[Problem, Batches], Any]
"""Gives a Sharpness, an Estimate, a number or a tensor for a problem in its own parameters."""

MEASURES: Mapping[str, Measure] = {
    "connectivity sharpness": connectivity_sharpness,
    "tangent trace": tangent_trace,
    "Fisher-Rao norm": fisher_rao_norm,
    "squared norm": squared_norm,
}
"""What is audited by default: two that are invariant, and two that are not."""

EXACT = 1e-6
"""Largest relative change that counts as rounding."""


@final
@dataclass(frozen=True)
class Audit:
    """How far each measure moved while the network's function stayed as it was.

    Attributes
    ----------
    architecture
        What the network admits; ``print(audit.architecture)`` lists it.
    moves
        Rows are measures, columns kinds of changes: the largest change of the value, relative to
        the value, over all draws. 0.5 means that half of the value can be made to vanish.
    broken
        Claims of invariance (of measures that make some) that the audit saw broken.
    """

    architecture: Architecture
    moves: pd.DataFrame
    broken: tuple[str, ...]

    @property
    def can_be_faked(self) -> pd.Series:
        """Whether some change other than ``mixing`` moved the measure."""
        diagonal = self.moves.drop(columns="mixing", errors="ignore")
        return (diagonal > EXACT).any(axis=1)

    def __str__(self) -> str:
        table = self.moves.map(lambda move: "0" if move <= EXACT else f"{move:.3g}")
        return table.to_string()


def audit(
    module: nn.Module,
    likelihood: Likelihood,
    data: Batches,
    measures: Mapping[str, Measure] | None = None,
    *,
    spread: float | int = math.log(4),
    num_draws: int = 2,
    seed: int = 0,
) -> Audit:
    """Rescale a network in every way that its architecture admits, and watch the measures.

    The rescalings are discovered, applied to a private copy in float64, and each is verified: where
    the outputs change, it is refused. The user's network is never touched.

    Parameters
    ----------
    module
        The trained network, as a module: buffers and the ε of normalizations must be scaled with
        the weights, which a Problem does not allow.
    data
        What the measures are computed on; a few hundred samples tell enough.
    measures
        By name; :data:`MEASURES` by default. Any function of a problem and data: a posterior's
        variance, a bound, a score of your own. Give one that draws at random a seed of its own.
    spread
        Standard deviation of the logarithm of factors.
    num_draws
        Random changes of each kind.

    Raises
    ------
    ValueError
        If the network admits no change, or a measure is not finite.

    References
    ----------
    Dinh, Pascanu, Bengio and Bengio (2017), Sharp minima can generalize for deep nets, ICML.
    arXiv:1703.04933
    """
    architecture = explore(module, data, seed)
    if not architecture.freedoms:
        message = "no rescaling, sign or permutation preserves this network's function; none to try"
        raise ValueError(message)
    chosen = MEASURES if measures is None else measures
    samples = in_double(data, next(architecture.network.parameters()).device)
    here = _values(architecture.network, likelihood, samples, chosen)
    generator = Generator().manual_seed(seed)
    columns: dict[ChangeKind, dict[str, float]] = {}
    for kind in architecture.kinds:
        draws = []
        for _ in range(num_draws):
            network = architecture.changed(kind, spread, generator)
            there = _values(network, likelihood, samples, chosen)
            draws.append({name: _distance(here[name], there[name]) for name in chosen})
        columns[kind] = {name: max(draw[name] for draw in draws) for name in chosen}
    moves = pd.DataFrame(columns, index=pd.Index(chosen, name="measure"))
    return Audit(architecture, moves, _broken_claims(here, columns))


def _values(
    network: nn.Module, likelihood: Likelihood, data: Batches, measures: Mapping[str, Measure]
) -> dict[str, Any]:
    problem = Problem.from_module(network, likelihood)
    found = {name: measure(problem, data) for name, measure in measures.items()}
    for name, value in found.items():
        if not bool(torch.isfinite(as_tensor(value)).all()):
            message = f"the measure {name!r} gave {value}, expected finite numbers"
            raise ValueError(message)
    return found


def _distance(here: Any, there: Any) -> float:
    """Largest change of an entry, relative to the largest entry."""
    first, second = as_tensor(here), as_tensor(there)
    if first.shape != second.shape:
        return math.inf
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-300))


def _broken_claims(
    values: Mapping[str, Any], columns: Mapping[ChangeKind, Mapping[str, float]]
) -> tuple[str, ...]:
    return tuple(
        f"{name} claims to be invariant to {kind!r} and moved by {columns[kind][name]:.3g}"
        for name, value in values.items()
        for kind in CHANGES
        if kind in claims(value) and kind in columns and columns[kind][name] > EXACT
    )


@singledispatch
def claims(value: Any) -> frozenset[ChangeKind]:  # noqa: ARG001
    """What a result says that it is invariant to."""
    return frozenset()


@claims.register
def _(value: Sharpness) -> frozenset[ChangeKind]:
    return value.invariant_to


@singledispatch
def as_tensor(value: Any) -> Tensor:
    """Numbers of a result, in float64."""
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu().reshape(-1)


@as_tensor.register
def _(value: Sharpness) -> Tensor:
    return torch.tensor([value.total], dtype=torch.float64)


@as_tensor.register
def _(value: Estimate) -> Tensor:
    return torch.tensor([value.value], dtype=torch.float64)

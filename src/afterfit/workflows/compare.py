"""Rank trained networks by sharpness, and say how well each measure orders them by a target."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.evaluate.correlation import granulated_interval, kendall_interval
from afterfit.problem.data import Batches
from afterfit.problem.persample import losses
from afterfit.problem.problem import Problem
from afterfit.sharpness.audit import Measure, as_tensor, claims
from afterfit.sharpness.measures import (
    connectivity_curvature,
    connectivity_sharpness,
    fisher_rao_norm,
    normalized_connectivity_sharpness,
    squared_norm,
    tangent_trace,
)

COMPARED: Mapping[str, Measure] = {
    "connectivity sharpness": connectivity_sharpness,
    "connectivity curvature": connectivity_curvature,
    "normalized connectivity sharpness": normalized_connectivity_sharpness,
    "tangent trace": tangent_trace,
    "Fisher-Rao norm": fisher_rao_norm,
    "squared norm": squared_norm,
}
"""What networks are compared by when nothing else is said."""


@final
@dataclass(frozen=True)
class Comparison:
    """Networks side by side.

    Attributes
    ----------
    table
        One row a network: its name, its settings, the value of every measure, and the target where
        one was given.
    correlations
        One row a measure: Kendall's τ with the target, its interval (``low``, ``high``), and with a
        grid of settings the granulated Ψ with its interval and the ψ of each axis. Empty without a
        target.
    invariances
        What each measure says that it is invariant to; a measure that is not may order networks by
        how their weights happen to be scaled.
    """

    table: pd.DataFrame
    correlations: pd.DataFrame
    invariances: Mapping[str, frozenset[str]]

    def ranked(self, measure: str = "connectivity sharpness") -> pd.DataFrame:
        """The networks by one measure, the flattest first."""
        return self.table.sort_values(measure).reset_index(drop=True)


def compare(
    problems: Iterable[Problem],
    data: Batches,
    target: Float[Tensor, " K"] | None = None,
    *,
    measures: Mapping[str, Measure] = COMPARED,
    axes: Mapping[str, Sequence[Hashable]] | None = None,
    names: Sequence[str] | None = None,
    level: float | int = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compute measures for several networks, and correlate them with a target.

    Parameters
    ----------
    problems
        The networks, trained on the same data; read one at a time, so a generator will do.
    data
        Data that the measures are computed on, usually the training data or a part of it.
    target
        What a good measure predicts, one number for each network: :func:`generalization_gap`, or
        the test error. Always say which: a measure may be good for one and not for the other.
    measures
        Functions of (problem, data) by name.
    axes
        Hyper-parameters that were varied, for the granulated correlation: for each its settings in
        the order of the networks.
    level
        Of the bootstrap intervals over networks. With a few dozen networks they are wide.

    Raises
    ------
    ValueError
        If there are fewer than two networks, or a measure is not finite.
    """
    rows: list[dict[str, float]] = []
    invariances: dict[str, frozenset[str]] = {}
    for place, problem in enumerate(problems):
        found = {name: measure(problem, data) for name, measure in measures.items()}
        invariances = {name: frozenset(claims(value)) for name, value in found.items()}
        rows.append({name: _number(name, place, value) for name, value in found.items()})
    _require_as_many(rows, target, axes, names)
    settings = {} if axes is None else {name: list(values) for name, values in axes.items()}
    called = [str(i) for i in range(len(rows))] if names is None else list(names)
    table = pd.DataFrame({"name": called, **settings}).join(pd.DataFrame(rows))
    if target is None:
        return Comparison(table, pd.DataFrame(), invariances)
    table = table.assign(target=target.detach().double().cpu().numpy())
    generator = Generator().manual_seed(seed)
    lines = [_line(table, name, target, axes, level, num_resamples, generator) for name in measures]
    correlations = pd.DataFrame(lines, index=pd.Index(measures, name="measure"))
    return Comparison(table, correlations, invariances)


def generalization_gap(problem: Problem, train: Batches, test: Batches) -> float:
    """Mean loss on new data minus mean loss on training data, in nats."""
    return float(losses(problem, test).double().mean() - losses(problem, train).double().mean())


def _line(
    table: pd.DataFrame,
    measure: str,
    target: Tensor,
    axes: Mapping[str, Sequence[Hashable]] | None,
    level: float,
    num_resamples: int,
    generator: Generator,
) -> dict[str, float]:
    column = torch.tensor(table[measure].to_numpy(), dtype=torch.float64)
    tau = kendall_interval(column, target, num_resamples, generator, level)
    line = {"kendall": tau.value, "low": tau.low, "high": tau.high}
    if axes is None:
        return line
    parts = granulated_interval(column, target, axes, num_resamples, generator, level)
    whole = parts.pop("granulated")
    line |= {
        "granulated": whole.value,
        "granulated low": whole.low,
        "granulated high": whole.high,
    }
    return line | {f"psi {name}": part.value for name, part in parts.items()}


def _number(name: str, place: int, value: object) -> float:
    found = as_tensor(value)
    if found.numel() != 1 or not bool(torch.isfinite(found).all()):
        message = f"the measure {name!r} gave {value} for network {place}, expected a finite number"
        raise ValueError(message)
    return float(found)


def _require_as_many(
    rows: Sequence[object],
    target: Tensor | None,
    axes: Mapping[str, Sequence[Hashable]] | None,
    names: Sequence[str] | None,
) -> None:
    if len(rows) < 2:
        message = f"{len(rows)} networks were given, expected at least 2 to compare"
        raise ValueError(message)
    counts = {f"axis {name!r}": len(values) for name, values in (axes or {}).items()}
    if target is not None:
        counts["target"] = len(target)
    if names is not None:
        counts["names"] = len(names)
    wrong = {name: count for name, count in counts.items() if count != len(rows)}
    if wrong:
        message = f"{wrong} entries for {len(rows)} networks, expected one for each network"
        raise ValueError(message)

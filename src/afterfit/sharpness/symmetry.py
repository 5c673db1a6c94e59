"""Which rescalings leave a network's function as it is, found without knowing its architecture.

A rescaling ``θ_i → θ_i exp(e_i t)`` preserves the function if and only if the outputs' sensitivity
to it, ``Σ_i e_i θ_i ∂f/∂θ_i``, vanishes everywhere. The sensitivity of every row and column of
every tensor, for a few random combinations of outputs, is a handful of backward passes. A symmetry
is a linear relation among them with the same exponents for all units of an axis: "the rows of
this weight and this bias times a, the columns of that weight divided by a". Nothing in it asks what
kind of layers there are, so attention, gated units and residual streams are treated alike.

The search runs at a generic point (parameters perturbed, the ε of normalizations at 0), so that
zeros and coincidences of the trained network do not count; whether a relation holds for the network
itself is for :func:`~afterfit.sharpness.rescaling.verify` to say.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from afterfit.problem._autodiff import differentiable_attention
from afterfit.problem.problem import Problem
from afterfit.sharpness.open_norm import OpenBatchNorm
from afterfit.sharpness.relations import beyond, null_space
from afterfit.typing import Inputs

_MOST_CHUNKS = 4
_PROBES_AT_LEAST = 4


@final
@dataclass(frozen=True)
class Part:
    """Entries of a tensor that belong to the units of a symmetry.

    Attributes
    ----------
    name
        Parameter or buffer.
    axis
        Along which the units lie; None where the tensor is scaled as a whole.
    start, repeat
        Unit u owns the entries ``start + u repeat, …, start + (u + 1) repeat - 1`` of the axis:
        packed projections start further on, channels that were flattened repeat.
    exponent
        The entries of unit u are multiplied by its factor to this power.
    """

    name: str
    axis: int | None = None
    start: int = 0
    repeat: int = 1
    exponent: float = 1.0

    def entries(self, size: int) -> slice:
        """Positions on the axis that belong to the first units."""
        return slice(self.start, self.start + size * self.repeat)

    def owned_by(self, unit: int) -> range:
        """Positions on the axis that belong to one unit."""
        first = self.start + unit * self.repeat
        return range(first, first + self.repeat)

    @property
    def place(self) -> str:
        """Where in the tensor, in words."""
        if self.axis is None:
            return self.name
        run = f"{self.start}+" if self.start else ""
        step = f"u*{self.repeat}" if self.repeat > 1 else "u"
        return f"{self.name}[{', '.join([':'] * self.axis + [run + step])}]"

    def __str__(self) -> str:
        times = {1.0: "× a", -1.0: "÷ a"}.get(self.exponent, f"× a^{self.exponent:g}")
        return f"{self.place} {times}"


@final
@dataclass(frozen=True)
class Symmetry:
    """A rescaling that the architecture admits: one free factor for each unit.

    Attributes
    ----------
    size
        Number of units n that can be scaled apart; 1 where whole tensors are scaled.
    parts
        What is scaled together.
    """

    size: int
    parts: tuple[Part, ...]

    @property
    def names(self) -> frozenset[str]:
        """Tensors that take part."""
        return frozenset(part.name for part in self.parts)

    def __str__(self) -> str:
        return f"{self.size} units: " + ", ".join(map(str, self.parts))


def find_scalings(problem: Problem, inputs: Inputs, generator: Generator) -> tuple[Symmetry, ...]:
    """Find all rescalings by axes that preserve the function of a problem at its parameters.

    Parameters
    ----------
    problem
        In float64, at a generic point, the ε of its normalizations 0.
    inputs
        One batch; outputs of all its samples together should be more than there are tensors.

    Raises
    ------
    ValueError
        If the batch has too few outputs to tell relations from coincidences, or a sensitivity is
        NaN or infinite.
    """
    tensors = scalable(problem)
    sums, wholes = _sensitivities(problem, tensors, inputs, generator)
    found: list[Symmetry] = []
    sizes = sorted({len(column) for column in sums.values() if len(column) > 1}, reverse=True)
    for size in sizes:
        parts = dict(_candidates(sums, size))
        for symmetry in _relations(size, parts):
            if not _is_piece(symmetry, found):
                found.append(symmetry)
    return (*found, *_whole_relations(wholes, found))


def scalable(problem: Problem) -> dict[str, Tensor]:
    """Parameters, and the buffers that are finite numbers."""
    buffers = {
        name: value
        for name, value in problem.buffers.items()
        if value.is_floating_point() and value.numel() and bool(value.isfinite().all())
    }
    return {**problem.params, **buffers}


def generic(module: nn.Module, spread: float | int, generator: Generator) -> nn.Module:
    """Move a private copy of a network to a generic point near it, in place, and give it back.

    Parameters, and the statistics of normalizations, are multiplied by ``exp(spread z)``; zeros
    become small numbers.
    """
    normal = {name for name, part in module.named_modules() if epsilon_of(part) is not None}
    statistics = [
        value
        for name, value in module.named_buffers()
        if name.rpartition(".")[0] in normal and value.is_floating_point()
    ]
    with torch.no_grad():
        for value in (*module.parameters(), *statistics):
            draw = torch.randn(value.shape, dtype=value.dtype, generator=generator).to(value.device)
            size = float(value.square().mean().sqrt()) or 1.0
            moved = value * (spread * draw).exp()
            value.copy_(torch.where(value == 0, 0.3 * spread * size * draw, moved))
    return module


EPSILONS = ("eps", "epsilon", "variance_epsilon")
"""Attributes by which normalization layers call the ε that they add to a variance."""


def epsilon_of(part: nn.Module) -> str | None:
    """Name of the attribute that holds the ε of a normalization layer, if it has one."""
    own = vars(part)
    named = [name for name in EPSILONS if name in own]
    is_norm = named and (own[named[0]] is None or isinstance(own[named[0]], float))
    return named[0] if is_norm else None


def _sensitivities(
    problem: Problem, tensors: dict[str, Tensor], inputs: Inputs, generator: Generator
) -> tuple[dict[tuple[str, int], Float[Tensor, "..."]], dict[str, Float[Tensor, " q"]]]:
    """``θ ∂(probe · f)/∂θ``, summed over all axes but one, and over all, for each probe."""
    leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    columns: dict[tuple[str, int], list[Tensor]] = {}
    wholes: dict[str, list[Tensor]] = {name: [] for name in tensors}
    with differentiable_attention(), torch.enable_grad(), OpenBatchNorm():
        outputs = problem.forward(leaves, inputs)
        num_probes = max(_PROBES_AT_LEAST, len(tensors) + 8)
        if outputs.numel() < num_probes:
            message = (
                f"{outputs.numel()} outputs for {len(tensors)} tensors, expected at least "
                f"{num_probes} to tell symmetries from coincidences; pass more samples"
            )
            raise ValueError(message)
        for _ in range(num_probes):
            probe = torch.randn(outputs.shape, dtype=outputs.dtype, generator=generator)
            slopes = torch.autograd.grad(
                outputs,
                tuple(leaves.values()),
                probe.to(outputs.device),
                retain_graph=True,
                materialize_grads=True,
                allow_unused=True,
            )
            for (name, value), slope in zip(tensors.items(), slopes, strict=True):
                product = _finite(name, value * slope).cpu()
                wholes[name].append(product.sum())
                for axis in range(value.ndim):
                    others = [i for i in range(value.ndim) if i != axis]
                    summed = product.sum(others) if others else product
                    columns.setdefault((name, axis), []).append(summed)
    return (
        {key: torch.stack(column, dim=1) for key, column in columns.items()},
        {name: torch.stack(column) for name, column in wholes.items()},
    )


def _finite(name: str, sensitivity: Tensor) -> Tensor:
    if not bool(sensitivity.isfinite().all()):
        message = (
            f"the outputs' sensitivity to {name} is NaN or infinite, expected a finite one: "
            "relations that hold could not be seen; look for a root or a division at 0 in the "
            "network, and for samples that reach it"
        )
        raise ValueError(message)
    return sensitivity


def _candidates(
    sums: dict[tuple[str, int], Tensor], size: int
) -> Iterator[tuple[Part, Float[Tensor, "n q"]]]:
    """Every way in which an axis can hold this many units, with the sensitivity to each unit."""
    for (name, axis), column in sums.items():
        length = len(column)
        if length % size:
            continue
        repeat = length // size
        blocks = column.reshape(size, repeat, -1).sum(1)
        yield Part(name, axis, repeat=repeat), blocks
        if 1 < repeat <= _MOST_CHUNKS:
            for k in range(repeat):
                yield Part(name, axis, start=k * size), column[k * size : (k + 1) * size]


def _relations(size: int, parts: dict[Part, Float[Tensor, "n q"]]) -> list[Symmetry]:
    """Exponents with which the sensitivities of the parts cancel, unit by unit."""
    num_probes = min(
        next(iter(parts.values())).shape[1],
        max(_PROBES_AT_LEAST, math.ceil(2 * len(parts) / size)),
    )
    columns = [column[:, :num_probes].flatten() for column in parts.values()]
    found = []
    for exponents in null_space(torch.stack(columns, dim=1)):
        chosen = [
            replace(part, exponent=value)
            for part, value in zip(parts, exponents, strict=True)
            if value
        ]
        if _are_apart(chosen, size):
            found.append(Symmetry(size, tuple(chosen)))
    return found


def _are_apart(parts: list[Part], size: int) -> bool:
    """No entry of a tensor is in two parts, apart from rows and columns of one tensor."""
    owned: set[tuple[str, int | None, int]] = set()
    for part in parts:
        there = part.entries(size)
        mine = {(part.name, part.axis, i) for i in range(there.start, there.stop)}
        if owned & mine:
            return False
        owned |= mine
    return True


def _is_piece(symmetry: Symmetry, found: list[Symmetry]) -> bool:
    """Whether the rescalings of a symmetry are all rescalings of those that are known already."""
    if any(part.start == 0 and part.repeat == 1 for part in symmetry.parts):
        return False
    near = [known for known in found if known.size > symmetry.size and known.names & symmetry.names]
    if not near:
        return False
    places: dict[tuple[str, int | None, int], int] = {}
    columns = [_entries(one, places) for one in (symmetry, *near)]
    mine, *others = (_dense(column, len(places)) for column in columns)
    target = mine @ torch.rand(symmetry.size, 1, dtype=mine.dtype, generator=_fixed())
    span = torch.cat(others, dim=1)
    rest = target - span @ torch.linalg.lstsq(span, target, driver="gelsd").solution
    return float(rest.norm()) < 1e-6 * float(target.norm())


def _fixed() -> Generator:
    return Generator().manual_seed(0)


def _entries(
    symmetry: Symmetry, places: dict[tuple[str, int | None, int], int]
) -> list[list[tuple[int, float]]]:
    """For each unit the entries that it owns, numbered, and their exponents."""
    return [
        [
            (places.setdefault((part.name, part.axis, i), len(places)), part.exponent)
            for part in symmetry.parts
            for i in part.owned_by(unit)
        ]
        for unit in range(symmetry.size)
    ]


def _dense(column: list[list[tuple[int, float]]], num: int) -> Float[Tensor, "m n"]:
    matrix = torch.zeros(num, len(column), dtype=torch.float64)
    for unit, owned in enumerate(column):
        for place, exponent in owned:
            matrix[place, unit] = exponent
    return matrix


def _whole_relations(
    wholes: dict[str, Float[Tensor, " q"]], found: list[Symmetry]
) -> list[Symmetry]:
    """Relations among whole tensors that are not those of an axis with equal factors."""
    names = list(wholes)
    rows = null_space(torch.stack([wholes[name] for name in names], dim=1))
    if not rows:
        return []
    basis = torch.tensor(rows, dtype=torch.float64)
    known = torch.zeros(len(found), len(names), dtype=torch.float64)
    for row, symmetry in zip(known, found, strict=True):
        for part in symmetry.parts:
            row[names.index(part.name)] += part.exponent
    return [
        Symmetry(1, tuple(Part(n, exponent=e) for n, e in zip(names, row, strict=True) if e))
        for row in beyond(basis, known).tolist()
    ]

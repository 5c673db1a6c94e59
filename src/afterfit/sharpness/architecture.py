"""All ways in which a given network can be changed without changing its function."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from torch import Generator, Tensor, nn

from afterfit.problem import Batches, Gaussian, Problem
from afterfit.sharpness.double import in_double
from afterfit.sharpness.freedom import CHANGES, ChangeKind, Freedom
from afterfit.sharpness.rescaling import (
    adapt_epsilon,
    evaluate,
    fold_epsilon,
    lent,
    measures_samples,
    private_copy,
    relative_change,
    tensors_of,
    verify,
    without_epsilon,
)
from afterfit.sharpness.symmetry import (
    Part,
    Symmetry,
    epsilon_of,
    find_scalings,
    generic,
    scalable,
)
from afterfit.typing import Inputs

TOLERANCE = 1e-8
_PREVIEW = 4


@final
@dataclass(frozen=True)
class Architecture:
    """A network with all that can be done to it.

    Attributes
    ----------
    network
        A private copy in float64 and eval mode.
    freedoms
        Verified on `inputs`.
    inputs
        Samples on which each change is verified again.
    """

    network: nn.Module
    freedoms: tuple[Freedom, ...]
    inputs: Inputs

    @property
    def kinds(self) -> tuple[ChangeKind, ...]:
        """Kinds of which there is at least one."""
        there = {freedom.kind for freedom in self.freedoms}
        return tuple(kind for kind in CHANGES if kind in there)

    def changed(self, kind: ChangeKind, spread: float | int, generator: Generator) -> nn.Module:
        """Apply every freedom of a kind at random, and verify that the function is the same.

        Raises
        ------
        ValueError
            If there is none of the kind, or the outputs changed.
        """
        chosen = [freedom for freedom in self.freedoms if freedom.kind == kind]
        if not chosen:
            message = f"the network admits no change of kind {kind!r}; it admits {self.kinds}"
            raise ValueError(message)
        network = copy.deepcopy(self.network)
        for freedom in chosen:
            freedom.change_in_place(network, spread, generator)
        network = adapt_epsilon(self.network, network, self.inputs)
        verify(self.network, network, self.inputs, TOLERANCE)
        return network

    def __str__(self) -> str:
        return "\n".join(map(str, self.freedoms))


def explore(module: nn.Module, data: Batches, seed: int = 0) -> Architecture:
    """Find what can be done to a network without changing its function.

    Nothing is asked of the architecture: scalings are found as relations among sensitivities
    (:mod:`~afterfit.sharpness.symmetry`), signs and permutations are tried where shapes allow. What
    is found is kept only if the outputs on the data do not change, both for the trained parameters
    and for others near them.

    Parameters
    ----------
    data
        Inputs on which the function is compared; the targets do not matter. Some eight samples
        are read, more where there are many tensors and few outputs.

    Raises
    ------
    ValueError
        If outputs on these samples are NaN or infinite, or too few.
    """
    generator = Generator().manual_seed(seed)
    network = private_copy(module)
    inputs = _some_inputs(network, data)
    _require_finite(evaluate(network, inputs))
    elsewhere = generic(fold_epsilon(network), 0.3, generator)
    there = Problem.from_module(without_epsilon(elsewhere), Gaussian())
    looked = (_first_inputs(network, data), inputs)
    points = tuple((one, tuple(evaluate(one, x) for x in looked)) for one in (elsewhere, network))
    trial = _Trial(network, points, looked, generator)
    found = find_scalings(there, inputs, generator)
    scalings = [kept for symmetry in found for kept in trial.of_scaling(symmetry)]
    tried = (*(one.symmetry for one in scalings if one.kind != "layer"), *_pairs(network, scalings))
    moves = [move for symmetry in tried for move in trial.of_moves(symmetry)]
    return Architecture(network, tuple(_distinct([*scalings, *moves])), inputs)


@final
@dataclass(frozen=True)
class _Trial:
    """Tries changes at the trained parameters and at others, on one sample and then on all."""

    network: nn.Module
    points: tuple[tuple[nn.Module, tuple[Tensor, ...]], ...]
    inputs: tuple[Inputs, ...]
    generator: Generator

    def holds(self, freedom: Freedom) -> bool:
        """Whether a random change of this kind preserves both functions."""
        if freedom.kind == "mixing" and (freedom.symmetry.size % 2 or _is_elementwise(freedom)):
            return False
        return all(self._preserved(one, outputs, freedom) for one, outputs in self.points)

    def _preserved(self, network: nn.Module, outputs: tuple[Tensor, ...], freedom: Freedom) -> bool:
        with lent(network, freedom.symmetry.names):
            freedom.change_in_place(network, 0.7, self.generator)
            if self._agrees(network, outputs):
                return True
            if freedom.kind not in ("layer", "normalization") or not measures_samples(network):
                return False
            changed = copy.deepcopy(network)
        return self._agrees(adapt_epsilon(network, changed, self.inputs[-1]), outputs)

    def _agrees(self, changed: nn.Module, before: tuple[Tensor, ...]) -> bool:
        pairs = zip(self.inputs, before, strict=True)
        return all(relative_change(y, evaluate(changed, x)) <= TOLERANCE for x, y in pairs)

    def of_moves(self, symmetry: Symmetry) -> Iterator[Freedom]:
        """Flip and permute units; mix them only where signs show that all between is linear."""
        if symmetry.size == 1:
            return
        sign, permutation, mixing = (
            Freedom("sign", symmetry),
            Freedom("permutation", symmetry),
            Freedom("mixing", symmetry),
        )
        if self.holds(permutation):
            yield permutation
        if self.holds(sign):
            yield sign
            if self.holds(mixing):
                yield mixing

    def of_scaling(self, symmetry: Symmetry) -> Iterator[Freedom]:
        """Scale units apart where that preserves the function, and all together where that does."""
        kind = _kind_of(self.network, symmetry)
        apart, together = Freedom(kind, symmetry), Freedom("layer", symmetry)
        each = symmetry.size > 1 and self.holds(apart)
        if each:
            yield apart
        if each or self.holds(together):  # equal factors are a case of factors
            yield together


def _kind_of(network: nn.Module, symmetry: Symmetry) -> ChangeKind:
    tensors, parts = tensors_of(network), symmetry.parts
    if symmetry.size == 1:
        return "layer"
    buffers = {name for name, _ in network.named_buffers()}
    if symmetry.names & buffers:
        return "normalization"
    owners = {part.name.rpartition(".")[0] for part in parts if tensors[part.name].ndim == 1}
    if any(epsilon_of(network.get_submodule(owner)) is not None for owner in owners):
        return "affine"
    writes = all(part.axis == 0 for part in parts)
    return "query-key" if writes and any(part.exponent < 0 for part in parts) else "node"


def _is_elementwise(freedom: Freedom) -> bool:
    return any(part.exponent not in (1.0, -1.0) for part in freedom.symmetry.parts)


def _pairs(network: nn.Module, scalings: list[Freedom]) -> Iterator[Symmetry]:
    """Units that could be flipped or permuted: rows that one module writes and a later one reads.

    Also the union of two scalings of the same units, as of a layer and of the normalization after
    it, which can only be permuted together.
    """
    whole = [one for one in scalings if one.kind in ("normalization", "affine")]
    for one, other in combinations(whole, 2):
        first, second = one.symmetry, other.symmetry
        if first.size == second.size and first.names & second.names:
            merged = {(p.name, p.axis, p.start): p for p in (*first.parts, *second.parts)}
            yield Symmetry(first.size, tuple(merged.values()))
    tensors = {name: value for name, value in scalable_of(network).items() if value.ndim}
    for position, written in _written(network):
        size = len(tensors[written[0].name])
        readers = [name for name, v in list(tensors.items())[position:] if v.ndim > 1][:_PREVIEW]
        for name in readers:
            length = tensors[name].shape[1]
            if length % size == 0 and size > 1:
                reader = Part(name, 1, repeat=length // size, exponent=-1.0)
                yield Symmetry(size, (*written, reader))


def scalable_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and finite buffers of a network."""
    return scalable(Problem.from_module(network, Gaussian()))


def _written(network: nn.Module) -> Iterator[tuple[int, tuple[Part, ...]]]:
    """Tensors whose first axis is written by one module, with those of a normalization after it."""
    tensors = scalable_of(network)
    names = list(tensors)
    modules: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for name, _ in network.named_buffers():
        if name in tensors:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    owners = [[name for name in group if tensors[name].ndim] for group in modules.values()]
    owners = [group for group in owners if group]
    buffers = {name for name, _ in network.named_buffers()}
    for place, group in enumerate(owners):
        size = len(tensors[group[0]])
        own = [_rows(name) for name in group if len(tensors[name]) == size]
        after = names.index(group[0]) + 1
        following = owners[place + 1] if place + 1 < len(owners) else []
        if following and all(tensors[name].shape == (size,) for name in following):
            own += [_rows(name) for name in following]
        yield after, tuple(own)
        if buffers.intersection(group):  # a normalization's scale and shift, without its statistics
            yield after, tuple(part for part in own if part.name not in buffers)


def _rows(name: str) -> Part:
    """Rows of a tensor; a variance does not change its sign."""
    return Part(name, 0, exponent=2.0 if name.endswith("running_var") else 1.0)


def _distinct(freedoms: list[Freedom]) -> list[Freedom]:
    """Each freedom once."""
    seen: dict[tuple[ChangeKind, frozenset[tuple[str, int | None, int]]], Freedom] = {}
    for freedom in freedoms:
        where = frozenset((p.name, p.axis, p.start) for p in freedom.symmetry.parts)
        seen.setdefault((freedom.kind, where), freedom)
    return list(seen.values())


def _require_finite(outputs: Tensor) -> None:
    bad = int((~outputs.isfinite()).sum())
    if bad:
        message = (
            f"{bad} of {outputs.numel()} outputs are NaN or infinite, expected finite ones: "
            "changes of a network are told by its outputs; look at its inputs, and at running "
            "variances below -ε"
        )
        raise ValueError(message)


def _some_inputs(network: nn.Module, data: Batches) -> Inputs:
    """As many samples as tell relations apart from coincidences, or all there are."""
    width = evaluate(network, _first_inputs(network, data)).numel()
    wanted = max(8, 2 * (len(tensors_of(network)) + 8) // width + 1)
    return _first_inputs(network, data, min(data.num_samples, wanted))


def _first_inputs(network: nn.Module, data: Batches, num: int = 1) -> Inputs:
    device = next(network.parameters()).device
    return in_double(data.subset(torch.arange(num)), device).fetch(torch.arange(num)).inputs

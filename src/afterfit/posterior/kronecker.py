"""Gaussians over layers: bases that are Kronecker products, and predictions without Jacobians."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature import FactoredPart, RowsPart, UnusedPart, layer_jacobians
from afterfit.posterior.basis import Weightings, grams
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

_ENTRIES_AT_ONCE = 2**21
"""Entries of the gradients of one layer that are held together: few enough for caches."""


@final
@dataclass(frozen=True)
class LayerPart:
    """``U ⊗ V`` for a layer, read row by row as (out, in).

    Attributes
    ----------
    output_vectors, input_vectors
        Orthonormal columns U (out, out) and V (in, in).
    rows, columns
        What the gradients at the output and the inputs of the layer are multiplied with to be those
        of whitened coordinates.
    """

    names: tuple[str, ...]
    output_vectors: Float[Tensor, "O O"]
    input_vectors: Float[Tensor, "I I"]
    rows: Float[Tensor, " O"]
    columns: Float[Tensor, " I"]

    def apply(self, weights: Tensor, columns: Float[Tensor, "n M"]) -> Float[Tensor, "n M"]:
        shape = (len(self.output_vectors), len(self.input_vectors))
        grid = columns.mT.unflatten(1, shape)
        rotated = self.output_vectors.mT @ grid @ self.input_vectors * weights.view(shape)
        return (self.output_vectors @ rotated @ self.input_vectors.mT).flatten(1).mT

    def diagonal(self, weights: Tensor) -> Float[Tensor, " n"]:
        grid = weights.view(len(self.output_vectors), len(self.input_vectors))
        squares = self.output_vectors.square() @ grid @ self.input_vectors.square().mT
        return squares.flatten()

    def covariances(
        self,
        jacobian: FactoredPart,
        prior: Float[Tensor, " n"],  # noqa: ARG002 (in rows and columns)
        weights: Float[Tensor, "A n"],
        memory_budget: int,
    ) -> Float[Tensor, "A B C C"]:
        """Covariance of the outputs of the network that this layer brings about.

        The gradient of an output is ``Σ_s g_s a_sᵀ`` over S positions, rotated into the basis. It
        is formed only where that takes fewer multiplications than the pairs of positions do, which
        all outputs share: with one position, never.
        """
        grid = weights.unflatten(1, (len(self.output_vectors), len(self.input_vectors)))
        a = _turned(jacobian.inputs * self.columns, self.input_vectors)
        g = _turned(jacobian.outputs * self.rows, self.output_vectors)
        num, positions = g.shape[1:3]
        if positions**2 <= 2 * num * (positions + num):
            return _by_pairs(a, g, grid)
        return _by_rows(a, g, grid, memory_budget)


def _turned(rows: Float[Tensor, "*B n"], vectors: Float[Tensor, "n n"]) -> Float[Tensor, "*B n"]:
    """Rotate the last axis, by one product of matrices whatever the strides."""
    return (rows.reshape(-1, rows.shape[-1]) @ vectors).view(rows.shape)


def _by_pairs(
    a: Float[Tensor, "B S I"], g: Float[Tensor, "B C S O"], grid: Float[Tensor, "A O I"]
) -> Float[Tensor, "A B C C"]:
    """``Σ_st Σ_o g_cso (Σ_i a_si grid_oi a_ti) g_dto``, for one s at a time all t from s on."""
    total = g.new_zeros(len(grid), len(g), g.shape[1], g.shape[1])
    for s in range(a.shape[1]):
        products = a[:, s, None] * a[:, s:]
        for own, into in zip(grid, total, strict=True):
            kernel = products @ own.mT
            kernel[:, 0] /= 2
            into += g[:, :, s] @ (g[:, :, s:] * kernel[:, None]).sum(2).mT
    return total + total.mT


def _by_rows(
    a: Float[Tensor, "B S I"],
    g: Float[Tensor, "B C S O"],
    grid: Float[Tensor, "A O I"],
    memory_budget: int,
) -> Float[Tensor, "A B C C"]:
    """Sum over positions first, for some samples and some rows of the weight at a time."""
    num, (_, height, width) = g.shape[1], grid.shape
    entries = min(_ENTRIES_AT_ONCE, memory_budget // (2 * g.element_size()))
    samples = max(1, entries // (num * height * width))
    rows = max(1, entries // (samples * num * width))
    total = g.new_zeros(len(grid), len(g), num, num)
    pieces = zip(a.split(samples), g.split(samples), total.split(samples, dim=1), strict=True)
    for inputs, outputs, into in pieces:
        parts = zip(outputs.split(rows, dim=3), grid.split(rows, dim=1), strict=True)
        for part, weights in parts:
            joined = part.mT @ inputs[:, None]  # (b, C, rows, I)
            into += grams(joined.flatten(2), weights.flatten(1))
    return total


@final
@dataclass(frozen=True)
class LoosePart:
    """Directions of parameters without Kronecker structure: themselves, or a dense matrix."""

    names: tuple[str, ...]
    vectors: Float[Tensor, "n n"] | None

    def apply(self, weights: Tensor, columns: Float[Tensor, "n M"]) -> Float[Tensor, "n M"]:
        if self.vectors is None:
            return weights[:, None] * columns
        return self.vectors @ (weights[:, None] * (self.vectors.mT @ columns))

    def diagonal(self, weights: Tensor) -> Float[Tensor, " n"]:
        return weights if self.vectors is None else self.vectors.square() @ weights

    def covariances(
        self,
        jacobian: RowsPart,
        prior: Float[Tensor, " n"],
        weights: Float[Tensor, "A n"],
        memory_budget: int,  # noqa: ARG002 (the rows are there already)
    ) -> Float[Tensor, "A B C C"]:
        """Covariance of the outputs of the network that these parameters bring about."""
        rows = jacobian.values * prior
        turned = rows if self.vectors is None else rows @ self.vectors
        return grams(turned, weights)


@final
@dataclass(frozen=True)
class BlockBasis:
    """Directions of blocks that do not mix, each at its positions of the flat vector."""

    parts: tuple[LayerPart | LoosePart, ...]
    positions: tuple[Int[Tensor, " _"], ...]
    structure: str

    def _each(self, weights: Float[Tensor, "*A P"]) -> Iterator[tuple[Any, Tensor, Tensor]]:
        sizes = [len(where) for where in self.positions]
        yield from zip(self.parts, self.positions, weights.split(sizes, dim=-1), strict=True)

    def apply(
        self,
        weights: Float[Tensor, " P"],
        rest: float,  # noqa: ARG002 (nothing is outside)
        columns: Float[Tensor, "P M"],
    ) -> Float[Tensor, "P M"]:
        turned = torch.empty_like(columns)
        for part, where, own in self._each(weights):
            turned[where] = part.apply(own, columns[where])
        return turned

    def diagonal(
        self,
        weights: Float[Tensor, " P"],
        rest: float,  # noqa: ARG002 (nothing is outside)
    ) -> Float[Tensor, " P"]:
        entries = torch.empty_like(weights)
        for part, where, own in self._each(weights):
            entries[where] = part.diagonal(own)
        return entries

    def covariances(
        self, problem: Problem, data: Batches, several: Weightings, memory_budget: int
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "A B C C"]]]:
        each = [(part, several.prior[w], own) for part, w, own in self._each(several.weights)]
        for seen in layer_jacobians(problem, _in_small_batches(problem, data, memory_budget)):
            size = seen.outputs.shape[1]
            total = seen.outputs.new_zeros(len(several.weights), len(seen.index), size, size)
            for found in seen.parts:
                if not isinstance(found, UnusedPart):
                    for i, own_part in self._matched(found):
                        part, prior, own = each[i]
                        total += part.covariances(own_part, prior, own, memory_budget // 4)
            yield seen.index, total

    @cached_property
    def _starts(self) -> dict[int, int]:
        return {int(where[0]): i for i, where in enumerate(self.positions)}

    def _matched(self, found: FactoredPart | RowsPart) -> Iterator[tuple[int, Any]]:
        """Blocks that a part of a Jacobian belongs to, and what of it is theirs.

        A layer that no sample of the training data used has no Kronecker block: its parameters are
        alone, and take rows.
        """
        at = self._starts.get(int(found.positions[0]), -1)
        alike = isinstance(self.parts[at], LayerPart) == isinstance(found, FactoredPart)
        if at >= 0 and alike and len(self.positions[at]) == len(found.positions):
            yield at, found
            return
        order = found.positions.argsort()
        sorted_positions, rows = found.positions[order], found.rows()
        within = [
            i
            for i, (part, where) in enumerate(zip(self.parts, self.positions, strict=True))
            if isinstance(part, LoosePart) and bool(torch.isin(where, found.positions).all())
        ]
        if sum(len(self.positions[i]) for i in within) != len(found.positions):
            message = (
                f"{found.names} are used with other parameters, or by other functions, than in the "
                "data of the posterior, expected one way of use; leave them out with "
                "restrict(problem, ...), or take curvature=diagonal"
            )
            raise ValueError(message)
        for i in within:
            where = self.positions[i]
            columns = order[torch.searchsorted(sorted_positions, where)]
            yield i, RowsPart(self.parts[i].names, where, rows[..., columns])


def _in_small_batches(problem: Problem, data: Batches, memory_budget: int) -> Batches:
    """Read so few samples together that the factors of their Jacobians fit."""
    (first,) = layer_jacobians(problem, data.subset(torch.arange(1)))
    entries = first.outputs.numel() ** 2 + sum(_entries(part) for part in first.parts)
    rows = memory_budget // (6 * entries * first.outputs.element_size())
    return Batches(data, max(1, min(rows, data.batch_size)))


def _entries(part: FactoredPart | RowsPart | UnusedPart) -> int:
    if isinstance(part, UnusedPart):
        return part.outputs.numel()
    if isinstance(part, RowsPart):
        return part.values.numel()
    return part.inputs.numel() + part.outputs.numel()

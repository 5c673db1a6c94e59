"""Influence through Kronecker-factored curvature, from the factors that layers give."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature import Curvature, Damping, ekfac, inverse, relative
from afterfit.curvature.diagonal import by_visibility
from afterfit.curvature.factored import BlockInverse, EigenInverse, FactoredInverse
from afterfit.curvature.sample_gradients import (
    UNSEEN,
    Blocks,
    Factored,
    block_name,
    inner,
    joined,
    sample_gradients,
)
from afterfit.influence.base import Influence, require_finite
from afterfit.linalg import BlockDiagonal
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE
from afterfit.problem.problem import Problem

_ENTRIES_AT_ONCE = 2**24


@final
@dataclass(frozen=True)
class EKFACInfluence:
    """Influence function with eigenvalue-corrected Kronecker factors: ``g_qᵀ (H + damping)⁻¹ g_n``.

    The scores are those of ``InfluenceFunction(damping, curvature=ekfac)``. Here gradients stay in
    the factors in which layers make them: they are turned into the eigenbasis of a layer before
    they are multiplied out, training samples are kept as factors, and for layers with one position
    self-influence needs no gradient at all. H is the mean curvature over training samples, and
    ``score / N`` is in nats for one removed sample.

    The bias of a layer shares the block of its weight, as a last input that is always one
    (kronfluence does the same; laplace-torch gives it a block of its own). Weights that are used at
    many positions, or by several layers, have one block: their gradient is summed over uses before
    it is squared. H comes from the likelihood's own ``Λ``, where kronfluence draws labels.

    Parameters
    ----------
    damping
        For each layer: ``relative(share)`` of its mean eigenvalue (default 0.1, the heuristic of
        Grosse et al. 2023), or one number for all.
    curvature
        ``ekfac`` (default) or ``kfac``, with settings bound by ``partial``: ``sharing=reduce``,
        ``others=diagonal`` for parameters that no known layer uses.
    memory_budget
        Bytes that the kept factors, and the gradients of the queries, may take.

    References
    ----------
    Grosse et al. (2023), "Studying large language model generalization with influence functions",
    arXiv:2308.03296, section 3.1.
    """

    damping: Damping = field(default_factory=lambda: relative(0.1))
    curvature: Curvature = ekfac
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Grosse et al. (2023), Studying large language model generalization with influence "
        "functions, arXiv:2308.03296"
    )

    def fit(self, problem: Problem, train: Batches) -> "LayerInfluence":
        """Compute the factors, and their eigenbases.

        Raises
        ------
        TypeError
            If the curvature does not come in blocks.
        ValueError
            If a parameter is used by a function that is no known layer, or a damped block is not
            positive definite.
        """
        operator = self.curvature(problem, train)
        prepared = inverse(operator, self.damping, num_samples=train.num_samples)
        if not isinstance(operator, BlockDiagonal) or not isinstance(prepared, BlockInverse):
            message = (
                f"the curvature is a {type(operator).__name__}, expected the blocks of ekfac or "
                "kfac; for others use InfluenceFunction(damping, curvature)"
            )
            raise TypeError(message)
        names = _names(problem, train, [block.names for block in operator.blocks])  # pyright: ignore
        blocks = dict(zip(names, prepared.blocks, strict=True))
        return LayerInfluence(problem, train, self.memory_budget, blocks)


def _names(problem: Problem, train: Batches, covered: Sequence[tuple[str, ...]]) -> list[str]:
    """Names of blocks as those of gradients: groups of a convolution are numbered."""
    unseen = by_visibility(problem, train)[1]
    rest = None if unseen is None else tuple(unseen.params)
    seen: dict[tuple[str, ...], int] = {}
    found = []
    for names in covered:
        group = seen[names] = seen.get(names, -1) + 1
        found.append(UNSEEN if names == rest else block_name(names, group))
    return found


@final
@dataclass(frozen=True)
class LayerInfluence(Influence):
    """Influence through an inverse by blocks.

    Attributes
    ----------
    blocks
        The inverse of each block of parameters.
    """

    problem: Problem
    train: Batches
    memory_budget: int
    blocks: dict[str, FactoredInverse]

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Gradients of queries through the inverse, times the factors of training samples."""
        like = next(iter(self.problem.params.values()))
        result = like.new_empty(query.num_samples, self.train.num_samples)
        for rows, asked in self._solved(query):
            for columns, own in self._train():
                result[rows[:, None], columns] = inner(asked, own)
        return result

    def self_scores(self) -> Float[Tensor, " N"]:
        """Squared norm of each whitened training gradient."""
        result = next(iter(self.problem.params.values())).new_empty(self.train.num_samples)
        for index, own in self._train():
            norms = [self._squared_norms(name, part) for name, part in own.items()]
            result[index] = torch.stack(norms).sum(0)
        return result

    def _rotated(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Blocks]]:
        """Gradients in the eigenbasis of each block, in factors where these are smaller."""
        for index, parts in sample_gradients(self.problem, data, self.memory_budget):
            for part in parts.values():
                require_finite(part.inputs.flatten(1), index, data)
                require_finite(part.outputs.flatten(1), index, data)
            yield index, {name: _rotate(self.blocks[name], part) for name, part in parts.items()}

    def _train(self) -> Iterator[tuple[Int[Tensor, " B"], Blocks]]:
        yield from self._rotated(self.train) if self._kept is None else self._kept

    @cached_property
    def _kept(self) -> list[tuple[Int[Tensor, " B"], Blocks]] | None:
        """Rotated factors of all training samples, or None where they do not fit."""
        chunks, held = [], 0
        for index, parts in self._rotated(self.train):
            held += sum(part.nbytes for part in parts.values())
            if held > self.memory_budget:
                return None
            chunks.append((index, parts))
        return chunks

    def _solved(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Blocks]]:
        """Rotated gradients of queries over the damped eigenvalues, as many as the budget holds."""
        chunks, held = [], 0
        row = self.problem.num_params * torch.finfo(self.problem.dtype).bits // 8
        size = max(1, self.memory_budget // row)
        for index, parts in self._rotated(data):
            for chosen in torch.arange(len(index)).split(size):
                solved = {n: _divide(self.blocks[n], p.at(chosen)) for n, p in parts.items()}
                if chunks and held + len(chosen) > size:
                    yield _together(chunks)
                    chunks, held = [], 0
                chunks.append((index[chosen], solved))
                held += len(chosen)
        yield _together(chunks)

    def _squared_norms(self, name: str, part: Factored) -> Float[Tensor, " B"]:
        """``Σ_oi D_oi (Σ_s g_so a_si)²`` with D the inverse of the damped eigenvalues."""
        block = self.blocks[name]
        if not isinstance(block, EigenInverse):
            return part.squared_norms()
        weights = (1 / block.values).to(part.inputs.dtype)
        if part.inputs.shape[1:] == (1, weights.shape[1]) and len(weights) == part.outputs.shape[2]:
            through = part.outputs[:, 0].square() @ weights
            return (through * part.inputs[:, 0].square()).sum(1)
        chunks = part.inputs.split(max(1, _ENTRIES_AT_ONCE // weights.numel()))
        start, norms = 0, []
        for chunk in chunks:
            rows = part.at(slice(start, start + len(chunk))).rows()
            norms.append(rows.square_() @ weights.flatten())
            start += len(chunk)
        return torch.cat(norms)


def _together(chunks: list[tuple[Tensor, Blocks]]) -> tuple[Tensor, Blocks]:
    index, parts = zip(*chunks, strict=True)
    return torch.cat(index), joined(parts)


def _rotate(block: FactoredInverse, part: Factored) -> Factored:
    """Turn gradients into the eigenbasis of a layer; whiten those of other blocks."""
    if not isinstance(block, EigenInverse):
        return Factored.of_rows(block.whiten(part.rows()))
    outer, inner_vectors, _ = block.whitening(part.inputs.dtype)
    sizes = (len(inner_vectors), len(outer))
    if (part.inputs.shape[2], part.outputs.shape[2]) == sizes and bool((block.signs == 1).all()):
        return Factored(part.inputs @ inner_vectors, part.outputs @ outer).smallest()
    grid = part.rows().unflatten(1, block.signs.shape) * block.signs.to(part.inputs.dtype)
    return Factored.of_rows((outer.mT @ grid @ inner_vectors).flatten(1))


def _divide(block: FactoredInverse, part: Factored) -> Factored:
    """Multiply rotated gradients out, and divide them by the damped eigenvalues."""
    rows = part.rows()
    if isinstance(block, EigenInverse):
        rows = rows / block.values.flatten().to(rows.dtype)
    return Factored.of_rows(rows)

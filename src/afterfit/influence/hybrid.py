"""Influence beyond first order, with the variance under control: gradients averaged over halves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, singledispatch
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature import FactoredInverse, Inverse
from afterfit.influence.base import Influence, require_finite
from afterfit.influence.covariance import Scores
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE, flatten, gradients, unflatten
from afterfit.problem.problem import Problem


@runtime_checkable
class LinearMethod(Protocol):
    """A linear method: `InfluenceFunction` with any curvature and solver, or one of yours."""

    def prepare(self, problem: Problem, train: Batches) -> Inverse:
        """Inverse of the damped mean curvature."""
        ...


@final
@dataclass(frozen=True)
class HybridInfluence:
    """A linear method with its gradients averaged over networks that saw half of the data.

    ``score(q, n) = ḡ_qᵀ (H + damping)⁻¹ ḡ_n`` with ``ḡ = E[∇ℓ(θ̂ + δ)]``. The parent gives the
    inverse, and with it the draws: with random signs ``s``, ``δ = (H + damping)⁻¹ Σ_n s_n g_n / N``
    is, to first order, what training on the samples of one sign alone changes, and ``-δ`` belongs
    to the other half. Both are taken, so that only the odd part of the losses is seen: on a
    quadratic problem ``ḡ = g``, and the parent comes back exactly, whatever was drawn.

    Why gradients and not losses: by Stein's lemma ``E[Δℓ δ] = Σ E[∇ℓ]`` for ``δ ~ N(0, Σ)``, so
    ``ḡ_qᵀ Σ ḡ_n`` is the part of the covariance of two losses that is linear in the draw. Taken
    from losses at M draws it has rank M and the noise of P directions; taken from gradients it has
    full rank, and for small draws no noise at all.

    The correction to the parent is shrunk, query by query, by how far two halves of the pairs agree
    about it: a correction that is noise leaves the parent.

    Parameters
    ----------
    parent
        The linear method; its curvature, damping and solver are those of the hybrid.
    pairs
        Antithetic pairs, at least 2; each costs two gradients of every sample.
    scale
        Of the draws: 1 is the distance, to first order, to training on half of the data. The
        default is what the validation parts of three settings chose, each for the other two.
    seed
        Of the signs.
    memory_budget
        Bytes that gradients, and the features of the training samples, may take.

    References
    ----------
    Stein (1981), "Estimation of the mean of a multivariate normal distribution", Annals of
    Statistics 9(6), lemma 2. Spearman (1910) and Brown (1910) for the reliability of a whole from
    its halves.
    """

    parent: LinearMethod
    pairs: int = 8
    scale: float | int = 2.0
    seed: int = 0
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Stein (1981), Estimation of the mean of a multivariate normal distribution, Annals of "
        "Statistics 9(6), lemma 2"
    )

    def __post_init__(self) -> None:
        if self.pairs < 2:
            message = (
                f"pairs is {self.pairs}, expected at least 2: two halves of the pairs tell how far "
                "the correction can be trusted"
            )
            raise ValueError(message)
        if not 0 < self.scale < float("inf"):
            message = f"scale is {self.scale}, expected a finite number above 0"
            raise ValueError(message)

    def fit(self, problem: Problem, train: Batches) -> "SmoothedInfluence":
        """Fit the parent, and draw: one gradient of every training sample, one solve a pair."""
        inverse = self.parent.prepare(problem, train)
        generator = Generator().manual_seed(self.seed)
        signs = 2.0 * torch.randint(2, (self.pairs, train.num_samples), generator=generator) - 1
        moves = self.scale * half_moves(problem, train, inverse, signs, self.memory_budget)
        return SmoothedInfluence(problem, train, inverse, moves, self.memory_budget)


def half_moves(
    problem: Problem,
    train: Batches,
    inverse: Inverse,
    signs: Float[Tensor, "M N"],
    memory_budget: int = GIBIBYTE,
) -> Float[Tensor, "M P"]:
    """How far, to first order, parameters move when the samples of sign + are left out.

    The others then count twice, so that the sum of the weights stays N.
    """
    total = torch.zeros(len(signs), problem.num_params, dtype=problem.dtype, device=problem.device)
    for index, rows in gradients(problem, train, memory_budget):
        total += signs[:, index].to(rows) @ require_finite(rows, index, train)
    return inverse.solve(total.mT / train.num_samples).value.mT.to(problem.dtype)


@final
@dataclass(frozen=True)
class SmoothedInfluence(Influence):
    """Inner products of averaged gradients, with the parent's scores and errors beside them.

    Attributes
    ----------
    inverse
        The parent's inverse curvature.
    moves
        Half of the draws (M, P); the other half is their negative.
    """

    problem: Problem
    train: Batches
    inverse: Inverse
    moves: Float[Tensor, "M P"]
    memory_budget: int

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Influence of every training sample (columns) on the loss of every query (rows)."""
        return self.cross_influence(query).value

    def cross_influence(self, query: Batches) -> Scores:
        """Cross-influence with its standard error over pairs."""
        found = self._unshrunk(query)
        trust = found.trust()[:, None]
        return Scores(found.linear + trust * found.correction, trust * found.stderr)

    def parent_scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Scores of the linear parent."""
        return self._unshrunk(query).linear

    def reliability(self, query: Batches) -> Float[Tensor, " Q"]:
        """By what the correction of each query is multiplied: 0 is noise, 1 is no noise."""
        return self._unshrunk(query).trust()

    def self_scores(self) -> Float[Tensor, " N"]:
        """Self-influence, at least 0: between the parent's and that of the averaged gradients."""
        return self.self_influence().value

    def self_influence(self) -> Scores:
        """Self-influence with its standard error; one reliability for all samples."""
        like = next(iter(self.problem.params.values()))
        whole = like.new_empty(_NUM_PARTS, self.train.num_samples)
        sides = zip(self._stacked(self.train, _left), self._right_sides(), strict=True)
        for (index, left), (_, right) in sides:
            whole[:, index] = _compared(left, right, _rowwise).to(like)
        found = _Compared(whole)
        trust = found.pooled_trust()
        value = found.linear + trust * found.correction
        return Scores(value.clamp_min(0), trust * found.stderr)

    def _unshrunk(self, query: Batches) -> "_Compared":
        like = next(iter(self.problem.params.values()))
        whole = like.new_empty(_NUM_PARTS, query.num_samples, self.train.num_samples)
        for rows, left in self._stacked(query, _left):
            for columns, right in self._right_sides():
                block = _compared(left, right, _all_pairs).to(like)
                whole[:, rows[:, None], columns] = block
        return _Compared(whole)

    def _right_sides(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is None:
            yield from self._stacked(self.train, _right)
        else:
            yield from self._kept

    @cached_property
    def _kept(self) -> list[tuple[Tensor, Tensor]] | None:
        """Stacked sides of all training samples, or None where they do not fit the budget."""
        kept, held = [], 0
        for index, rows in self._stacked(self.train, _right):
            held += rows.nbytes
            if held > self.memory_budget:
                return None
            kept.append((index, rows))
        return kept

    def _stacked(self, data: Batches, side: "_Side") -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of gradients at the trained network, then averaged over each pair (M+1, B, R)."""
        at = flatten(self.problem.params)
        points = [at, *(at + sign * move for move in self.moves for sign in (1, -1))]
        budget = max(1, self.memory_budget // len(points))
        streams = [gradients(self._moved(point), data, budget) for point in points]
        for parts in zip(*streams, strict=True):
            index = parts[0][0]
            rows = [require_finite(part, index, data) for _, part in parts]
            pairs = [(rows[k] + rows[k + 1]) / 2 for k in range(1, len(rows), 2)]
            yield index, torch.stack([side(self.inverse, one) for one in (rows[0], *pairs)])

    def _moved(self, point: Float[Tensor, " P"]) -> Problem:
        return replace(self.problem, params=unflatten(point, self.problem.params))


@runtime_checkable
class _Side(Protocol):
    def __call__(self, inverse: Inverse, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]: ...


@singledispatch
def _left(inverse: Inverse, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
    """Gradients of queries on the way to an inner product: solved for, or half of the way."""
    return inverse.solve(rows.mT).value.mT


@singledispatch
def _right(inverse: Inverse, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:  # noqa: ARG001
    """Gradients of training samples on the way to an inner product."""
    return rows


@_left.register
@_right.register
def _(inverse: FactoredInverse, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
    return inverse.whiten(rows).to(rows.dtype)


def _all_pairs(left: Float[Tensor, "A R"], right: Float[Tensor, "B R"]) -> Float[Tensor, "A B"]:
    return left @ right.mT


def _rowwise(left: Float[Tensor, "A R"], right: Float[Tensor, "A R"]) -> Float[Tensor, " A"]:
    return (left * right).sum(1)


@runtime_checkable
class _Product(Protocol):
    def __call__(self, left: Tensor, right: Tensor) -> Tensor: ...


_NUM_PARTS = 5


def _compared(
    left: Float[Tensor, "K A R"], right: Float[Tensor, "K B R"], product: _Product
) -> Float[Tensor, "5 ..."]:
    """Stack what `_Compared` names: gradients at the network first, then those of M pairs."""
    linear = product(left[0], right[0])
    here, there = left[1:], right[1:]
    asked, own = here.mean(0), there.mean(0)
    first, second = (product(here[k::2].mean(0), there[k::2].mean(0)) - linear for k in range(2))

    # Each pair's part in the whole, to first order: what leaving it out would change.
    total, num = torch.zeros_like(linear), len(here)
    for a, b in zip(here, there, strict=True):
        total += (product(a - asked, own) + product(asked, b - own)).square()
    stderr = (total / (num * (num - 1))).sqrt()
    return torch.stack([linear, product(asked, own) - linear, first, second, stderr])


@final
@dataclass(frozen=True)
class _Compared:
    """Scores of the parent, what averaging adds to them, and how sure that is.

    The parts are the parent's scores, the correction to those of the averaged gradients, the
    correction from every other pair and from the rest, and the standard error of the correction.
    """

    parts: Float[Tensor, "5 ..."]

    @property
    def linear(self) -> Tensor:
        return self.parts[0]

    @property
    def correction(self) -> Tensor:
        return self.parts[1]

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        return self.parts[2], self.parts[3]

    @property
    def stderr(self) -> Tensor:
        return self.parts[4]

    def trust(self) -> Float[Tensor, " Q"]:
        """Reliability of the correction of each row (Spearman and Brown, about zero)."""
        return _reliability(*self.halves)

    def pooled_trust(self) -> Float[Tensor, " 1"]:
        """Reliability of the correction of all together."""
        first, second = self.halves
        return _reliability(first.flatten()[None], second.flatten()[None])


def _reliability(first: Float[Tensor, "Q N"], second: Float[Tensor, "Q N"]) -> Float[Tensor, " Q"]:
    """``Σ c₁c₂ / Σ ((c₁ + c₂)/2)²`` within [0, 1]; 0 where there is no correction."""
    total = ((first + second) / 2).square().sum(1)
    agreed = (first * second).sum(1)
    return (agreed / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp(0, 1)

"""What influence is: a number for every pair of a query and a training sample.

One sign for the whole library: ``score > 0`` means that taking the training sample away would raise
the query's loss (a proponent), ``score < 0`` that it would lower it (an opponent). Self-influence
is at least 0, and large for samples that the network had to memorize.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from afterfit.curvature.sample_gradients import Blocks, Factored, inner, joined, squared_norms
from afterfit.influence.covariance import Scores
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

Repeats = list[Blocks]
"""Features of some samples: one entry for each checkpoint, or group of projections."""


class Influence(ABC):
    """Influence of the training samples, ready to be asked."""

    @abstractmethod
    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Influence of every training sample (columns) on the loss of every query (rows)."""

    @abstractmethod
    def self_scores(self) -> Float[Tensor, " N"]:
        """Influence of every training sample on its own loss, at least 0."""


@runtime_checkable
class InfluenceMethod(Protocol):
    """A way of finding influence: settings that are bound before any data is seen."""

    @property
    def reference(self) -> str:
        """Where the method was published."""
        ...

    def fit(self, problem: Problem, train: Batches) -> Influence:
        """Do once what all scores need."""
        ...


class BlockInfluence(Influence):
    """Influence that is a sum of inner products of features, kept by blocks of parameters.

    ``score(q, n) = Σ_u Σ_b φ_ub(q) · φ_ub(n)`` over *repeats* u (checkpoints, groups of
    projections) and blocks b. Features are gradients in the factors in which layers make them
    (:class:`~afterfit.curvature.sample_gradients.Factored`): nothing of size N × P is made where
    the factors are smaller.

    Concrete classes give ``repeats`` and hold the attributes. Training features are computed once
    and kept where they fit the memory budget; otherwise they are streamed again for each block of
    queries, so that nothing larger than about two budgets and the scores is ever held.

    Attributes
    ----------
    problem, train
        The network and what it was trained on.
    memory_budget
        Bytes that features may take.
    varies_over
        What the repeats are draws of, such as ``"checkpoints"``, from which standard errors come;
        ``None`` where the score is exact by its definition, and its standard error 0.
    """

    problem: Problem
    train: Batches
    memory_budget: int
    varies_over: ClassVar[str | None] = None

    @abstractmethod
    def repeats(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        """Yield positions in the data and features of each repeat, chunk by chunk."""

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Inner product of the features of each query and each training sample."""
        result = self._empty(query.num_samples, self.train.num_samples)
        for rows, columns, products in self._pairs(query):
            result[rows[:, None], columns] = _summed(products)
        return result

    def cross_influence(self, query: Batches) -> Scores:
        """Scores (Q, N) with their standard errors: 0 if exact, NaN with fewer than 2 repeats."""
        value = self._empty(query.num_samples, self.train.num_samples)
        stderr = torch.empty_like(value)
        for rows, columns, products in self._pairs(query):
            terms = list(products)
            value[rows[:, None], columns] = _summed(iter(terms))
            stderr[rows[:, None], columns] = self._stderr(terms)
        return Scores(value, stderr)

    def self_scores(self) -> Float[Tensor, " N"]:
        """Squared norm of the features of each training sample."""
        return self.self_influence().value

    def self_influence(self) -> Scores:
        """Self-influence (N,) with its standard error: 0 if exact, NaN with fewer than 2."""
        value, stderr = self._empty(self.train.num_samples), self._empty(self.train.num_samples)
        for index, parts in self.train_features():
            terms = [squared_norms(part) for part in parts]
            value[index], stderr[index] = _summed(iter(terms)), self._stderr(terms)
        return Scores(value, stderr)

    def reliability(self) -> float:
        """How far half of the repeats agree with the others on the ranking of self-influence.

        Rank correlation, stepped up to all repeats where it is positive (Spearman and Brown 1910).
        1 if the score is exact; NaN with fewer than two repeats.
        """
        if self.varies_over is None:
            return 1.0
        halves = self._empty(2, self.train.num_samples)
        for index, parts in self.train_features():
            if len(parts) < 2:
                return float("nan")
            for half, scores in enumerate(halves):
                scores[index] = _summed(squared_norms(part) for part in parts[half::2])
        correlation = float(spearmanr(*halves.cpu().numpy())[0])  # pyright: ignore[reportArgumentType]
        return 2 * correlation / (1 + correlation) if correlation > 0 else correlation

    def train_features(self) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        """Features of the training samples, from memory if they are there, chunk by chunk."""
        kept = self.__dict__.get("_kept")
        if kept is None:
            yield from self._finite_repeats(self.train)
        else:
            yield kept

    def _pairs(self, query: Batches) -> Iterator[tuple[Tensor, Tensor, Iterator[Tensor]]]:
        """Positions of queries and training samples, and their products in each repeat."""
        for rows, asked in self.query_features(query):
            for columns, own in self.kept_features():
                yield rows, columns, (inner(q, n) for q, n in zip(asked, own, strict=True))

    def _stderr(self, terms: Sequence[Tensor]) -> Tensor:
        """Error of the sum of terms that are draws of one law."""
        if self.varies_over is None:
            return torch.zeros_like(terms[0])
        if len(terms) < 2:
            return torch.full_like(terms[0], torch.nan)
        return torch.stack(list(terms)).std(0) * len(terms) ** 0.5

    def _empty(self, *shape: int) -> Tensor:
        return next(iter(self.problem.params.values())).new_empty(shape)

    @cached_property
    def _kept(self) -> tuple[Tensor, Repeats] | None:
        """Positions and features of all training samples, or None where they do not fit."""
        chunks: list[tuple[Tensor, Repeats]] = []
        for index, parts in self._finite_repeats(self.train):
            small = [_smallest(part) for part in parts]
            if self.train.num_samples * _nbytes(small) > self.memory_budget * len(index):
                return None
            chunks.append((index, small))
        return _joined(chunks)

    def kept_features(self) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        """Features of the training samples, which stay in memory where they fit the budget."""
        if self._kept is None:
            yield from self._finite_repeats(self.train)
        else:
            yield self._kept

    def query_features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        """Features of any samples, in chunks as large as the memory budget lets them be."""
        chunks: list[tuple[Tensor, Repeats]] = []
        held = 0
        for index, parts in self._finite_repeats(data):
            small = [_smallest(part) for part in parts]
            if chunks and held + _nbytes(small) > self.memory_budget:
                yield _joined(chunks)
                chunks, held = [], 0
            chunks.append((index, small))
            held += _nbytes(small)
        yield _joined(chunks)

    def _finite_repeats(self, data: Batches) -> Iterator[tuple[Tensor, Repeats]]:
        for index, parts in self.repeats(data):
            for part in parts:
                for block in part.values():
                    require_finite(block.inputs.flatten(1), index, data)
                    require_finite(block.outputs.flatten(1), index, data)
            yield index, parts


class FeatureInfluence(BlockInfluence):
    """Influence that is an inner product: ``score(q, n) = φ(q) · φ(n)`` with features φ in R^R.

    Concrete classes give ``features`` and hold the three attributes of :class:`BlockInfluence`.
    """

    @abstractmethod
    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        """Yield positions in the data and features, chunk by chunk, each sample once."""

    def repeats(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        """Features of one block and one repeat."""
        for index, rows in self.features(data):
            yield index, [{"features": Factored.of_rows(rows)}]


def _summed(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _smallest(blocks: Blocks) -> Blocks:
    return {name: part.smallest() for name, part in blocks.items()}


def _nbytes(parts: Repeats) -> int:
    return sum(block.nbytes for part in parts for block in part.values())


def _joined(chunks: list[tuple[Tensor, Repeats]]) -> tuple[Tensor, Repeats]:
    index, parts = zip(*chunks, strict=True)
    return torch.cat(index), [joined(repeat) for repeat in zip(*parts, strict=True)]


def require_finite(
    rows: Float[Tensor, "B R"], index: Int[Tensor, " B"], data: Batches
) -> Float[Tensor, "B R"]:
    """Return gradients or features as they are, or name the first sample where they are not finite.

    Raises
    ------
    ValueError
        If a row holds NaN or infinite values.
    """
    bad = ~torch.isfinite(rows).all(1).cpu()
    if bool(bad.any()):
        first = data.ids[int(index[bad][0])]
        message = (
            f"the gradient of sample {first} holds NaN or infinite values ({int(bad.sum())} such "
            "in its chunk), expected finite gradients; look at that sample's input and target, and "
            "for square roots, logarithms or divisions by zero in the network"
        )
        raise ValueError(message)
    return rows

"""What influence is: a number for every pair of a query and a training sample.

One sign for the whole library: ``score > 0`` means that taking the training sample away would raise
the query's loss (a proponent), ``score < 0`` that it would lower it (an opponent). Self-influence
is at least 0, and large for samples that the network had to memorize.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


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


class FeatureInfluence(Influence):
    """Influence that is an inner product: ``score(q, n) = φ(q) · φ(n)`` with features φ in R^R.

    Concrete classes give ``features`` and hold the three attributes. Training features are computed
    once and kept where they fit the memory budget; otherwise they are streamed again for each block
    of queries, so that nothing larger than about two budgets and the scores is ever held.

    Attributes
    ----------
    problem, train
        The network and what it was trained on.
    memory_budget
        Bytes that features may take.
    """

    problem: Problem
    train: Batches
    memory_budget: int

    @abstractmethod
    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        """Yield positions in the data and features, chunk by chunk, each sample once."""

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Inner product of the features of each query and each training sample."""
        like = next(iter(self.problem.params.values()))
        result = like.new_empty(query.num_samples, self.train.num_samples)
        for rows, query_features in self._blocks(query):
            for columns, train_features in self._train_chunks():
                result[rows[:, None], columns] = query_features @ train_features.mT
        return result

    def self_scores(self) -> Float[Tensor, " N"]:
        """Squared norm of the features of each training sample."""
        result = next(iter(self.problem.params.values())).new_empty(self.train.num_samples)
        for index, rows in self._train_chunks():
            result[index] = rows.square().sum(1)
        return result

    def _train_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is None:
            yield from self._finite_features(self.train)
        else:
            yield self._kept

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor] | None:
        """Positions and features of all training samples, or None where they do not fit."""
        chunks = []
        for index, rows in self._finite_features(self.train):
            row_bytes = rows.shape[1] * rows.element_size()
            if self.train.num_samples * row_bytes > self.memory_budget:
                return None
            chunks.append((index, rows))
        return _joined(chunks)

    def _blocks(self, data: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Join chunks of features into blocks as large as the memory budget lets them be."""
        chunks: list[tuple[Tensor, Tensor]] = []
        held = 0
        for index, rows in self._finite_features(data):
            if chunks and held + rows.nbytes > self.memory_budget:
                yield _joined(chunks)
                chunks, held = [], 0
            chunks.append((index, rows))
            held += rows.nbytes
        yield _joined(chunks)

    def _finite_features(self, data: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for index, rows in self.features(data):
            require_finite(rows, index, data)
            yield index, rows


def _joined(chunks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    index, rows = zip(*chunks, strict=True)
    return torch.cat(index), torch.cat(rows)


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

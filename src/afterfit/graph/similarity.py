"""Rules that look at features alone: remove edges between nodes that are not alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.graph.rules import Round
from afterfit.problem.persample import GIBIBYTE

Similarity = Callable[[Float[Tensor, "V F"], Int[Tensor, "E 2"]], Float[Tensor, " E"]]
"""How alike the features of two nodes are, for each pair: `jaccard`, `cosine`, or your own."""

_ROWS_IN_FLIGHT, _BUDGET = 6, GIBIBYTE // 4


def jaccard(x: Float[Tensor, "V F"], pairs: Int[Tensor, "E 2"]) -> Float[Tensor, " E"]:
    """Features that two nodes share over features that either has; 0 where neither has any.

    A node has the features that are not 0: words of a document. Between 0 and 1.

    Raises
    ------
    ValueError
        If no feature is ever 0, so that all nodes are the same, or no feature is that of two nodes,
        so that all are different.

    References
    ----------
    Wu, Wang, Tyshetskiy, Docherty, Lu, Zhu (2019), "Adversarial examples for graph data: Deep
    insights into attack and defense", IJCAI, arXiv:1903.01610.
    """
    if bool((x != 0).all()):
        message = (
            "no feature is 0, expected features that a node has or has not: every pair would have "
            "a Jaccard similarity of 1; use cosine"
        )
        raise ValueError(message)
    _require_shared(x)

    def alike(one: Tensor, other: Tensor) -> Tensor:
        one, other = one != 0, other != 0
        return (one & other).sum(1).double() / (one | other).sum(1).clamp_min(1)

    return _by_pair(alike, x, pairs)


def cosine(x: Float[Tensor, "V F"], pairs: Int[Tensor, "E 2"]) -> Float[Tensor, " E"]:
    """Cosine of the angle between the features of two nodes; 0 where one has none.

    Raises
    ------
    ValueError
        If no feature is that of two nodes, so that all are different.
    """
    _require_shared(x)

    def alike(one: Tensor, other: Tensor) -> Tensor:
        one, other = one.double(), other.double()
        sizes = one.norm(dim=1) * other.norm(dim=1)
        return torch.where(sizes > 0, (one * other).sum(1) / sizes, 0.0)

    return _by_pair(alike, x, pairs)


def _require_shared(x: Float[Tensor, "V F"]) -> None:
    if len(x) > 1 and not bool(((x != 0).sum(0) > 1).any()):
        message = (
            "no feature is that of two nodes (they number the nodes, as identity features do), "
            "expected features that some nodes share: every pair would have similarity 0, and "
            "every edge would go; use a rule of influence, or features that say what nodes are"
        )
        raise ValueError(message)


def _by_pair(
    alike: Callable[[Tensor, Tensor], Tensor], x: Float[Tensor, "V F"], pairs: Int[Tensor, "E 2"]
) -> Float[Tensor, " E"]:
    size = max(1, _BUDGET // (_ROWS_IN_FLIGHT * 8 * max(1, x.shape[1])))
    parts = [alike(x[part[:, 0]], x[part[:, 1]]) for part in pairs.split(size)]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64)


@final
@dataclass(frozen=True)
class Dissimilar:
    """Remove every edge whose similarity is below a threshold, all in one round.

    Influence is not asked, and nothing is foretold: `rectify` goes on while the rule finds edges.

    Parameters
    ----------
    threshold
        Edges below it go; 0.01 is usual with `jaccard`.
    similarity
        `jaccard`, `cosine`, or a function of (features, pairs).

    References
    ----------
    Wu, Wang, Tyshetskiy, Docherty, Lu, Zhu (2019), "Adversarial examples for graph data: Deep
    insights into attack and defense", IJCAI, arXiv:1903.01610.
    """

    threshold: float | int = 0.01
    similarity: Similarity = jaccard

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        order, alike = _least_alike(now, self.similarity)
        return order[alike[order] < self.threshold]


@final
@dataclass(frozen=True)
class LeastSimilar:
    """Remove a share of all edges each round, those of lowest similarity, at least one.

    Of edges that are equally alike those that come first in the list go first. Influence is not
    asked, and nothing is foretold.

    Parameters
    ----------
    share
        Of the edges that are left.
    similarity
        `jaccard`, `cosine`, or a function of (features, pairs).
    """

    share: float | int = 0.01
    similarity: Similarity = jaccard

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        order, _ = _least_alike(now, self.similarity)
        return order[: math.ceil(self.share * len(order))]


def _least_alike(
    now: Round, similarity: Similarity
) -> tuple[Int[Tensor, " E"], Float[Tensor, " E"]]:
    """Positions of all edges, the least alike first, and similarities in the order of the list."""
    alike = similarity(now.problem.x, now.problem.edges.pairs)
    return alike.argsort(stable=True), alike

"""Influence relative to how much a training sample moves anything at all."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class RelatIF:
    """Influence divided by the root of self-influence: ``score(q, n) / √score(n, n)`` (ℓ-RelatIF).

    Outliers have influence on everything; dividing by their own leaves the samples that explain
    this query. Around any linear method: the influence function, EK-FAC, TracIn, dot products.
    Self-influence becomes its root.

    Parameters
    ----------
    method
        The influence that is divided.

    References
    ----------
    Barshan, Brunet, Dziugaite (2020), "RelatIF: identifying explanatory training examples via
    relative influence", AISTATS, arXiv:2003.11630, eq. (7) for the ℓ-relative influence.
    """

    method: InfluenceMethod

    @property
    def reference(self) -> str:
        """Where the method was published."""
        return (
            "Barshan, Brunet, Dziugaite (2020), RelatIF: identifying explanatory training examples "
            "via relative influence, AISTATS, arXiv:2003.11630"
        )

    def fit(self, problem: Problem, train: Batches) -> "RelativeInfluence":
        """Fit the method, and ask for its self-influence.

        Raises
        ------
        ValueError
            If the self-influence of a sample is zero or not finite: nothing can be divided by it.
        """
        inner = self.method.fit(problem, train)
        own = inner.self_scores()
        bad = ~((own > 0) & torch.isfinite(own)).cpu()
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            message = (
                f"the self-influence of sample {train.ids[first]} is {float(own[first])} "
                f"({int(bad.sum())} such), expected positive numbers to divide by: its gradient "
                "vanishes in this precision, or the curvature is indefinite; use float64, more "
                "damping, or the method itself"
            )
            raise ValueError(message)
        return RelativeInfluence(inner, own.sqrt())


@final
@dataclass(frozen=True)
class RelativeInfluence(Influence):
    """Scores of another influence, divided column by column.

    Attributes
    ----------
    inner
        The influence itself.
    lengths
        What its columns are divided by, (N,).
    """

    inner: Influence
    lengths: Float[Tensor, " N"]

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Influence of every training sample (columns) on the loss of every query (rows)."""
        return self.inner.scores(query) / self.lengths

    def self_scores(self) -> Float[Tensor, " N"]:
        """Root of the self-influence of each training sample."""
        return self.lengths

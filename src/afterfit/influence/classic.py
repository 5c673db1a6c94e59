"""The influence function itself: gradients through an inverse curvature."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import singledispatch
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature import (
    Curvature,
    Damping,
    Direct,
    FactoredInverse,
    Inverse,
    Solver,
    ggn,
    inverse,
)
from afterfit.influence.base import FeatureInfluence, Influence, require_finite
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE, gradients
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class InfluenceFunction:
    """Influence function: ``score(q, n) = g_qᵀ (H + damping I)⁻¹ g_n``.

    ``H`` is the *mean* curvature of the training samples and the score leaves out the factor 1/N,
    as the literature writes it; ``score / N`` is in nats for one removed sample: the predicted rise
    of the query's loss when the network is trained again without it. A weight decay of
    ``(γ/2) ‖θ‖²`` on the mean loss belongs to the curvature and is ``damping=γ``.

    Where the inverse has a half power (all solvers but ``CG`` and ``LiSSA``) each sample has
    features, kept within the memory budget, and a new query costs its gradient and one product.

    Parameters
    ----------
    damping
        Added to the eigenvalues of the mean curvature; at least 0. A rule such as
        ``curvature.relative(0.1)`` finds one for each block of a block-diagonal curvature.
    curvature
        ``ggn`` (default), ``hessian``, ``fisher(...)``, ``empirical_fisher``, ``kfac``, ``ekfac``,
        ``diagonal``, ``low_rank(k)``, or a function of yours that gives the curvature of the *sum*
        of all losses.
    solver
        ``Direct()`` (default) factors by structure, dense matrices by their P entries or their N·R
        rows, whichever are fewer; ``CG()``, ``LiSSA()``, ``Ritz()``, ``Primal()``, ``Dual()``.
    memory_budget
        Bytes that features, or gradients and their solutions, may take.

    References
    ----------
    Koh, Liang (2017), "Understanding black-box predictions via influence functions", ICML,
    arXiv:1703.04730, eq. (2), whose score has the opposite sign: theirs is for adding weight.
    """

    damping: Damping
    curvature: Curvature = ggn
    solver: Solver = field(default_factory=Direct)
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Koh, Liang (2017), Understanding black-box predictions via influence functions, ICML, "
        "arXiv:1703.04730"
    )

    def __post_init__(self) -> None:
        if not callable(self.damping) and not 0 <= self.damping < float("inf"):
            message = f"damping is {self.damping}, expected a finite number of at least 0"
            raise ValueError(message)

    def fit(self, problem: Problem, train: Batches) -> Influence:
        """Compute the curvature and prepare its inverse.

        Raises
        ------
        ValueError
            If the damped curvature is not positive definite, or is too large to be dense.
        """
        return influence_by(self.prepare(problem, train), problem, train, self.memory_budget)

    def prepare(self, problem: Problem, train: Batches) -> Inverse:
        """Compute the curvature and give its inverse alone."""
        operator = self.curvature(problem, train)
        return inverse(operator, self.damping, self.solver, train.num_samples)


@singledispatch
def influence_by(
    prepared: Inverse, problem: Problem, train: Batches, memory_budget: int = GIBIBYTE
) -> Influence:
    """Influence ``g_qᵀ prepared g_n`` through an inverse curvature, by features where it has any.

    For those who bring an inverse of their own.
    """
    return SolvedInfluence(problem, train, memory_budget, prepared)


@influence_by.register
def _(
    prepared: FactoredInverse, problem: Problem, train: Batches, memory_budget: int = GIBIBYTE
) -> Influence:
    return WhitenedInfluence(problem, train, memory_budget, prepared)


@final
@dataclass(frozen=True)
class WhitenedInfluence(FeatureInfluence):
    """Gradients times the half power of an inverse curvature.

    Attributes
    ----------
    inverse
        What they are multiplied with; its ``way`` says how it was made.
    """

    problem: Problem
    train: Batches
    memory_budget: int
    inverse: FactoredInverse

    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        for index, rows in gradients(self.problem, data, self.memory_budget):
            yield index, self.inverse.whiten(require_finite(rows, index, data))


@final
@dataclass(frozen=True)
class SolvedInfluence(Influence):
    """Influence by solving for the gradients of queries, some at a time.

    Attributes
    ----------
    inverse
        What solves; it warns of solutions that have not converged.
    """

    problem: Problem
    train: Batches
    memory_budget: int
    inverse: Inverse

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Solve for each query, then take inner products with all training gradients."""
        like = next(iter(self.problem.params.values()))
        result = like.new_empty(query.num_samples, self.train.num_samples)
        for rows, asked in self._gradients(query):
            solved = self.inverse.solve(asked.mT).value
            for columns, own in self._gradients(self.train):
                result[rows[:, None], columns] = (own @ solved).mT
        return result

    def self_scores(self) -> Float[Tensor, " N"]:
        """Solve for every training sample: N solves."""
        result = next(iter(self.problem.params.values())).new_empty(self.train.num_samples)
        for index, own in self._gradients(self.train):
            result[index] = (own * self.inverse.solve(own.mT).value.mT).sum(1)
        return result

    def _gradients(self, data: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for index, rows in gradients(self.problem, data, self.memory_budget):
            yield index, require_finite(rows, index, data)

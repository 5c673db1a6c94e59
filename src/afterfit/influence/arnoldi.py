"""Influence through the strongest directions of curvature, found by products alone."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator

from afterfit.curvature import Curvature, Ritz, hessian
from afterfit.curvature.inverse import scaled
from afterfit.influence.classic import WhitenedInfluence
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class ArnoldiInfluence:
    """``score(q, n) = Σ_k (g_q · v_k)(g_n · v_k) / (λ_k + damping)`` over Ritz pairs (λ, v).

    The influence function restricted to a few directions of the *mean* curvature of one fixed draw
    of training samples: ``InfluenceFunction`` with ``curvature=hessian`` and ``solver=Ritz(...)``,
    which says what is kept and dropped. The sum is not divided by the number of pairs; ``score /
    N`` is in nats.

    Parameters
    ----------
    num_iterations
        Products, and basis vectors of length P that are held.
    num_pairs
        Ritz pairs to take, at most as many as iterations.
    damping
        Added to each Ritz value.
    curvature_samples
        How many training samples, drawn once, make up the curvature.
    seed
        Of that draw and of the start vector.
    curvature
        ``hessian``, ``ggn`` or another.

    References
    ----------
    Schioppa, Zablotskaia, Vilar, Sokolov (2022), "Scaling up influence functions", AAAI,
    arXiv:2112.03052, algorithm 1.
    """

    num_iterations: int = 50
    num_pairs: int = 20
    damping: float = 0.0
    curvature_samples: int = 2048
    seed: int = 0
    memory_budget: int = GIBIBYTE
    curvature: Curvature = hessian
    reference: ClassVar[str] = (
        "Schioppa, Zablotskaia, Vilar, Sokolov (2022), Scaling up influence functions, AAAI, "
        "arXiv:2112.03052"
    )

    def __post_init__(self) -> None:
        self._solver()
        if not 0 <= self.damping < float("inf"):
            message = f"damping is {self.damping}, expected a finite number of at least 0"
            raise ValueError(message)
        if self.curvature_samples < 1:
            message = f"curvature_samples is {self.curvature_samples}, expected at least 1"
            raise ValueError(message)

    def _solver(self) -> Ritz:
        return Ritz(self.num_pairs, self.num_iterations, self.seed)

    def fit(self, problem: Problem, train: Batches) -> WhitenedInfluence:
        """Find the Ritz pairs.

        Raises
        ------
        ValueError
            If no Ritz value is positive.
        """
        order = torch.randperm(train.num_samples, generator=Generator().manual_seed(self.seed))
        chosen = train.subset(order[: self.curvature_samples].sort().values)
        operator = self.curvature(problem, chosen)
        prepared = self._solver().prepare(scaled(operator, 1 / chosen.num_samples), self.damping)
        return WhitenedInfluence(problem, train, self.memory_budget, prepared)

"""TRAK: a kernel regression on projected gradients of the margin, averaged over checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.influence.base import Influence, require_finite
from afterfit.influence.covariance import Scores
from afterfit.influence.tracin import trajectory
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Likelihood, PerSample
from afterfit.problem.persample import GIBIBYTE, gradients, losses
from afterfit.problem.problem import Problem
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class TRAK:
    """Tracing with the randomly projected after kernel.

    With ``φ_m(z) = P_m ∇f(z; θ_m)`` the projected gradient of the margin
    ``f = log p(y) - log(1 - p(y))`` at checkpoint m and ``Φ_m`` those of the training set::

        score(q, n) = [1/M Σ_m φ_m(q)ᵀ (Φ_mᵀ Φ_m + ridge I)⁻¹ φ_m(n)] · [1/M Σ_m (1 - p_m(y_n))]

    The score is in margins of the query per removed sample, positive for proponents. Checkpoints
    should come from independent trainings; the standard error is over them, and NaN for one.
    Each has directions of its own, from ``seed`` on. Kept are N × d numbers a checkpoint.

    Parameters
    ----------
    num_projections
        The number d of directions; at most N without a ridge.
    checkpoints
        State dicts; without them, the trained network alone.
    ridge
        Added to the matrix before it is inverted; the paper has none.
    memory_budget
        Bytes that the directions of one checkpoint may take.

    References
    ----------
    Park, Georgiev, Ilyas, Leclerc, Madry (2023), "TRAK: attributing model behavior at scale",
    ICML, arXiv:2303.14186, eqs. (13), (16) and (17).
    """

    num_projections: int = 512
    checkpoints: Sequence[Params] | None = None
    ridge: float | int = 0.0
    seed: int = 0
    memory_budget: int = 2 * GIBIBYTE
    reference: ClassVar[str] = (
        "Park, Georgiev, Ilyas, Leclerc, Madry (2023), TRAK: attributing model behavior at scale, "
        "ICML, arXiv:2303.14186"
    )

    def fit(self, problem: Problem, train: Batches) -> "TRAKInfluence":
        """Project the gradients of all training samples at all checkpoints.

        Raises
        ------
        ValueError
            If there are no projections or checkpoints, the directions do not fit the memory budget,
            or the matrix of projected gradients has no inverse.
        TypeError
            If the likelihood gives no probabilities to labels.
        """
        _require_room(self, problem, train)
        found = [problem.params] if self.checkpoints is None else self.checkpoints
        points = [point for point, _ in trajectory(problem, found, None)]
        models = [_Model.of(point, self, self.seed + m) for m, point in enumerate(points)]
        rows = [model.projected(train) for model in models]
        solved = tuple(_solved(part, self.ridge) for part in rows)
        own = tuple((s * part).sum(1) for s, part in zip(solved, rows, strict=True))
        doubts = torch.stack([-torch.expm1(-losses(point, train)) for point in points]).mean(0)
        return TRAKInfluence(problem, train, tuple(models), solved, own, doubts)


@final
@dataclass(frozen=True)
class TRAKInfluence(Influence):
    """Projected training samples, ready to be asked.

    Attributes
    ----------
    solved
        ``(ΦᵀΦ)⁻¹ φ(n)`` at each checkpoint, (N, d).
    own
        ``φ(n)ᵀ (ΦᵀΦ)⁻¹ φ(n)`` at each checkpoint, (N,).
    doubts
        ``1 - p(y_n)``, averaged over checkpoints, (N,).
    """

    problem: Problem
    train: Batches
    models: "tuple[_Model, ...]"
    solved: tuple[Float[Tensor, "N R"], ...]
    own: tuple[Float[Tensor, " N"], ...]
    doubts: Float[Tensor, " N"]

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Rise of the query's loss, by its margin, where a training sample is taken away."""
        return self.cross_influence(query).value

    def cross_influence(self, query: Batches) -> Scores:
        """Scores (Q, N) with their standard errors over checkpoints."""
        pairs = zip(self.models, self.solved, strict=True)
        return self._averaged([model.projected(query) @ solved.mT for model, solved in pairs])

    def self_scores(self) -> Float[Tensor, " N"]:
        """Influence of each training sample on its own margin."""
        return self.self_influence().value

    def self_influence(self) -> Scores:
        """Self-influence (N,) with its standard error over checkpoints."""
        return self._averaged(list(self.own))

    def _averaged(self, terms: list[Tensor]) -> Scores:
        draws = torch.stack(terms) * self.doubts
        stderr = draws.std(0, correction=min(1, len(draws) - 1)) / len(draws) ** 0.5
        unknown = torch.full_like(stderr, torch.nan)
        return Scores(draws.mean(0), stderr if len(draws) > 1 else unknown)


@final
@dataclass(frozen=True)
class _Model:
    """One checkpoint: the problem whose loss is the negative margin, and its directions."""

    problem: Problem
    directions: Float[Tensor, "R P"]

    @classmethod
    def of(cls, point: Problem, method: TRAK, seed: int) -> "_Model":
        shape = method.num_projections, point.num_params
        generator = Generator().manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, dtype=point.dtype).to(point.device)
        return cls(replace(point, likelihood=_margin(point.likelihood)), drawn)

    def projected(self, data: Batches) -> Float[Tensor, "N R"]:
        chunks = []
        for index, rows in gradients(self.problem, data):
            chunks.append(require_finite(rows, index, data) @ self.directions.mT)
        return torch.cat(chunks) / len(self.directions) ** 0.5


def _margin(likelihood: Likelihood) -> PerSample:
    """Stand-in for a loss: the log-odds of the given label, whose gradient TRAK projects."""

    def function(found: Tensor, y: Tensor) -> Tensor:
        logits, given, _ = likelihood.outcomes(found, y)
        chosen = given.argmax(-1, keepdim=True)
        others = logits.scatter(-1, chosen, -torch.inf).logsumexp(-1)
        return (logits.gather(-1, chosen)[..., 0] - others).sum(-1)

    return PerSample(function)


def _solved(rows: Float[Tensor, "N R"], ridge: float | int) -> Float[Tensor, "N R"]:
    exact = rows.double()
    gram = exact.mT @ exact
    gram.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(gram)
    tiny = factor.diagonal().min() ** 2 <= 1e-14 * gram.diagonal().max()
    if bool(failed) or bool(tiny):
        message = (
            f"the projected gradients of {len(rows)} samples in {rows.shape[1]} directions give a "
            "matrix without an inverse: gradients are zero, alike, or fewer than directions; lower "
            f"num_projections, or raise ridge (the mean of the diagonal is "
            f"{float(gram.diagonal().mean()):.2g})"
        )
        raise ValueError(message)
    return torch.cholesky_solve(exact.mT, factor).mT.to(rows)


def _require_room(method: TRAK, problem: Problem, train: Batches) -> None:
    num = method.num_projections
    if num < 1 or (num > train.num_samples and method.ridge <= 0):
        message = (
            f"num_projections is {num}, expected between 1 and the {train.num_samples} training "
            "samples; more need a ridge above 0"
        )
        raise ValueError(message)
    taken = num * problem.num_params * torch.finfo(problem.dtype).bits // 8
    if taken > method.memory_budget:
        message = (
            f"{num} directions in {problem.num_params:,} parameters take {taken / 1e9:.1f} GB, "
            f"expected at most {method.memory_budget / 1e9:.1f}; lower num_projections, raise "
            "memory_budget, or take a part of the network with restrict(problem, 'head.*')"
        )
        raise ValueError(message)

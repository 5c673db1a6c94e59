"""Find the labels that are probably wrong, and do something about them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from afterfit.evaluate.threshold import Cut, otsu_cut
from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.influence.covariance import Scores
from afterfit.influence.gex import GEX, Say, quiet
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Categorical, PerSample
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem
from afterfit.workflows.suggest import mean_prediction, soft_targets, suggested

ScoreFunction = Callable[[Problem, Batches], Float[Tensor, " N"]]
Cutter = Callable[[Float[Tensor, " N"]], Cut]


@final
@dataclass(frozen=True)
class LabelAnalysis:
    """What was found about the labels of a training set.

    Attributes
    ----------
    issues
        One row a sample, the most suspicious first: ``index`` (position in the training data),
        ``id``, ``given`` and ``suggested`` label, ``confidence`` of the suggestion, ``score``
        (self-influence) and its ``stderr``, ``rank`` from 1, ``is_issue``, and ``significant``:
        whether the score is more than two standard errors above zero.
    scores
        Scores and errors in the order of the data.
    cut
        The threshold, and the estimated share of wrong labels.
    influence
        What the scores come from, to be asked further; None where a plain function was scored.
    """

    issues: pd.DataFrame
    scores: Scores
    cut: Cut
    influence: Influence | None

    @property
    def kept(self) -> Int[Tensor, " K"]:
        """Positions of the samples that were not flagged."""
        return (~self.cut.is_issue).nonzero()[:, 0]


def find_label_issues(
    problem: Problem,
    train: Batches,
    method: InfluenceMethod | ScoreFunction | None = None,
    *,
    fit: Any = None,
    cut: Cutter = otsu_cut,
    folder: Path | str | None = None,
    say: Say = quiet,
) -> pd.DataFrame:
    """Rank the training labels by how probably they are wrong.

    The table of :func:`analyze_labels`, which takes the same arguments.

    Returns
    -------
    pandas.DataFrame
        Columns index, id, given, suggested, confidence, score, stderr, rank, is_issue,
        significant; the most suspicious first.
    """
    return analyze_labels(problem, train, method, fit=fit, cut=cut, folder=folder, say=say).issues


def analyze_labels(
    problem: Problem,
    train: Batches,
    method: InfluenceMethod | ScoreFunction | None = None,
    *,
    fit: Any = None,
    cut: Cutter = otsu_cut,
    folder: Path | str | None = None,
    say: Say = quiet,
) -> LabelAnalysis:
    """Score every training label, cut the scores, and suggest better labels.

    Parameters
    ----------
    method
        :class:`~afterfit.influence.GEX` by default; any influence method, or a function of
        (problem, data) that gives one score a sample, such as the baselines.
    fit
        What the network trained on, where that was augmented: a loader or a ``TrainingStream``.
        Only for GEX, whose members train on it.
    cut
        Where to cut: :func:`~afterfit.evaluate.otsu_cut` on the square root of the scores by
        default; ``partial(budget_cut, budget=100)``; ``partial(expected_false_discovery_cut,
        rate=0.1)``.
    folder
        Where GEX keeps its members, so that a run that was killed goes on.
    say
        Told of forecast and progress; :func:`~afterfit.influence.to_stderr` prints them.

    Raises
    ------
    ValueError
        If the data does not fit the network, or ``fit`` or ``folder`` is given to a method that
        does not use it.
    """
    chosen = GEX() if method is None else method
    scores, influence = scores_of(chosen, problem, train, fit, folder, say)
    found = cut(scores.value.cpu())
    prediction = _prediction(influence, problem, train)
    label, confidence = suggested(problem.likelihood, prediction, train.targets(), found.is_issue)
    return LabelAnalysis(_table(train, scores, found, label, confidence), scores, found, influence)


def _table(
    train: Batches, scores: Scores, cut: Cut, suggestion: Tensor, confidence: Tensor
) -> pd.DataFrame:
    value, stderr = scores.value.cpu(), scores.stderr.cpu()
    rank = torch.empty(len(value), dtype=torch.long)
    rank[value.argsort(descending=True, stable=True)] = torch.arange(1, len(value) + 1)
    columns = {
        "index": range(len(value)),
        "id": train.ids,
        "given": _plain(train.targets()),
        "suggested": _plain(suggestion),
        "confidence": confidence.numpy(),
        "score": value.numpy(),
        "stderr": stderr.numpy(),
        "rank": rank.numpy(),
        "is_issue": cut.is_issue.cpu().numpy(),
        "significant": (value > 2 * stderr).numpy(),
    }
    return pd.DataFrame(columns).sort_values("rank").reset_index(drop=True)


def _plain(targets: Tensor) -> list[Any]:
    return [tuple(row) if isinstance(row, list) else row for row in targets.cpu().tolist()]


@singledispatch
def scores_of(
    method: Any, problem: Problem, train: Batches, fit: Any, folder: Path | str | None, say: Say
) -> tuple[Scores, Influence | None]:
    """Self-influence by a method with ``fit``, or the values of a plain function."""
    if fit is not None or folder is not None:
        message = (
            f"fit and folder are for GEX, and {method} uses neither; leave them out, or bind what "
            "the method needs into the method itself"
        )
        raise ValueError(message)
    if isinstance(method, InfluenceMethod):
        say(f"{type(method).__name__} is fitted")
        influence = method.fit(problem, train)
        return _scores_with_error(influence), influence
    value = method(problem, train)
    return Scores(value, torch.full_like(value, torch.nan)), None


@scores_of.register
def _(
    method: GEX, problem: Problem, train: Batches, fit: Any, folder: Path | str | None, say: Say
) -> tuple[Scores, Influence | None]:
    influence = method.fit(problem, train, fit, folder, say)
    return influence.self_influence(), influence


@singledispatch
def _scores_with_error(influence: Influence) -> Scores:
    value = influence.self_scores()
    return Scores(value, torch.full_like(value, torch.nan))


@_scores_with_error.register
def _(influence: CovarianceInfluence) -> Scores:
    return influence.self_influence()


@singledispatch
def _prediction(influence: Any, problem: Problem, train: Batches) -> Tensor:  # noqa: ARG001
    """What the trained network itself expects, where there is no ensemble."""
    found = outputs(problem, train)
    return found if _has_no_mean(problem) else problem.likelihood.mean(found)


@_prediction.register
def _(influence: CovarianceInfluence, problem: Problem, train: Batches) -> Tensor:
    if _has_no_mean(problem):
        return outputs(problem, train)
    return mean_prediction(problem, train, influence.ensemble)


def _has_no_mean(problem: Problem) -> bool:
    return isinstance(problem.likelihood, PerSample)


def prune(data: Any, analysis: LabelAnalysis) -> Subset[Any]:
    """Take the flagged samples out of a map-style data set."""
    return Subset(data, analysis.kept.tolist())


def prune_easy(scores: Float[Tensor, " N"], fraction: float) -> Int[Tensor, " K"]:
    """Positions that stay when the share ``fraction`` with the lowest scores is taken away.

    On clean data these are the samples that the others teach anyway (Kim et al. 2023, section 5).
    """
    if not 0 <= fraction < 1:
        message = f"fraction is {fraction}, expected at least 0 and below 1"
        raise ValueError(message)
    order = scores.cpu().argsort(descending=True, stable=True)
    return order[: len(order) - int(fraction * len(order))].sort().values


def relabel(problem: Problem, train: Batches, analysis: LabelAnalysis) -> TensorDataset:
    """Give each sample the soft target of the paper's rule: pairs (position, target (C,)).

    See :func:`~afterfit.workflows.suggest.soft_targets`; inputs are not copied.

    Raises
    ------
    TypeError
        If the targets are not class labels.
    """
    if not isinstance(problem.likelihood, Categorical):
        message = (
            f"the likelihood is {type(problem.likelihood).__name__}, expected Categorical: soft "
            "targets are for class labels; use corrected_labels(analysis)"
        )
        raise TypeError(message)
    probabilities = problem.likelihood.mean(outputs(problem, train)).cpu()
    targets = soft_targets(probabilities, train.targets().cpu(), analysis.cut.is_issue.cpu())
    return TensorDataset(torch.arange(len(targets)), targets)


def corrected_labels(analysis: LabelAnalysis, min_confidence: float = 0.0) -> Tensor:
    """Labels in the order of the data, the flagged ones replaced by the suggested.

    Parameters
    ----------
    min_confidence
        Keep the given label where the ensemble is less sure of the suggestion than this.
    """
    table = analysis.issues.sort_values("index")
    unsure = table["confidence"] < min_confidence  # never so where there is no confidence
    replace = table["is_issue"] & ~unsure
    return torch.tensor(table["suggested"].where(replace, table["given"]).tolist())

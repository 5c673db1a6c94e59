"""Find the labels that are probably wrong, and do something about them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from afterfit.evaluate.threshold import Cut, probability_cut
from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.influence.covariance import Scores
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.gex import GEX, Say, quiet
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.influence.mistakes import doubts, names_classes
from afterfit.influence.simple import margin_scores
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning
from afterfit.problem.data import Batches
from afterfit.problem.folder import alone_in_folder
from afterfit.problem.likelihood import Categorical, PerSample
from afterfit.problem.persample import losses, outputs
from afterfit.problem.problem import Problem
from afterfit.workflows.suggest import mean_prediction, soft_targets, suggested

ScoreFunction = Callable[[Problem, Batches], Float[Tensor, " N"]]
Cutter = Callable[[Float[Tensor, " N"]], Cut]

RANKED_ONLY = "ranked list only"


@final
@dataclass(frozen=True)
class LabelAnalysis:
    """What was found about the labels of a training set.

    Attributes
    ----------
    issues
        One row a sample, the most suspicious first; its index is the position in the training
        data. Columns: ``id``, ``given`` and ``suggested`` label, ``confidence`` of the suggestion,
        ``p_wrong`` (probability that the label is wrong; NaN where it is not known), ``is_issue``,
        ``score`` and its ``stderr``, ``rank`` from 1, and the free scores beside it: ``loss``,
        ``margin`` (classes), ``mean_loss`` (with a training trace), ``output`` (which of several
        labels is doubted most).
    scores
        Scores and errors in the order of the data.
    cut
        Which labels are called wrong, and the threshold; None where there is no decision.
    share
        Share of wrong labels with a 90 % interval; None where it is not known.
    agreement
        Rank correlation (Spearman) of the score with each free one.
    cautions
        What a reader must know before believing the list.
    influence
        What the scores come from, to be asked further; None where a plain function was scored.
    evidence
        All that the default method found, None for others.
    """

    issues: pd.DataFrame
    scores: Scores
    cut: Cut | None
    share: Share | None
    agreement: dict[str, float]
    cautions: tuple[str, ...]
    influence: Influence | None
    evidence: LabelEvidence | None = None

    def decision(self) -> Cut:
        """Which labels are called wrong.

        Raises
        ------
        ValueError
            If nothing calibrates a decision.
        """
        if self.cut is None:
            message = (
                f"{RANKED_ONLY}: nothing says where to cut ({' '.join(self.cautions)}) Look at the "
                "ranking, and pass cut=partial(budget_cut, budget=100) or another cut to decide"
            )
            raise ValueError(message)
        return self.cut

    @property
    def kept(self) -> Int[Tensor, " K"]:
        """Positions of the samples that were not flagged.

        Raises
        ------
        ValueError
            If nothing calibrates a decision.
        """
        return (~self.decision().is_issue).nonzero()[:, 0]


def find_label_issues(
    problem: Problem,
    train: Batches,
    method: InfluenceMethod | Unlearning | ScoreFunction | None = None,
    *,
    fit: Any = None,
    trace: TrainingTrace | None = None,
    cut: Cutter | None = None,
    false_discovery_rate: float | None = None,
    folder: Path | str | None = None,
    say: Say = quiet,
) -> pd.DataFrame:
    """Rank the training labels by how probably they are wrong.

    The table of :func:`analyze_labels`, which takes the same arguments.

    Returns
    -------
    pandas.DataFrame
        Indexed by the position in the data; columns id, given, suggested, confidence, p_wrong,
        is_issue, score, stderr, rank, and the free scores; the most suspicious first.
    """
    return analyze_labels(
        problem, train, method, fit=fit, trace=trace, cut=cut,
        false_discovery_rate=false_discovery_rate, folder=folder, say=say,
    ).issues  # fmt: skip


@alone_in_folder
def analyze_labels(
    problem: Problem,
    train: Batches,
    method: InfluenceMethod | Unlearning | ScoreFunction | None = None,
    *,
    fit: Any = None,
    trace: TrainingTrace | None = None,
    cut: Cutter | None = None,
    false_discovery_rate: float | None = None,
    folder: Path | str | None = None,
    say: Say = quiet,
) -> LabelAnalysis:
    """Score every training label, say which are probably wrong, and suggest better ones.

    Parameters
    ----------
    method
        :class:`~afterfit.influence.Unlearning` by default, which alone knows probabilities; any
        influence method, or a function of (problem, data) that gives one score a sample.
    fit
        What the network trained on, where that was augmented: a loader or a ``TrainingStream``.
        For ``Unlearning`` and GEX, whose members train on it.
    trace
        What was recorded in training. Without a method its mean loss is the score, at no training;
        with one it stands beside the score.
    cut
        Where to cut in place of the probabilities: :func:`~afterfit.evaluate.otsu_cut`,
        ``partial(budget_cut, budget=100)``.
    false_discovery_rate
        Flag as many as possible while at most this share of the flagged is expected to be right.
        By default those are flagged that are more probably wrong than right.
    folder
        Where members are kept, so that a run that was killed goes on.
    say
        Told of forecast and progress; :func:`~afterfit.influence.to_stderr` prints them.

    Raises
    ------
    ValueError
        If the data does not fit the network, ``fit`` or ``folder`` is given to a method that does
        not use it, or a false discovery rate is asked of scores without probabilities.
    """
    if cut is not None and false_discovery_rate is not None:
        message = "both cut and false_discovery_rate are given, expected one of them"
        raise ValueError(message)
    chosen = method
    if method is None:
        chosen = Unlearning() if trace is None else _Recorded(trace)
    _require_sensible_rate(false_discovery_rate, chosen)
    if trace is not None:
        _Recorded(trace).require_same_data(train)
    found = found_by(chosen, problem, train, fit, folder, say)
    decision = _decision(found, cut, false_discovery_rate)
    flagged = (
        torch.zeros(train.num_samples, dtype=torch.bool) if decision is None else decision.is_issue
    )
    prediction = found.mean if found.mean is not None else _expected(problem, train)
    label, confidence = suggested(problem.likelihood, prediction, train.targets(), flagged.cpu())
    free = _free_scores(problem, train, trace)
    agreement = {name: _rank_correlation(found.scores.value, free[name]) for name in free}
    table = _table(train, found, flagged, label, confidence, free, _doubted(problem, train, found))
    return LabelAnalysis(
        issues=table,
        scores=found.scores,
        cut=decision,
        share=None if found.evidence is None else found.evidence.share,
        agreement=agreement,
        cautions=_cautions(found, decision),
        influence=found.influence,
        evidence=found.evidence,
    )


@final
@dataclass(frozen=True)
class Found:
    """Scores of a method, and what else it knows."""

    scores: Scores
    influence: Influence | None = None
    mean: Tensor | None = None
    evidence: LabelEvidence | None = None

    @property
    def p_wrong(self) -> Tensor:
        """Probabilities, NaN where the method has none."""
        if self.evidence is None:
            return torch.full_like(self.scores.value, torch.nan)
        return self.evidence.p_wrong


@final
@dataclass(frozen=True)
class _Recorded:
    """The mean loss of a training trace, as a score."""

    trace: TrainingTrace

    def __call__(self, problem: Problem, train: Batches) -> Tensor:  # noqa: ARG002
        self.require_same_data(train)
        return self.trace.mean_loss()

    def require_same_data(self, train: Batches) -> None:
        """Raise ``ValueError`` where the trace holds another number of samples."""
        if self.trace.num_samples != train.num_samples:
            message = (
                f"the trace holds {self.trace.num_samples} samples and the data "
                f"{train.num_samples}, expected as many, in the same order"
            )
            raise ValueError(message)


@singledispatch
def found_by(
    method: Any, problem: Problem, train: Batches, fit: Any, folder: Path | str | None, say: Say
) -> Found:
    """Self-influence by a method with ``fit``, or the values of a plain function."""
    if fit is not None or folder is not None:
        message = (
            f"fit and folder are for Unlearning and GEX, and {method} uses neither; leave them "
            "out, or bind what the method needs into the method itself"
        )
        raise ValueError(message)
    if isinstance(method, InfluenceMethod):
        say(f"{type(method).__name__} is fitted")
        influence = method.fit(problem, train)
        return Found(_scores_with_error(influence), influence, _mean(influence, problem, train))
    value = method(problem, train)
    return Found(Scores(value, torch.full_like(value, torch.nan)))


@found_by.register
def _(
    method: GEX, problem: Problem, train: Batches, fit: Any, folder: Path | str | None, say: Say
) -> Found:
    influence = method.fit(problem, train, fit, folder, say)
    return Found(influence.self_influence(), influence, _mean(influence, problem, train))


@found_by.register
def _(
    method: Unlearning,
    problem: Problem,
    train: Batches,
    fit: Any,
    folder: Path | str | None,
    say: Say,
) -> Found:
    evidence = method.fit(problem, train, fit, folder, say)
    return Found(evidence.scores, evidence.influence, evidence.mean, evidence)


@singledispatch
def _scores_with_error(influence: Influence) -> Scores:
    value = influence.self_scores()
    return Scores(value, torch.full_like(value, torch.nan))


@_scores_with_error.register
def _(influence: CovarianceInfluence) -> Scores:
    return influence.self_influence()


@singledispatch
def _mean(influence: Any, problem: Problem, train: Batches) -> Tensor | None:  # noqa: ARG001
    """Nothing: the trained network itself will be asked."""
    return None


@_mean.register
def _(influence: CovarianceInfluence, problem: Problem, train: Batches) -> Tensor | None:
    if isinstance(problem.likelihood, PerSample):
        return None
    return mean_prediction(problem, train, influence.ensemble)


def _expected(problem: Problem, train: Batches) -> Tensor:
    """What the trained network itself expects."""
    found = outputs(problem, train)
    return found if isinstance(problem.likelihood, PerSample) else problem.likelihood.mean(found)


def _decision(found: Found, cut: Cutter | None, rate: float | None) -> Cut | None:
    scores = found.scores.value.cpu()
    if cut is not None:
        return cut(scores)
    known = found.evidence is not None and found.evidence.share is not None
    return probability_cut(found.p_wrong, scores, rate) if known else None


def _require_sensible_rate(rate: float | None, method: Any) -> None:
    if rate is None:
        return
    if not 0 < rate < 1:
        message = (
            f"false_discovery_rate is {rate}, expected between 0 and 1: pass 0.1 to allow one "
            "right label in ten"
        )
        raise ValueError(message)
    if not isinstance(method, Unlearning):
        message = (
            "a false discovery rate needs probabilities, which only Unlearning has: leave out the "
            "method and the use of a trace as one, or pass cut=partial(budget_cut, budget=100)"
        )
        raise ValueError(message)


def _free_scores(
    problem: Problem, train: Batches, trace: TrainingTrace | None
) -> dict[str, Tensor]:
    """Scores that cost a pass over the data at most."""
    free = {"loss": losses(problem, train).cpu()}
    if names_classes(problem.likelihood):
        free["margin"] = margin_scores(problem, train).cpu()
    if trace is not None:
        free["mean_loss"] = _Recorded(trace)(problem, train).cpu()
    return free


def _doubted(problem: Problem, train: Batches, found: Found) -> Tensor | None:
    """Which output speaks most against the given labels, where there are several."""
    if found.mean is None or not names_classes(problem.likelihood):
        return None
    columns = doubts(problem.likelihood, found.mean, train.targets())
    return columns.argmax(1).cpu() if columns.shape[1] > 1 else None


def _rank_correlation(left: Tensor, right: Tensor) -> float:
    pair = left.cpu().double(), right.cpu().double()
    if len(pair[0]) < 2 or any(float(values.std()) == 0 for values in pair):
        return math.nan
    return float(spearmanr(*(values.numpy() for values in pair))[0])  # pyright: ignore[reportArgumentType]


def _cautions(found: Found, cut: Cut | None) -> tuple[str, ...]:
    """What a reader must know before believing the list."""
    cautions = [] if found.evidence is None else list(found.evidence.cautions)
    influence = found.influence
    if found.evidence is None and cut is None:
        cautions.append(
            f"These scores have no probabilities, {RANKED_ONLY}: use the default method, or pass a "
            "cut to decide."
        )
    if found.evidence is None and isinstance(influence, CovarianceInfluence):
        search, agreement = influence.search, influence.reliability()
        if search is not None and not search.found:
            cautions.append(
                "No learning rate kept the losses of the members under the cap: they may know too "
                "little for their losses to mean much."
            )
        if agreement < 0.8:
            cautions.append(
                f"Two halves of the ensemble agree only in part (reliability {agreement:.2f}): add "
                "members."
            )
    if cut is not None and math.isfinite(cut.separability) and cut.separability < 0.72:
        cautions.append(
            f"The scores do not fall into two clear groups (separability {cut.separability:.2f}; "
            "one group has about 0.65): read the list from the top, and do not trust the number of "
            "flagged samples."
        )
    return tuple(cautions)


def _table(
    train: Batches,
    found: Found,
    is_issue: Tensor,
    suggestion: Tensor,
    confidence: Tensor,
    free: dict[str, Tensor],
    doubted: Tensor | None,
) -> pd.DataFrame:
    value, stderr = found.scores.value.cpu(), found.scores.stderr.cpu()
    rank = torch.empty(len(value), dtype=torch.long)
    rank[value.argsort(descending=True, stable=True)] = torch.arange(1, len(value) + 1)
    columns = {
        "id": train.ids,
        "given": _plain(train.targets()),
        "suggested": _plain(suggestion),
        "confidence": confidence.numpy(),
        "p_wrong": found.p_wrong.cpu().numpy(),
        "is_issue": is_issue.cpu().numpy(),
        "score": value.numpy(),
        "stderr": stderr.numpy(),
        "rank": rank.numpy(),
        **{name: scores.numpy() for name, scores in free.items()},
    }
    if doubted is not None:
        columns["output"] = doubted.numpy()
    table = pd.DataFrame(columns, index=pd.RangeIndex(len(value), name="index"))
    return table.sort_values("rank")


def _plain(targets: Tensor) -> list[Any]:
    return [tuple(row) if isinstance(row, list) else row for row in targets.cpu().tolist()]


def prune(data: Any, analysis: LabelAnalysis) -> Subset[Any]:
    """Take the flagged samples out of a map-style data set.

    Raises
    ------
    ValueError
        If nothing calibrates a decision: pass ``cut`` to :func:`analyze_labels` to decide.
    """
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
    targets = soft_targets(probabilities, train.targets().cpu(), analysis.decision().is_issue.cpu())
    return TensorDataset(torch.arange(len(targets)), targets)


def corrected_labels(analysis: LabelAnalysis, min_confidence: float = 0.0) -> Tensor:
    """Labels in the order of the data, the flagged ones replaced by the suggested.

    Parameters
    ----------
    min_confidence
        Keep the given label where the ensemble is less sure of the suggestion than this.

    Raises
    ------
    ValueError
        If nothing calibrates a decision.
    """
    analysis.decision()
    table = analysis.issues.sort_index()
    unsure = table["confidence"] < min_confidence  # never so where there is no confidence
    replace = table["is_issue"] & ~unsure
    return torch.tensor(table["suggested"].where(replace, table["given"]).tolist())

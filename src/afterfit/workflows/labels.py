"""Find the labels that are probably wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from afterfit.evaluate.threshold import Cut, probability_cut
from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.influence.covariance import Scores
from afterfit.influence.evidence import LabelEvidence, Share
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning
from afterfit.problem.data import Batches
from afterfit.problem.folder import alone_in_folder
from afterfit.problem.problem import Problem
from afterfit.workflows.label_cautions import RANKED_ONLY, cautions_of
from afterfit.workflows.label_scores import (
    Found,
    ScoreFunction,
    found_by,
    free_scores,
    recorded_scores,
)
from afterfit.workflows.label_table import label_table

Cutter = Callable[[Float[Tensor, " N"]], Cut]


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

    @property
    def ensemble(self) -> CovarianceInfluence | None:
        """What the scores come from, where that holds losses over members."""
        return self.influence if isinstance(self.influence, CovarianceInfluence) else None

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
        false_discovery_rate=false_discovery_rate, folder=folder,
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
) -> LabelAnalysis:
    """Score every training label, say which are probably wrong, and suggest better ones.

    Forecast and progress are told to the logger ``afterfit``.

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
        Flag as many as possible while at most this share of the flagged is expected to be right,
        a quarter of a label counted besides, so that a few samples alone cannot claim a rate.
        By default those are flagged that are more probably wrong than right.
    folder
        Where members are kept, so that a run that was killed goes on.

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
        chosen = Unlearning() if trace is None else partial(recorded_scores, trace)
    _require_sensible_rate(false_discovery_rate, chosen)
    if trace is not None:
        recorded_scores(trace, problem, train)  # what does not fit is said before any training
    found = found_by(chosen, problem, train, fit, folder)
    decision = _decision(found, cut, false_discovery_rate)
    flagged = torch.zeros(train.num_samples, dtype=torch.bool)
    if decision is not None:
        flagged = decision.is_issue.cpu()
    free = free_scores(problem, train, trace)
    return LabelAnalysis(
        issues=label_table(problem, train, found, flagged, free),
        scores=found.scores,
        cut=decision,
        share=None if found.evidence is None else found.evidence.share,
        agreement={n: _rank_correlation(found.scores.value, free[n]) for n in free},
        cautions=cautions_of(found, decision),
        influence=found.influence,
        evidence=found.evidence,
    )


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


def _rank_correlation(left: Tensor, right: Tensor) -> float:
    pair = left.cpu().double(), right.cpu().double()
    if len(pair[0]) < 2 or any(float(values.std()) == 0 for values in pair):
        return math.nan
    return float(spearmanr(*(values.numpy() for values in pair))[0])  # pyright: ignore[reportArgumentType]

"""A run over a training set's labels: analysis, artifacts and the report, in one folder."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from afterfit.evaluate.attribution import auc, average_precision, precision_at, recall_at
from afterfit.influence.evidence import Share
from afterfit.influence.gex import GEX
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning
from afterfit.problem.data import Batches
from afterfit.problem.folder import alone_in_folder
from afterfit.report import Page, label_page, sample_html
from afterfit.workflows.label_review import PAGE as REVIEW
from afterfit.workflows.label_review import look, write_review
from afterfit.workflows.labels import Cutter, LabelAnalysis, analyze_labels
from afterfit.workflows.run import Run, inputs, write_run
from afterfit.workflows.trained import Trained

SHOWN = 60
"""Suspects whose samples are shown in the report."""

MEASURED = ("auc", "average_precision", "precision", "recall")
"""Figures that there are where the truth is known."""


@alone_in_folder
def run_labels(
    trained: Trained,
    folder: Path,
    method: Any = None,
    cut: Cutter | None = None,
    false_discovery_rate: float | None = None,
    trace: TrainingTrace | None = None,
    title: str = "Label report",
) -> Run[LabelAnalysis]:
    """Analyze, and write ``scores.csv``, figures, settings, losses and pages into the folder.

    ``report.html`` tells, and ``review.html`` shows every flagged sample to be decided on; its
    decisions go to :func:`apply_decisions`.

    Where the truth is known, the figures hold ``auc``, ``average_precision``, and ``precision`` and
    ``recall`` of the flagged samples. With the default method and with GEX, members are kept in the
    folder as they are made, and a run that was killed goes on from them.
    """
    chosen = method
    if method is None and trace is None:
        chosen = Unlearning(budget=trained.epochs)
    walks = isinstance(chosen, (GEX, Unlearning))
    problem, train, stream = trained.problem(), trained.batches(), trained.stream()
    folder.mkdir(parents=True, exist_ok=True)
    analysis = analyze_labels(
        problem, train, chosen, fit=stream if walks else None, trace=trace, cut=cut,
        false_discovery_rate=false_discovery_rate, folder=folder if walks else None,
    )  # fmt: skip
    facts, measured = inputs(problem, train), _measured(analysis, trained.wrong)
    _write_losses(folder, analysis)
    write_review(folder, title, f"{facts['network']}-{facts['data']}", trained, train, analysis)
    return write_run(
        folder,
        analysis,
        _page(title, trained, train, analysis, measured),
        figures={
            **facts,
            **measured,
            **_figures(analysis),
            "classes": list(map(str, trained.classes)),
        },
        settings={**_settings(chosen, analysis), "input": facts},
        tables={"scores": analysis.issues.reset_index()},
    )


def _measured(analysis: LabelAnalysis, wrong: Tensor | None) -> dict[str, float]:
    """How good the list is, where the truth is known."""
    if wrong is None:
        return {}
    scores = analysis.scores.value.cpu()
    found = [auc(scores, wrong), average_precision(scores, wrong)]
    num = 0 if analysis.cut is None else int(analysis.cut.is_issue.sum())
    if num:
        found += [precision_at(scores, wrong, num), recall_at(scores, wrong, num)]
    return dict(zip(MEASURED, found, strict=False))


def _write_losses(folder: Path, analysis: LabelAnalysis) -> None:
    if analysis.ensemble is None:
        return
    table, path = analysis.ensemble.table, folder / "losses.safetensors"
    temporary = path.with_suffix(".tmp")
    parts = {"trained": table.trained.contiguous(), "columns": table.columns.contiguous()}
    save_file(parts, str(temporary))
    temporary.replace(path)


def _figures(analysis: LabelAnalysis) -> dict[str, Any]:
    found: dict[str, Any] = {"cautions": list(analysis.cautions)}
    found["rank_agreement"] = analysis.agreement
    if analysis.cut is not None:
        found["issues"] = int(analysis.cut.is_issue.sum())
        found["threshold"] = analysis.cut.threshold
        found["cut"] = analysis.cut.name
        found["expected_wrong"] = analysis.cut.expected_wrong
    if analysis.share is not None:
        found["share"] = asdict(analysis.share)
    if analysis.evidence is not None:
        found["memory"] = analysis.evidence.memory
        found["told_apart"] = analysis.evidence.told_apart
    if analysis.ensemble is not None:
        found["reliability"] = _reliability(analysis, analysis.ensemble)
        if analysis.ensemble.search is not None:
            found["search"] = asdict(analysis.ensemble.search)
        if analysis.ensemble.cost is not None:
            found["forecast"] = asdict(analysis.ensemble.cost)
    return found


def _reliability(analysis: LabelAnalysis, influence: CovarianceInfluence) -> float:
    """How far two walks, or two halves of an ensemble, agree on the ranking."""
    if analysis.evidence is not None:
        return analysis.evidence.reliability
    return influence.reliability()


def _settings(method: Any, analysis: LabelAnalysis) -> dict[str, dict[str, Any]]:
    """The method as asked for, and the sampler as it was used."""
    used: dict[str, dict[str, Any]] = {}
    if analysis.ensemble is not None and analysis.evidence is None:
        sampler = analysis.ensemble.method.sampler
        used["sampler"] = {"name": type(sampler).__name__, **_fields(sampler)}
    asked = {name: value for name, value in _fields(method).items() if name not in used}
    return {"method": {"name": _name(method), **asked}, **used}


def _name(method: Any) -> str:
    if method is None:
        return "mean loss of a training trace"
    return getattr(method, "__name__", type(method).__name__)


def _fields(method: Any) -> dict[str, Any]:
    return {n: getattr(method, n) for n in getattr(type(method), "__dataclass_fields__", {})}


def _page(
    title: str,
    trained: Trained,
    train: Batches,
    analysis: LabelAnalysis,
    figures: dict[str, float],
) -> Page:
    table = analysis.issues
    flagged = 0 if analysis.cut is None else int(analysis.cut.is_issue.sum())
    shown = min(SHOWN, len(table), max(12, flagged))
    samples = [sample_html(look(trained, train, int(i))) for i in table.index[:shown]]
    truth = None if trained.wrong is None else trained.wrong.cpu().numpy().astype(bool)
    return label_page(
        title=title,
        issues=table.reset_index(),
        scores=analysis.scores.value.cpu().numpy(),
        threshold=None if analysis.cut is None else analysis.cut.threshold,
        samples=samples,
        class_names=list(trained.classes),
        facts=[*_facts(train, analysis, figures), ("To decide on them", f"{REVIEW} beside this")],
        search=_search(analysis),
        truth=truth,
        warnings=analysis.cautions,
        methods=_method(analysis),
        citation="" if analysis.ensemble is None else GEX.reference,
    )


def _method(analysis: LabelAnalysis) -> str:
    if analysis.evidence is not None:
        return _UNLEARNING if not analysis.evidence.fallback else _LOSS
    return _OTHER if analysis.ensemble is None else _GEX


_OTHER = "Score: that of the method chosen for this run, large where a label is suspicious."

_LOSS = "Score: the loss of the trained network, in nats."

_UNLEARNING = (
    "Score: training went on from the given network at rising rates, until what was memorized came "
    "loose (true losses over a geometric ensemble: Kim, Kim and Yang 2023), in two walks of "
    "different decay. The score joins the loss of a label over the hot stages with how far the "
    "prediction of the members speaks against it, in standard deviations of the data; where the "
    "network itself has not memorized, its own loss takes part.\n\nProbabilities: each walk was "
    "given some wrong labels on purpose, drawn among those that the network finds plausible. How "
    "these score, beside the data, gives the share of wrong labels and the probability of each."
)

_GEX = (
    "Score: self-influence by GEX (Kim, Kim and Yang 2023), from the true losses of each sample "
    "over networks that training reaches from the given one at a rate which unsettles what was "
    "memorized, in nats squared. Large: the network fits this label only by remembering it."
)


def _facts(
    train: Batches, analysis: LabelAnalysis, figures: dict[str, float]
) -> list[tuple[str, str]]:
    num = train.num_samples
    facts = [("Samples", f"{num:,}")]
    if analysis.cut is not None:
        flagged = int(analysis.cut.is_issue.sum())
        facts.append(("Flagged", f"{flagged:,} ({flagged / num:.1%})"))
        facts.append(("Cut", f"{analysis.cut.name}, score above {analysis.cut.threshold:.3g}"))
    if analysis.share is not None:
        facts.append(("Share of wrong labels", told_share(analysis.share)))
    influence = analysis.ensemble
    if influence is not None:
        facts.append(("Members", str(len(influence.ensemble))))
        facts.append(("Reliability of the ranking", f"{_reliability(analysis, influence):.2f}"))
        if influence.search is not None:
            facts.append(("Learning rate found", f"{influence.search.learning_rate:g}"))
    if analysis.evidence is not None and not analysis.evidence.fallback:
        facts.append(("Memorized by the network", f"{analysis.evidence.memory:.0%}"))
        facts.append(("Planted labels told apart", f"AUC {analysis.evidence.told_apart:.2f}"))
    for name, value in analysis.agreement.items():
        told = "not defined" if math.isnan(value) else f"{value:.2f}"
        facts.append((f"Rank agreement with {name.replace('_', ' ')}", told))
    names = {"auc": "AUC against the truth", "average_precision": "Average precision"}
    names |= {"precision": "Precision of the flagged", "recall": "Recall of the flagged"}
    return facts + [(names[name], f"{value:.3f}") for name, value in figures.items()]


def _search(analysis: LabelAnalysis) -> dict[str, Any] | None:
    search = None if analysis.ensemble is None else analysis.ensemble.search
    if search is None:
        return None
    return {
        "rates": [trial.learning_rate for trial in search.trials],
        "separability": [trial.separability for trial in search.trials],
        "median_loss": [trial.median for trial in search.trials],
        "cap": search.cap,
        "chosen": search.learning_rate,
    }


def told_share(share: Share) -> str:
    """The share of wrong labels and its interval, as a reader sees it."""
    return f"{share.value:.1%} (90 % interval {share.low:.1%} to {share.high:.1%})"

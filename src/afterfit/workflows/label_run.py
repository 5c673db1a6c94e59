"""A run over a training set's labels: analysis, artifacts and the report, in one folder."""

import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from afterfit.evaluate.attribution import (
    auc,
    average_precision,
    precision_at,
    recall_at,
)
from afterfit.influence.evidence import Share
from afterfit.influence.gex import GEX, Say, quiet
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import fingerprint
from afterfit.report import (
    Page,
    label_page,
    page_html,
    sample_html,
    write_table_atomic,
    write_text_atomic,
)
from afterfit.workflows.labels import Cutter, LabelAnalysis, analyze_labels
from afterfit.workflows.trained import Trained

SHOWN = 60
"""Suspects whose samples are shown in the report."""


@final
@dataclass(frozen=True)
class LabelRun:
    """A finished run: the analysis, the folder, and the figures where the truth is known.

    ``figures`` holds ``auc``, ``average_precision``, and ``precision`` and ``recall`` of the
    flagged samples; it is empty where nobody knows which labels are wrong.
    """

    analysis: LabelAnalysis
    folder: Path
    figures: dict[str, float]

    @property
    def report(self) -> Path:
        """Where the page is."""
        return self.folder / "report.html"


def run_labels(
    trained: Trained,
    folder: Path,
    method: Any = None,
    cut: Cutter | None = None,
    false_discovery_rate: float | None = None,
    trace: TrainingTrace | None = None,
    title: str = "Label report",
    say: Say = quiet,
) -> LabelRun:
    """Analyze, and write tables, figures, settings, losses and the page into the folder.

    Everything is written to a temporary name and renamed; with the default method and with GEX,
    members are kept in the folder as they are made, and a run that was killed goes on from them.
    """
    chosen = method
    if method is None and trace is None:
        chosen = Unlearning(budget=trained.epochs)
    walks = isinstance(chosen, (GEX, Unlearning))
    problem, train, stream = trained.problem(), trained.batches(), trained.stream()
    folder.mkdir(parents=True, exist_ok=True)
    analysis = analyze_labels(
        problem, train, chosen, fit=stream if walks else None, trace=trace, cut=cut,
        false_discovery_rate=false_discovery_rate, folder=folder if walks else None, say=say,
    )  # fmt: skip
    figures = _figures(analysis, trained.wrong)
    write_table_atomic(folder / "scores.csv", analysis.issues.reset_index())
    _write_losses(folder, analysis)
    facts = {
        "network": fingerprint(problem),
        "data": train.fingerprint(),
        "samples": train.num_samples,
    }
    result = _known(_result(analysis, figures, facts))
    write_text_atomic(folder / "result.json", json.dumps(result, indent=1, allow_nan=False))
    write_text_atomic(folder / "run.toml", _toml(chosen, analysis, facts))
    page = _page(title, trained, train, analysis, figures)
    write_text_atomic(folder / "report.html", page_html(page))
    return LabelRun(analysis, folder, figures)


def _figures(analysis: LabelAnalysis, wrong: Tensor | None) -> dict[str, float]:
    if wrong is None:
        return {}
    scores = analysis.scores.value.cpu()
    num = 0 if analysis.cut is None else int(analysis.cut.is_issue.sum())
    flagged = {}
    if num:
        flagged = {
            "precision": precision_at(scores, wrong, num),
            "recall": recall_at(scores, wrong, num),
        }
    return {
        "auc": auc(scores, wrong),
        "average_precision": average_precision(scores, wrong),
        **flagged,
    }


def _write_losses(folder: Path, analysis: LabelAnalysis) -> None:
    if isinstance(analysis.influence, CovarianceInfluence):
        table = analysis.influence.table
        path = folder / "losses.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file(
            {"trained": table.trained.contiguous(), "columns": table.columns.contiguous()},
            str(temporary),
        )
        temporary.replace(path)


def _result(
    analysis: LabelAnalysis, figures: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {**facts, "cautions": list(analysis.cautions), **figures}
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
    if isinstance(analysis.influence, CovarianceInfluence):
        found["reliability"] = _reliability(analysis, analysis.influence)
        if analysis.influence.search is not None:
            found["search"] = asdict(analysis.influence.search)
        if analysis.influence.cost is not None:
            found["forecast"] = asdict(analysis.influence.cost)
    return found


def _reliability(analysis: LabelAnalysis, influence: CovarianceInfluence) -> float:
    """How far two walks, or two halves of an ensemble, agree on the ranking."""
    if analysis.evidence is not None:
        return analysis.evidence.reliability
    return influence.reliability()


def _known(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {name: _known(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _toml(method: Any, analysis: LabelAnalysis, facts: dict[str, Any]) -> str:
    """Configuration as TOML, as asked for and as it was used: what one needs to run it again."""
    versions = {name: version(name) for name in ("afterfit", "torch", "numpy")}
    used: dict[str, Any] = {}
    if isinstance(analysis.influence, CovarianceInfluence) and analysis.evidence is None:
        sampler = analysis.influence.method.sampler
        used["sampler"] = {"name": type(sampler).__name__, **_fields(sampler)}
    asked = {name: value for name, value in _fields(method).items() if name not in used}
    sections = {
        "method": {"name": _name(method), **asked},
        **used,
        "input": facts,
        "versions": {"python": platform.python_version(), **versions},
    }
    lines = []
    for section, entries in sections.items():
        lines.append(f"[{section}]")
        known = {name: value for name, value in entries.items() if value is not None}
        lines += [f"{name} = {_toml_value(value)}" for name, value in known.items()]
        lines.append("")
    return "\n".join(lines)


def _name(method: Any) -> str:
    if method is None:
        return "mean loss of a training trace"
    return getattr(method, "__name__", type(method).__name__)


def _fields(method: Any) -> dict[str, Any]:
    names = getattr(type(method), "__dataclass_fields__", {})
    values = {name: getattr(method, name) for name in names}
    return {name: getattr(value, "__qualname__", value) for name, value in values.items()}


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)


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
    samples = [sample_html(_look(trained, train, int(i))) for i in table.index[:shown]]
    truth = None if trained.wrong is None else trained.wrong.cpu().numpy().astype(bool)
    return label_page(
        title=title,
        issues=table.reset_index(),
        scores=analysis.scores.value.cpu().numpy(),
        threshold=None if analysis.cut is None else analysis.cut.threshold,
        samples=samples,
        class_names=list(trained.classes),
        facts=_facts(train, analysis, figures),
        search=_search(analysis),
        truth=truth,
        warnings=analysis.cautions,
        methods=_method(analysis),
        citation=GEX.reference if isinstance(analysis.influence, CovarianceInfluence) else "",
    )


def _method(analysis: LabelAnalysis) -> str:
    if analysis.evidence is not None:
        return _UNLEARNING if not analysis.evidence.fallback else _LOSS
    return _GEX if isinstance(analysis.influence, CovarianceInfluence) else _OTHER


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
    influence = analysis.influence
    if isinstance(influence, CovarianceInfluence):
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
    influence = analysis.influence
    if not isinstance(influence, CovarianceInfluence) or influence.search is None:
        return None
    search = influence.search
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


def _look(trained: Trained, train: Batches, index: int) -> Any:
    """What a reviewer sees of a sample."""
    if trained.show is not None:
        shown = trained.show(index)
        return shown.cpu().numpy() if isinstance(shown, Tensor) else shown
    inputs = train.fetch(torch.tensor([index])).inputs
    if isinstance(inputs, Tensor):
        return inputs[0].cpu().numpy()
    if isinstance(inputs, dict):
        return {name: _short(value[0]) for name, value in inputs.items()}
    return repr(inputs)


def _short(value: Any) -> Any:
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else str(array.tolist())[:200]

"""Runs that ask how sharp a network's minimum is, and which measures a rescaling can fake."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd
import torch
from torch import Generator

from afterfit.curvature import ggn
from afterfit.linalg import spectrum
from afterfit.problem.data import Batches
from afterfit.problem.persample import losses
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity
from afterfit.report import (
    Page,
    Section,
    movement_plot,
    section_page,
    share_plot,
    write_table_atomic,
    write_text_atomic,
)
from afterfit.sharpness import (
    MEASURES,
    Audit,
    Certificate,
    Scales,
    Sharpness,
    audit,
    connectivity_curvature,
    connectivity_sharpness,
    fisher_rao_norm,
    fisher_trace,
    normalized_connectivity_sharpness,
    pac_bayes_bound,
    squared_norm,
    tangent_trace,
)
from afterfit.workflows.trained import Trained

Say = Callable[[str], None]

REFERENCE = (
    "Kim, Park, Kim, Yang (2023), Scale-invariant Bayesian neural networks with connectivity "
    "tangent kernel, ICLR, arXiv:2209.15208"
)
NUM_EIGENVALUES = 5
PRIOR_SCALES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Relative prior scales among which the bound is the least; it pays for having tried them all."""

_MOST_OUTPUTS = 5_000
"""Samples times outputs that the bound's kernel may have."""


@final
@dataclass(frozen=True)
class SharpnessRun:
    """A finished run.

    Attributes
    ----------
    measures
        All measures, the invariant ones first.
    eigenvalues
        Largest eigenvalues of the relative Gauss-Newton matrix, a sum over the samples.
    certificate
        A bound of the error on new data, where the factory gives held-out data with classes.
    folder
        Holds ``measures.csv``, ``result.json`` and ``report.html``.
    """

    measures: Sequence[Sharpness]
    eigenvalues: Sequence[float]
    certificate: Certificate | None
    folder: Path

    @property
    def report(self) -> Path:
        """Where the page is."""
        return self.folder / "report.html"

    def to_pandas(self) -> pd.DataFrame:
        """One row a measure: per sample, its standard error, and what cannot change it."""
        return pd.DataFrame(
            {
                "measure": [m.name for m in self.measures],
                "per sample": [m.mean for m in self.measures],
                "stderr": [m.stderr / m.num_samples for m in self.measures],
                "invariant to": [", ".join(sorted(m.invariant_to)) for m in self.measures],
            }
        )


def run_sharpness(
    trained: Trained,
    folder: Path,
    *,
    samples: int = 1000,
    seed: int = 0,
    title: str = "Sharpness report",
    say: Say = lambda _: None,
) -> SharpnessRun:
    """Measure sharpness on a part of the training data, and write tables and the page.

    Parameters
    ----------
    samples
        So many training samples, drawn at random, or all if there are fewer.
    """
    problem = trained.problem()
    data = drawn_part(trained.batches(), samples, seed)
    say(f"measuring on {data.num_samples:,} samples")
    measures = [
        measure(problem, data)
        for measure in (
            connectivity_sharpness, connectivity_curvature, normalized_connectivity_sharpness,
            fisher_rao_norm, tangent_trace, fisher_trace, squared_norm,
        )
    ]  # fmt: skip
    relative = connectivity(problem)
    say("largest eigenvalues")
    generator = Generator().manual_seed(seed)
    found = spectrum(ggn(relative, data), min(NUM_EIGENVALUES, problem.num_params), generator)
    certificate = _certificate(trained, problem, seed, say)
    run = SharpnessRun(measures, found.values.tolist(), certificate, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_table_atomic(folder / "measures.csv", run.to_pandas())
    write_text_atomic(folder / "result.json", json.dumps(_result(run, data), indent=1))
    page = _sharpness_page(title, problem, data, run)
    write_text_atomic(folder / "report.html", section_page(page))
    return run


def drawn_part(data: Batches, samples: int, seed: int) -> Batches:
    """So many samples, drawn at random, in their order; all if there are fewer."""
    if samples < 1:
        message = f"samples is {samples}, expected at least 1"
        raise ValueError(message)
    if samples >= data.num_samples:
        return data
    order = torch.randperm(data.num_samples, generator=Generator().manual_seed(seed))
    return data.subset(order[:samples].sort().values)


def _certificate(trained: Trained, problem: Problem, seed: int, say: Say) -> Certificate | None:
    """The bound on connectivity, where there are held-out samples with classes."""
    held_out = trained.held_out()
    if held_out is None:
        return None
    targets = held_out.targets()
    if targets.is_floating_point() or targets.ndim != 1:
        return None
    outputs = problem.forward(problem.params, held_out.fetch(torch.tensor([0])).inputs).shape[1]
    held_out = drawn_part(held_out, max(1, _MOST_OUTPUTS // outputs), seed)
    say(f"bounding the error by {held_out.num_samples:,} held-out samples")
    scales = [Scales(prior, 1.0) for prior in PRIOR_SCALES]
    generator = Generator().manual_seed(seed)
    return pac_bayes_bound(connectivity(problem), trained.batches(), held_out, scales, generator)


def _result(run: SharpnessRun, data: Batches) -> dict[str, object]:
    found: dict[str, object] = {
        "samples": data.num_samples,
        "measures": {m.name: m.mean for m in run.measures},
        "shares": run.measures[0].shares if run.measures[0].total else {},
        "eigenvalues": list(run.eigenvalues),
    }
    if run.certificate is not None:
        found["bound"] = run.certificate.bound
        found["gibbs_risk"] = run.certificate.observed_risk
    return found


def _sharpness_page(title: str, problem: Problem, data: Batches, run: SharpnessRun) -> Page:
    sharpness = run.measures[0]
    parts = sharpness.by_parameter
    sections = [
        Section(
            "Where it is sharp",
            figure=share_plot(
                list(parts), [part / data.num_samples for part in parts.values()],
                "Connectivity sharpness of each parameter tensor",
                "connectivity sharpness, per sample",
            ),
            caption="The measure is a sum over parameters, so each tensor has its share.",
        ),
        Section(
            "Measures",
            text="Numbers that a rescaling of the network can change say nothing when networks are "
            "compared; the last column names what cannot change each.",
            table=run.to_pandas(),
        ),
        Section(
            "Largest eigenvalues",
            text="Of the Gauss-Newton matrix in relative coordinates, summed over the samples.",
            table=pd.DataFrame(
                {"rank": range(1, len(run.eigenvalues) + 1), "eigenvalue": list(run.eigenvalues)}
            ),
        ),
    ]  # fmt: skip
    if run.certificate is not None:
        sections.append(_bound_section(run.certificate))
    frozen = connectivity(problem).num_frozen
    mean_loss = float(losses(problem, data).mean())
    return Page(
        title=title,
        lead=f"Connectivity sharpness {sharpness.mean:.4g} per sample; no rescaling of the network "
        "can change it.",
        sections=sections,
        facts=[
            ("Samples", f"{data.num_samples:,}"),
            ("Parameters", f"{problem.num_params:,}"),
            ("Parameters that are zero", f"{frozen:,}"),
            ("Mean loss (nats)", f"{mean_loss:.4g}"),
        ],
        warnings=_zero_warning(frozen, problem.num_params),
        methods="Connectivity sharpness: the squared Jacobian in relative coordinates θ = θ̂ ⊙ (1 + "
        "c), summed over outputs. It grows with the scale of the logits: compare networks of equal "
        "loss, or by the connectivity curvature, which weighs by the likelihood.",
        citation=REFERENCE,
    )


def _zero_warning(frozen: int, total: int) -> list[str]:
    if not frozen:
        return []
    return [
        f"{frozen:,} of {total:,} parameters are exactly zero and have no relative change: they "
        "add nothing to measures and bounds."
    ]


def _bound_section(certificate: Certificate) -> Section:
    divergence = certificate.divergence
    verdict = "It says nothing." if certificate.bound >= 1 else "It is not vacuous."
    return Section(
        "Bound of the error on new data",
        text=f"With probability {1 - certificate.delta:.0%} the stochastic linearized network errs "
        f"on at most {certificate.bound:.1%} of new samples. {verdict} The trained network itself "
        "is not what is bounded.",
        table=pd.DataFrame(
            {
                "quantity": [
                    "bound", "observed error of the draws", "bias term", "sharpness term",
                    "relative prior scale", "held-out samples", "prior scales tried",
                ],
                "value": [
                    certificate.bound, certificate.observed_risk, divergence.bias,
                    divergence.sharpness, certificate.scales.prior, certificate.num_samples,
                    certificate.num_scales,
                ],
            }
        ),
    )  # fmt: skip


@final
@dataclass(frozen=True)
class AuditRun:
    """A finished audit and where its page is."""

    audit: Audit
    folder: Path

    @property
    def report(self) -> Path:
        """Where the page is."""
        return self.folder / "report.html"


def run_audit(
    trained: Trained,
    folder: Path,
    *,
    samples: int = 200,
    draws: int = 2,
    spread: float = math.log(4),
    seed: int = 0,
    title: str = "Invariance audit",
    say: Say = lambda _: None,
) -> AuditRun:
    """Rescale the network in every way that it admits, and write how far each measure moved."""
    data = drawn_part(trained.batches(), samples, seed)
    problem = trained.problem()
    say(f"rescaling the network, and measuring on {data.num_samples:,} samples")
    measures = {
        **MEASURES,
        "connectivity curvature": connectivity_curvature,
        "Fisher trace": fisher_trace,
    }
    found = audit(
        trained.module,
        problem.likelihood,
        data,
        measures,
        spread=spread,
        num_draws=draws,
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = found.moves.reset_index()
    write_table_atomic(folder / "moves.csv", table)
    result = {
        name: {str(k): float(v) for k, v in row.items()} for name, row in found.moves.iterrows()
    }
    write_text_atomic(folder / "result.json", json.dumps(result, indent=1))
    write_text_atomic(folder / "report.html", section_page(_audit_page(title, found, data)))
    return AuditRun(found, folder)


def _audit_page(title: str, found: Audit, data: Batches) -> Page:
    faked = found.can_be_faked
    moved = [str(name) for name in faked[faked].index]
    fixed = [str(name) for name in faked[~faked].index]
    table = found.moves.reset_index()
    lead = f"{len(fixed)} of {len(faked)} measures stayed the same while the network was rescaled."
    return Page(
        title=title,
        lead=lead,
        sections=[
            Section(
                "What moves though the function stays",
                figure=movement_plot(
                    [str(name) for name in found.moves.index],
                    {str(kind): found.moves[kind].to_numpy() for kind in found.moves},
                ),
                caption="Each change preserves the function, and was verified to; a measure that "
                "moves can be made larger or smaller without changing a single prediction.",
            ),
            Section("Table", table=table),
            Section("What the network admits", table=_freedoms(found)),
        ],
        facts=[
            ("Samples", f"{data.num_samples:,}"),
            ("Stayed", ", ".join(fixed) or "none"),
            ("Can be faked", ", ".join(moved) or "none"),
        ],
        warnings=list(found.broken),
        methods="Factors are log-normal; networks are compared in float64. 'mixing' is no "
        "rescaling: linear combinations of units, to which relative coordinates are not invariant.",
        citation=REFERENCE,
    )


def _freedoms(found: Audit) -> pd.DataFrame:
    lines = [line.strip() for line in str(found.architecture).splitlines() if line.strip()]
    return pd.DataFrame({"change": lines})

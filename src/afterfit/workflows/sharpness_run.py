"""A run that asks how sharp a network's minimum is."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd
from torch import Generator

from afterfit.curvature import ggn
from afterfit.linalg import spectrum
from afterfit.problem.data import Batches
from afterfit.problem.persample import losses, outputs
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity
from afterfit.report import Page, Section, share_plot
from afterfit.sharpness import (
    Certificate,
    Measure,
    Scales,
    Sharpness,
    connectivity_curvature,
    connectivity_sharpness,
    fisher_rao_norm,
    fisher_trace,
    normalized_connectivity_sharpness,
    pac_bayes_bound,
    squared_norm,
    tangent_trace,
)
from afterfit.workflows.citations import CONNECTIVITY
from afterfit.workflows.run import Run, inputs, write_run
from afterfit.workflows.trained import Trained

_log = logging.getLogger(__name__)

NUM_EIGENVALUES = 5
PRIOR_SCALES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Relative prior scales among which the bound is the least; it pays for having tried them all."""

_MOST_OUTPUTS = 5_000
"""Samples times outputs that the bound's kernel may have."""


@final
@dataclass(frozen=True)
class SharpnessFindings:
    """How sharp a minimum is.

    Attributes
    ----------
    measures
        All measures, the invariant ones first.
    eigenvalues
        Largest eigenvalues of the relative Gauss-Newton matrix, a sum over the samples.
    certificate
        A bound of the error on new data, where the factory gives held-out data with classes.
    """

    measures: Sequence[Sharpness]
    eigenvalues: Sequence[float]
    certificate: Certificate | None

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
) -> Run[SharpnessFindings]:
    """Measure sharpness on a part of the training data, and write ``measures.csv`` and the page.

    Parameters
    ----------
    samples
        So many training samples, drawn at random, or all if there are fewer.
    """
    problem = trained.problem()
    data = trained.batches().drawn(samples, seed)
    _log.info(f"measuring on {data.num_samples:,} samples")
    measures = [measure(problem, data) for measure in _suited(problem, data)]
    relative = connectivity(problem)
    _log.info("largest eigenvalues")
    generator = Generator().manual_seed(seed)
    top = spectrum(ggn(relative, data), min(NUM_EIGENVALUES, problem.num_params), generator)
    certificate = _certificate(trained, problem, seed)
    found = SharpnessFindings(measures, top.values.tolist(), certificate)
    return write_run(
        folder,
        found,
        _sharpness_page(title, problem, data, found),
        figures=_figures(found, data),
        settings={
            "sharpness": {"samples": samples, "seed": seed},
            "input": inputs(problem, data),
        },
        tables={"measures": found.to_pandas()},
    )


def _suited(problem: Problem, data: Batches) -> list[Measure]:
    """All measures, without the one that compares outputs where there is one output only."""
    compares = outputs(problem, data.drawn(1, 0)).shape[1] > 1
    return [
        connectivity_sharpness,
        connectivity_curvature,
        *([normalized_connectivity_sharpness] if compares else []),
        fisher_rao_norm,
        tangent_trace,
        fisher_trace,
        squared_norm,
    ]


def _certificate(trained: Trained, problem: Problem, seed: int) -> Certificate | None:
    """The bound on connectivity, where there are held-out samples with classes."""
    held_out = trained.held_out()
    if held_out is None:
        return None
    targets = held_out.targets()
    if targets.is_floating_point() or targets.ndim != 1:
        return None
    num_outputs = outputs(problem, held_out.drawn(1, seed)).shape[1]
    held_out = held_out.drawn(max(1, _MOST_OUTPUTS // num_outputs), seed)
    _log.info(f"bounding the error by {held_out.num_samples:,} held-out samples")
    scales = [Scales(prior, 1.0) for prior in PRIOR_SCALES]
    generator = Generator().manual_seed(seed)
    return pac_bayes_bound(connectivity(problem), trained.batches(), held_out, scales, generator)


def _figures(found: SharpnessFindings, data: Batches) -> dict[str, object]:
    figures: dict[str, object] = {
        "samples": data.num_samples,
        "measures": {m.name: m.mean for m in found.measures},
        "shares": found.measures[0].shares if found.measures[0].total else {},
        "eigenvalues": list(found.eigenvalues),
    }
    if found.certificate is not None:
        figures["bound"] = found.certificate.bound
        figures["gibbs_risk"] = found.certificate.observed_risk
    return figures


def _sharpness_page(title: str, problem: Problem, data: Batches, found: SharpnessFindings) -> Page:
    sharpness = found.measures[0]
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
            table=found.to_pandas(),
        ),
        Section(
            "Largest eigenvalues",
            text="Of the Gauss-Newton matrix in relative coordinates, summed over the samples.",
            table=pd.DataFrame(
                {"eigenvalue": list(found.eigenvalues)},
                index=pd.RangeIndex(1, len(found.eigenvalues) + 1, name="rank"),
            ).reset_index(),
        ),
    ]  # fmt: skip
    if found.certificate is not None:
        sections.append(_bound_section(found.certificate))
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
        citation=CONNECTIVITY,
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

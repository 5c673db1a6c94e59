"""A run that rescales a network in every way that it admits, and tells which measures move."""

import logging
import math
from pathlib import Path

import pandas as pd

from afterfit.problem.data import Batches
from afterfit.report import Page, Section, movement_plot
from afterfit.sharpness import MEASURES, Audit, audit, connectivity_curvature, fisher_trace
from afterfit.workflows.citations import CONNECTIVITY
from afterfit.workflows.run import Run, inputs, write_run
from afterfit.workflows.trained import Trained

_log = logging.getLogger(__name__)


def run_audit(
    trained: Trained,
    folder: Path,
    *,
    samples: int = 200,
    draws: int = 2,
    spread: float = math.log(4),
    seed: int = 0,
    title: str = "Invariance audit",
) -> Run[Audit]:
    """Rescale the network in every way that it admits, and write how far each measure moved.

    The folder gets ``moves.csv``.
    """
    data = trained.batches().drawn(samples, seed)
    problem = trained.problem()
    _log.info(f"rescaling the network, and measuring on {data.num_samples:,} samples")
    measures = {
        **MEASURES,
        "connectivity curvature": connectivity_curvature,
        "Fisher trace": fisher_trace,
    }
    found = audit(
        trained.module, problem.likelihood, data, measures,
        spread=spread, num_draws=draws, seed=seed,
    )  # fmt: skip
    rows = found.moves.iterrows()
    return write_run(
        folder,
        found,
        _audit_page(title, found, data),
        figures={str(name): {str(k): float(v) for k, v in row.items()} for name, row in rows},
        settings={
            "audit": {"samples": samples, "draws": draws, "spread": spread, "seed": seed},
            "input": inputs(problem, data),
        },
        tables={"moves": found.moves.reset_index()},
    )


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
        citation=CONNECTIVITY,
    )


def _freedoms(found: Audit) -> pd.DataFrame:
    lines = [line.strip() for line in str(found.architecture).splitlines() if line.strip()]
    return pd.DataFrame({"change": lines})

"""A run that rescales a network in every way that it admits, and tells which measures move."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd

from afterfit.problem.data import Batches
from afterfit.report import (
    Page,
    Section,
    movement_plot,
    page_html,
    write_table_atomic,
    write_text_atomic,
)
from afterfit.sharpness import MEASURES, Audit, audit, connectivity_curvature, fisher_trace
from afterfit.workflows.citations import CONNECTIVITY
from afterfit.workflows.sharpness_run import Say
from afterfit.workflows.trained import Trained


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
    data = trained.batches().drawn(samples, seed)
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
    write_text_atomic(folder / "report.html", page_html(_audit_page(title, found, data)))
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
        citation=CONNECTIVITY,
    )


def _freedoms(found: Audit) -> pd.DataFrame:
    lines = [line.strip() for line in str(found.architecture).splitlines() if line.strip()]
    return pd.DataFrame({"change": lines})

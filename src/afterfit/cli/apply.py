"""``afterfit apply``: decisions of a review become a cleaned label file and an index."""

from pathlib import Path
from typing import Annotated

import typer

from afterfit.cli.console import console
from afterfit.workflows.decisions import apply_decisions


def apply(
    run: Annotated[Path, typer.Argument(help="Folder that 'afterfit labels' wrote.")],
    decisions: Annotated[
        Path,
        typer.Argument(
            help="CSV or JSON with index, decision (keep, relabel or drop) and label (a class by "
            "name or number)."
        ),
    ],
) -> None:
    """Write the labels and the samples that stay after a review: labels.csv and keep.csv."""
    cleaned = apply_decisions(run, decisions)
    told = ", ".join(f"{name} {num:,}" for name, num in cleaned.counts.items())
    console.print(f"decisions: {told}")
    console.print(f"labels: {run / 'labels.csv'} ({len(cleaned.labels):,} samples)", soft_wrap=True)
    console.print(f"index: {run / 'keep.csv'} ({len(cleaned.keep):,} samples stay)", soft_wrap=True)

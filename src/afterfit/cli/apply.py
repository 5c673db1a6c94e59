"""``afterfit apply``: a cleaned data set from the decisions of a review."""

from pathlib import Path
from typing import Annotated

import typer

from afterfit.cli.console import console
from afterfit.workflows.decisions import apply_decisions


def apply(
    run: Annotated[Path, typer.Argument(help="Folder that 'afterfit labels' wrote.")],
    decisions: Annotated[Path, typer.Argument(help="decisions.csv, as the review saves it.")],
) -> None:
    """Turn the decisions of a review into labels.csv and kept.csv, in the folder of the run.

    Example: afterfit apply runs/labels decisions.csv
    """
    applied = apply_decisions(run, decisions)
    told = ", ".join(f"{what} {num}" for what, num in applied.counts.items())
    console.print(f"{told}; {len(applied.kept)} of {len(applied.labels)} samples stay")
    console.print(f"labels: {run / 'labels.csv'}", soft_wrap=True)
    console.print(f"positions that stay: {run / 'kept.csv'}", soft_wrap=True)

"""``afterfit sharpness``, ``afterfit audit`` and ``afterfit uncertainty``."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from afterfit.cli.console import Factory, Folder, Seed, Threads, console, set_threads
from afterfit.cli.factory import load_trained
from afterfit.workflows.audit_run import run_audit
from afterfit.workflows.sharpness_run import run_sharpness
from afterfit.workflows.uncertainty_run import run_uncertainty

Samples = Annotated[int, typer.Option(help="Training samples to measure on, drawn at random.")]


def sharpness(
    factory: Factory,
    out: Folder = Path("runs/sharpness"),
    samples: Samples = 1000,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Measure how sharp the minimum is, in numbers that a rescaling cannot fake."""
    set_threads(threads)
    trained = load_trained(factory)
    run = run_sharpness(trained, out, samples=samples, seed=seed, title=f"Sharpness of {factory}")
    table = Table(title="sharpness, per sample")
    for column in ("measure", "value", "invariant to"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for measure in run.found.measures:
        kinds = ", ".join(sorted(measure.invariant_to))
        table.add_row(measure.name, f"{measure.mean:.5g}", kinds)
    console.print(table)
    if run.found.certificate is not None:
        console.print(
            f"error on new data at most {run.found.certificate.bound:.4f} with probability "
            f"{1 - run.found.certificate.delta:.0%}, for the stochastic linearized network"
        )
    console.print(f"report: {run.report}", soft_wrap=True)


def audit(
    factory: Factory,
    out: Folder = Path("runs/audit"),
    samples: Samples = 200,
    draws: Annotated[int, typer.Option(help="Random changes of each kind.")] = 2,
    spread: Annotated[
        float, typer.Option(help="Standard deviation of the logarithm of the factors.")
    ] = math.log(4),
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Rescale the network in every way that it admits, and see which measures move."""
    set_threads(threads)
    trained = load_trained(factory)
    run = run_audit(
        trained, out, samples=samples, draws=draws, spread=spread, seed=seed,
        title=f"Invariance audit of {factory}",
    )  # fmt: skip
    console.print(str(run.found))
    for broken in run.found.broken:
        console.print(broken)
    console.print(f"report: {run.report}", soft_wrap=True)


def uncertainty(
    factory: Factory,
    out: Folder = Path("runs/uncertainty"),
    samples: Samples = 2000,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Compare ways to say how sure the network is, on its held-out data, and keep the best."""
    set_threads(threads)
    trained = load_trained(factory)
    run = run_uncertainty(
        trained, out, samples=samples, seed=seed, title=f"Uncertainty of {factory}"
    )
    found = run.found.table
    shown = [c for c in ("nll", "nll_stderr", "test_nll", "test_ece", "test_crps") if c in found]
    table = Table(title="ways to predict, the best first")
    for column in ("way", *shown, "chosen"):
        table.add_column(column, justify="left" if column in ("way", "chosen") else "right")
    for name, row in found.iterrows():
        numbers = [f"{row[column]:.4g}" for column in shown]
        table.add_row(str(name), *numbers, str(row["chosen"]))
    console.print(table)
    console.print(f"report: {run.report}", soft_wrap=True)

"""The command line and its main commands: ``afterfit labels``, ``demo`` and ``cite``."""

import logging
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from afterfit.cli.apply import apply
from afterfit.cli.console import (
    Factory,
    Out,
    Seed,
    Threads,
    console,
    errors,
    set_threads,
    show_progress,
)
from afterfit.cli.demo import digits, train_network
from afterfit.cli.demo_graph import digits_graph
from afterfit.cli.edges import edges, graph_parts, tell
from afterfit.cli.factory import FactoryError, load_trained
from afterfit.cli.influence import influence
from afterfit.cli.sharpness import audit, sharpness, uncertainty
from afterfit.evaluate.threshold import budget_cut, otsu_cut
from afterfit.influence import simple
from afterfit.influence.gex import GEX, published_gex
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning
from afterfit.workflows.citations import CONNECTIVITY, RECTIFICATION
from afterfit.workflows.label_review import PAGE
from afterfit.workflows.label_run import MEASURED, run_labels, told_share
from afterfit.workflows.labels import LabelAnalysis
from afterfit.workflows.run import Run
from afterfit.workflows.trained import Trained
from afterfit.workflows.verify import verify

_log = logging.getLogger(__name__)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    callback=show_progress,
    help="Post-hoc analysis of trained networks: which training labels are wrong, how sharp the "
    "minimum is, how sure the network, and which edges of a graph hurt.",
)
app.command()(sharpness)
app.command()(audit)
app.command()(uncertainty)
app.command()(edges)
app.command()(influence)
app.command()(apply)

SCORES = {
    "loss": simple.loss_scores,
    "margin": simple.margin_scores,
    "entropy": simple.entropy_scores,
    "confidence": simple.self_confidence_scores,
    "gradient-norm": simple.gradient_norm_scores,
}

REFERENCES = {
    "labels": GEX.reference,
    "sharpness, audit, uncertainty": CONNECTIVITY,
    "edges": RECTIFICATION,
}

_INTERRUPTED = 130  # how typer leaves where the user pressed Ctrl-C


def _cut(text: str) -> tuple[Any, float | None]:
    """Read 'probability', 'fdr:0.1', 'otsu' or 'budget:200': a cut, and a false discovery rate."""
    name, _, value = text.partition(":")
    try:
        if name == "probability" and not value:
            return None, None
        if name == "otsu" and not value:
            return otsu_cut, None
        if name == "fdr" and 0 < float(value) < 1:
            return None, float(value)
        if name == "budget" and int(value) >= 0:
            return partial(budget_cut, budget=int(value)), None
    except ValueError:
        pass
    message = (
        f"--cut is '{text}', expected 'probability', 'fdr:RATE' with a rate between 0 and 1, "
        "'otsu', or 'budget:NUMBER'"
    )
    raise ValueError(message)


def _rate(text: str) -> Any:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        message = f"--learning-rate is '{text}', expected 'auto' or a number"
        raise ValueError(message) from None


@app.command()
def labels(
    factory: Factory,
    out: Out = Path("runs/labels"),
    method: Annotated[
        str,
        typer.Option(
            help=f"unlearning, gex, gex-published, or a simple score: {', '.join(SCORES)}."
        ),
    ] = "unlearning",
    cut: Annotated[
        str,
        typer.Option(
            help="What is flagged: probability (more probably wrong than right), fdr:RATE, otsu, "
            "or budget:NUMBER. Only unlearning has probabilities; the other methods rank."
        ),
    ] = "probability",
    trace: Annotated[
        Path | None,
        typer.Option(
            help="A trace recorded in training: its mean loss is the score, or stands beside it."
        ),
    ] = None,
    members: Annotated[
        int | None, typer.Option(help="Members of the ensemble (gex: 8, gex-published: 32).")
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="Peak rate of the ensemble, or auto (gex; by default auto).")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Cost at the most, in epochs; by default the factory's epochs."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples of one training step.")] = 128,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Rank the training labels by how probably they are wrong, and write a report."""
    set_threads(threads)
    where, rate = _cut(cut)
    _require_used(method, members, learning_rate, rate, trace)
    if method == "unlearning":
        chosen: Any = Unlearning(budget=budget, batch_size=batch_size, seed=seed)
    elif method == "gex":
        chosen = GEX(
            members=8 if members is None else members,
            learning_rate=_rate(learning_rate or "auto"), budget=budget,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
    elif method == "gex-published":
        chosen = published_gex(members=32 if members is None else members, seed=seed)
    elif method in SCORES:
        chosen = SCORES[method]
    else:
        message = (
            f"--method is '{method}', expected unlearning, gex, gex-published, {', '.join(SCORES)}"
        )
        raise ValueError(message)
    recorded = None if trace is None else TrainingTrace.load(trace)
    trained = load_trained(factory)
    if method in ("unlearning", "gex") and budget is None:
        chosen = replace(chosen, budget=trained.epochs)
    if method == "unlearning" and recorded is not None:
        chosen = None  # the trace is the score, and nothing is trained
    _tell(
        run_labels(trained, out, chosen, where, rate, recorded, title=f"Labels of {factory}"),
        trained,
    )


def _require_used(
    method: str,
    members: int | None,
    learning_rate: str | None,
    rate: float | None,
    trace: Path | None,
) -> None:
    """Refuse an option that the method would ignore."""
    if members is not None and method not in ("gex", "gex-published"):
        message = f"--members is for gex and gex-published, and --method is '{method}'"
        raise ValueError(message)
    if learning_rate is not None and method != "gex":
        message = f"--learning-rate is for gex, and --method is '{method}'"
        raise ValueError(message)
    if rate is not None and (method != "unlearning" or trace is not None):
        message = (
            "--cut fdr:RATE needs probabilities, which only --method unlearning has, without a "
            "--trace; use --cut budget:NUMBER or otsu"
        )
        raise ValueError(message)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Train a small conv net on digits with 10 % wrong labels, and find them."""
    set_threads(threads)
    _log.info("training a conv net on 1,200 digits, 120 of them with a wrong label")
    trained = digits(seed)
    chosen = Unlearning(seed=seed, budget=trained.epochs)
    run = run_labels(trained, out, chosen, title="Digits")
    _tell(run, trained)
    _log.info("training again without the flagged samples")
    kept = {"flagged removed": run.found.kept}
    retrained = verify(
        lambda data: train_network(data, 60, seed), trained.batches(), trained.test, kept
    )
    for name, row in retrained.iterrows():
        console.print(
            f"  {name}: {int(row['samples'])} samples, test accuracy {row['test_accuracy']:.3f}"
        )
    _demo_graph(out / "graph", seed)
    console.print(f"report: {run.report}")


def _demo_graph(out: Path, seed: int) -> None:
    """The graph part, where PyTorch Geometric is installed."""
    try:
        graph, run_edges = graph_parts()
    except FactoryError as error:
        _log.info(f"the graph part is left out: {error}")
        return
    _log.info("training on a graph of digits, a third of whose edges are drawn at random")
    trained, rule = digits_graph(graph, seed), graph.TopShare(0.01)
    tell(run_edges(trained, out, rule, max_rounds=8, seed=seed, title="Digits, joined"))


@app.command()
def cite() -> None:
    """Print what to cite, for each question."""
    for question, reference in REFERENCES.items():
        console.print(f"{question}: {reference}", soft_wrap=True)


def _tell(run: Run[LabelAnalysis], trained: Trained) -> None:
    """Print the worst labels, the figures, and where the report is."""
    table = Table(title="most suspicious labels")
    columns = ("rank", "id", "given", "suggested", "confidence", "wrong", "score", "± stderr")
    for column in columns:
        table.add_column(column, justify="right")
    for row in run.found.issues.head(10).to_dict("records"):
        table.add_row(
            str(row["rank"]), str(row["id"]), _named(row["given"], trained),
            _named(row["suggested"], trained), f"{row['confidence']:.2f}",
            f"{row['p_wrong']:.0%}" if row["p_wrong"] == row["p_wrong"] else "",
            f"{row['score']:.3g}", f"{row['stderr']:.2g}",
        )  # fmt: skip
    console.print(table)
    for caution in run.found.cautions:
        console.print(Text.assemble(("caution: ", "yellow"), caution), soft_wrap=True)
    if run.found.cut is not None:
        flagged = run.found.cut.is_issue
        console.print(
            f"{int(flagged.sum())} of {len(flagged)} labels flagged ({run.found.cut.name})"
        )
    if run.found.share is not None:
        console.print(f"share of wrong labels: {told_share(run.found.share)}", soft_wrap=True)
    measured = {name: run.figures[name] for name in MEASURED if name in run.figures}
    if measured:
        console.print(", ".join(f"{name} {value:.4f}" for name, value in measured.items()))
    console.print(f"report: {run.report}", soft_wrap=True)
    console.print(f"review: {run.folder / PAGE}", soft_wrap=True)


def _named(label: Any, trained: Trained) -> str:
    if isinstance(label, int) and 0 <= label < len(trained.classes):
        return trained.classes[label]
    return f"{label:.4g}" if isinstance(label, float) else str(label)


def main() -> None:
    """Run the command line; what goes wrong is told in one line, without a traceback."""
    warnings.showwarning = lambda message, *_, **__: errors.print(
        Text.assemble(("warning: ", "yellow"), str(message)), soft_wrap=True
    )
    try:
        app()
    except (
        FactoryError,
        ValueError,
        TypeError,
        RuntimeError,
        OSError,
        FloatingPointError,
    ) as error:
        errors.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        raise SystemExit(2) from None
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED:
            errors.print("stopped; run the same command again to go on")
        raise

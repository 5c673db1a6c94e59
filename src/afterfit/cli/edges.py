"""``afterfit edges``: which edges of a graph hurt, and the graph without them."""

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from afterfit.cli.console import Folder, Seed, Threads, console, set_threads
from afterfit.cli.factory import FactoryError, load


def edges(
    factory: Annotated[
        str,
        typer.Argument(help="FILE.py or FILE.py:FUNCTION, returning graph.TrainedGraph(...)."),
    ],
    out: Folder = Path("runs/edges"),
    rule: Annotated[
        str,
        typer.Option(
            help="Edges of a round: share (the worst hundredth of the edges), consistent "
            "(opponents on most folds), rge (repulsive groups with patience), strict, top:NUMBER, "
            "ege (all opponents); without influence jaccard or cosine (the hundredth whose nodes "
            "are least alike), jaccard:LEAST or cosine:LEAST (all that are less alike, at once)."
        ),
    ] = "share",
    damping: Annotated[
        float | None,
        typer.Option(help="Of the curvature; by default the factory's weight decay."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="At most so many rounds.")] = 100,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Score every edge of a graph, remove those that hurt, and write a report."""
    set_threads(threads)
    graph, run_edges = graph_parts()
    if rounds < 0:
        message = f"--rounds is {rounds}, expected 0 or more"
        raise ValueError(message)
    trained = load(factory, graph.TrainedGraph, "afterfit.graph.TrainedGraph(module, data, ...)")
    chosen = _rule(rule, graph, trained)
    run = run_edges(
        trained, out, chosen, damping=damping, max_rounds=rounds, seed=seed,
        title=f"Edges of {factory}",
    )  # fmt: skip
    tell(run)


def graph_parts() -> tuple[Any, Any]:
    """The graph package and its run, which need PyTorch Geometric.

    Raises
    ------
    FactoryError
        If it is not installed.
    """
    try:
        from afterfit import graph  # the door of the optional package
        from afterfit.workflows.edge_run import run_edges
    except ModuleNotFoundError as error:
        message = (
            f"{error.name} is not installed, expected PyTorch Geometric for graphs: "
            "pip install 'afterfit[graph]'"
        )
        raise FactoryError(message) from None
    return graph, run_edges


def _rule(text: str, graph: Any, trained: Any) -> Any:
    name, _, value = text.partition(":")
    if name == "top" and value.isdigit() and int(value) > 0:
        return graph.Top(int(value))
    alike = {"jaccard": graph.jaccard, "cosine": graph.cosine}
    if text in alike:
        return graph.LeastSimilar(0.01, alike[text])
    if name in alike and _is_number(value):
        return graph.Dissimilar(float(value), alike[name])
    rules = {
        "share": lambda: graph.TopShare(0.01),
        "consistent": graph.Consistent,
        "rge": lambda: graph.Repulsive(graph.published_patience(trained.problem())),
        "strict": lambda: graph.Repulsive(math.inf),
        "ege": lambda: graph.all_opponents,
    }
    if text not in rules:
        message = (
            f"--rule is '{text}', expected {', '.join([*rules, *alike])}, top:NUMBER, "
            "jaccard:LEAST, or cosine:LEAST"
        )
        raise ValueError(message)
    return rules[text]()


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d*\.?\d+", text) is not None


def tell(run: Any) -> None:
    """Print what a run found, and where its report is."""
    figures = run.figures
    console.print(f"{figures['opponents']:,} of {figures['edges']:,} edges are opponents")
    if "removed" in figures:
        told = f"the first {figures['rounds']} of {figures['rounds_tried']} rounds are kept"
        if not figures["removed"]:
            told = "no round clearly helped the held-out nodes, and the graph is as it was"
        console.print(f"{figures['removed']:,} removed: {told}")
    for part in ("held_out", "test"):
        if f"{part}_accuracy_before" in figures:
            before, after = (figures[f"{part}_accuracy_{when}"] for when in ("before", "after"))
            name = part.replace("_", "-")
            console.print(f"accuracy on {name} nodes {before:.4f} -> {after:.4f}")
    console.print(f"report: {run.report}", soft_wrap=True)

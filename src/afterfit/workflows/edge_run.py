"""A run over a graph's edges: scores, additivity, rectification and the report, in one folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import networkx
import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import removals, single_removals
from afterfit.graph.exact import Exact
from afterfit.graph.groups import affected_matrix, exact_radius
from afterfit.graph.influence import EdgeInfluence, edge_influence, prepare
from afterfit.graph.inverse import smaller
from afterfit.graph.problem import GraphProblem
from afterfit.graph.rectify import Rectified, rectify, suited_method
from afterfit.graph.rules import Rule, opponents
from afterfit.graph.target import validation_loss
from afterfit.graph.trained import TrainedGraph
from afterfit.problem.ensemble import fingerprint
from afterfit.problem.folder import alone_in_folder
from afterfit.report import Page, Section, additivity_plot, ego_graph_plot, rounds_plot
from afterfit.workflows.citations import RECTIFICATION
from afterfit.workflows.run import Run, write_run

_log = logging.getLogger(__name__)

SHOWN = 12
"""Worst edges whose surroundings are drawn."""

MOST_NODES = 60
"""Nodes of that picture."""

PAIRS = 60
"""Pairs of edges of each kind in the picture of additivity."""

MEASURES = {
    "validation_loss": "Validation loss",
    "held_out_loss": "Loss on held-out validation nodes",
    "held_out_accuracy": "Accuracy on held-out validation nodes",
    "test_loss": "Test loss",
    "test_accuracy": "Test accuracy",
}


@final
@dataclass(frozen=True)
class EdgeFindings:
    """Which edges hurt, and the graph without them.

    Attributes
    ----------
    influence
        A score for every edge.
    rectified
        The cleaner graph and the network trained on it; None where nothing trains again.
    """

    influence: EdgeInfluence
    rectified: Rectified | None


@alone_in_folder
def run_edges(
    trained: TrainedGraph,
    folder: Path,
    rule: Rule,
    *,
    damping: float | int | None = None,
    max_rounds: int = 100,
    tolerance: float | int = 0.0,
    seed: int = 0,
    title: str = "Edge report",
) -> Run[EdgeFindings]:
    """Score every edge, see which pairs are additive, remove harmful ones, and write the page.

    The folder gets ``edges.csv``, and after a rectification ``rounds.csv`` and ``removed.csv``.

    Parameters
    ----------
    rule
        Chooses the edges of one round.
    damping
        Of the curvature; by default the weight decay of the training.
    tolerance
        Of a round, as in :func:`~afterfit.graph.rectify`.
    """
    problem = trained.problem()
    damped = trained.weight_decay if damping is None else damping
    method = suited_method(problem)
    _log.info(f"scoring {problem.edges.num_edges:,} edges by {type(method).__name__}")
    influence = edge_influence(problem, damping=damped, method=method)
    tables = {"edges": influence.to_pandas()}
    pairs = pairs_of_opponents(problem, influence, damped, seed)
    rectified = None
    if trained.train_again is not None:
        _log.info("removing harmful edges, and training again")
        rectified = rectify(
            problem, trained.train_again, damping=damped, rule=rule, method=method,
            max_rounds=max_rounds, tolerance=tolerance, seed=seed,
        )  # fmt: skip
        tables |= {"rounds": rectified.to_pandas(), "removed": rectified.removed_to_pandas()}
    figures = _figures(influence, pairs, rectified)
    return write_run(
        folder,
        EdgeFindings(influence, rectified),
        _page(title, trained, problem, influence, pairs, rectified, figures),
        figures=figures,
        settings={
            "edges": {
                "method": type(method).__name__, "rule": rule, "damping": damped,
                "max_rounds": max_rounds, "tolerance": tolerance, "seed": seed,
            },
            "input": {"network": fingerprint(problem.problem), "nodes": problem.num_nodes},
        },
        tables=tables,
    )  # fmt: skip


Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def pairs_of_opponents(
    problem: GraphProblem,
    influence: EdgeInfluence,
    damping: float | int,
    seed: int,
    num_pairs: int = PAIRS,
) -> Pairs:
    """Draw pairs among the worst edges, those that interact and those that do not.

    Returns
    -------
    dict
        For ``"neighbors"`` and ``"distant"``: sums of the two influences, and influences of the
        pairs. A kind of which the graph has no pair is missing.
    """
    worst = opponents(influence.score)[:300]
    if len(worst) < 2:
        return {}
    edits = single_removals(problem.edges, worst)
    reached = affected_matrix(problem, edits, exact_radius).astype(np.int64)
    shared = (reached @ reached.T).toarray() > 0
    query = prepare(problem, [validation_loss], damping, smaller)
    found: Pairs = {}
    for name, wanted in (("neighbors", shared), ("distant", ~shared)):
        rows, columns = np.nonzero(np.triu(wanted, 1))
        if not len(rows):
            continue
        generator = Generator().manual_seed(seed)
        drawn = torch.randperm(len(rows), generator=generator)[:num_pairs].numpy()
        ends = [worst[torch.from_numpy(part[drawn].copy())] for part in (rows, columns)]
        groups = [problem.edges.pairs[torch.stack(pair)] for pair in zip(*ends, strict=True)]
        together = Exact().shift(problem, removals(problem.edges, groups), query)[:, 0]
        alone = influence.score[ends[0]] + influence.score[ends[1]]
        found[name] = (alone.cpu().numpy(), together.cpu().numpy())
    return found


def _figures(
    influence: EdgeInfluence, pairs: Pairs, rectified: Rectified | None
) -> dict[str, float | int]:
    figures: dict[str, float | int] = {
        "edges": len(influence.pairs),
        "opponents": len(opponents(influence.score)),
    }
    for name, (sums, together) in pairs.items():
        figures[f"largest_gap_{name}"] = float(np.abs(together - sums).max())
    if rectified is not None:
        first, kept = rectified.history[0], rectified.history[rectified.kept]
        figures |= {"rounds": rectified.kept, "removed": len(rectified.removed)}
        figures["rounds_tried"] = len(rectified.history) - 1
        for name in ("held_out_gain", "held_out_gain_stderr"):
            figures[name] = getattr(kept, name)
        for part in ("validation", "held_out", "test"):
            for measure in ("loss", "accuracy"):
                name = f"{part}_{measure}"
                before, after = getattr(first, name), getattr(kept, name)
                if np.isfinite(before):
                    figures |= {f"{name}_before": before, f"{name}_after": after}
    return figures


def _page(
    title: str,
    trained: TrainedGraph,
    problem: GraphProblem,
    influence: EdgeInfluence,
    pairs: Pairs,
    rectified: Rectified | None,
    figures: dict[str, float | int],
) -> Page:
    sections = [
        Section(
            "Around the worst edges",
            figure=_ego_graph(trained, problem, influence),
            caption="Nodes within one step of the edges whose removal lowers the validation loss "
            "most, colored by class; thick edges are opponents.",
        )
    ]
    if pairs:
        sections.append(_additivity_section(pairs))
    if rectified is not None:
        sections += _round_sections(trained, rectified)
    table = _named_edges(influence.to_pandas().head(100), trained, problem)
    sections.append(Section("The most harmful edges", table=table))
    return Page(
        title=title,
        lead=_lead(figures),
        sections=sections,
        facts=_facts(problem, figures),
        warnings=_warnings(rectified, figures),
        methods="Score: predicted change of the mean validation loss, in nats, when the network is "
        "trained again without the edge and read on the graph as it was. Above 0 the edge helps; "
        "below 0 it is an opponent.",
        citation=RECTIFICATION,
    )


def _lead(figures: dict[str, float | int]) -> str:
    opposed, edges = figures["opponents"], figures["edges"]
    lead = f"{opposed:,} of {edges:,} edges ({opposed / max(1, edges):.0%}) are opponents."
    if "removed" in figures:
        rounds = f"{figures['rounds']} of {figures['rounds_tried']} rounds"
        lead += f" {figures['removed']:,} were removed in {rounds}"
        if not figures["removed"]:
            return f"{lead}: keep the graph."
        if "test_accuracy_before" in figures:
            before, after = figures["test_accuracy_before"], figures["test_accuracy_after"]
            lead += f"; accuracy on test nodes went from {before:.3f} to {after:.3f}"
        lead += "."
    return lead


def _facts(problem: GraphProblem, figures: dict[str, float | int]) -> list[tuple[str, str]]:
    sizes = [f"{len(part):,}" for part in (problem.train, problem.validation, problem.test)]
    nodes = ("Training / validation / test nodes", " / ".join(sizes))
    facts = [("Nodes", f"{problem.num_nodes:,}"), nodes]
    for key, name in MEASURES.items():
        if f"{key}_before" in figures:
            before, after = figures[f"{key}_before"], figures[f"{key}_after"]
            facts.append((name, f"{before:.4f} → {after:.4f}"))
    return facts


def _warnings(rectified: Rectified | None, figures: dict[str, float | int]) -> list[str]:
    if rectified is None:
        return ["Nothing trains the network again (train_again is not given): no edge was removed."]
    if not figures["removed"]:
        best = max(rectified.history, key=lambda record: record.held_out_gain)
        most = f"{best.held_out_gain:.4f} ± {best.held_out_gain_stderr:.4f} nats"
        told = "Keep the graph: no round clearly lowered the loss on held-out validation nodes"
        return [f"{told} (at most by {most}), and it is as it was."]
    return [
        "Validation nodes chose the edges: their loss and accuracy after the rectification are too "
        "good. Held-out validation nodes chose the number of rounds; test nodes chose nothing."
    ]


def _additivity_section(pairs: Pairs) -> Section:
    return Section(
        "Which edges are additive",
        text="Two edges that change the same training node are neighbors: removing both does not "
        "do what the sum of their influences says. Distant pairs lie on the diagonal.",
        figure=additivity_plot(pairs),
    )


def _round_sections(trained: TrainedGraph, rectified: Rectified) -> list[Section]:
    table = rectified.to_pandas()
    series: dict[str, dict[str, Any]] = {}
    for quantity in ("loss", "accuracy"):
        names = {"choosing": "validation", "held out": "held_out", "test": "test"}
        curves = {
            name: table[f"{column}_{quantity}"].to_numpy()
            for name, column in names.items()
            if table[f"{column}_{quantity}"].notna().all()
        }
        if curves:
            series[quantity] = curves
    removed = rectified.removed_to_pandas()
    for end in ("u", "v"):
        removed[end] = [trained.name(int(node)) for node in removed[end]]
    return [
        Section(
            "Rounds",
            text=f"Round {rectified.kept} was kept: the lowest held-out loss of the rounds that "
            "gain clearly more than chance, or round 0, the given graph.",
            figure=rounds_plot(series),
            table=table[["number", "removed", "predicted", "actual"]],
        ),
        Section("Removed edges", table=removed),
    ]


def _named_edges(table: pd.DataFrame, trained: TrainedGraph, problem: GraphProblem) -> pd.DataFrame:
    """Edges with the names and classes of their nodes."""
    y = problem.y.cpu()
    named = pd.DataFrame({"rank": table["rank"], "score": table["score"]})
    for end in ("u", "v"):
        nodes = table[end].to_numpy()
        named[end] = [trained.name(int(node)) for node in nodes]
        if y.ndim == 1 and not y.is_floating_point():
            kinds = [int(y[int(node)]) for node in nodes]
            named[f"class of {end}"] = [
                str(trained.classes[k]) if k < len(trained.classes) else str(k) for k in kinds
            ]
    return named


def _ego_graph(trained: TrainedGraph, problem: GraphProblem, influence: EdgeInfluence) -> str:
    """Draw the neighborhood of the worst edges."""
    worst = influence.score.argsort()[:SHOWN].cpu()
    centers = influence.pairs.cpu()[worst].flatten().unique()
    nodes, inside = _around(problem.edges, centers)
    place = {int(node): k for k, node in enumerate(nodes)}
    pairs = problem.edges.pairs.cpu()[inside]
    edges = np.array([[place[int(u)], place[int(v)]] for u, v in pairs])
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from(map(tuple, edges.tolist()))
    layout = networkx.spring_layout(graph, seed=0, k=1.6 / max(1, len(nodes)) ** 0.5)
    y = problem.y.cpu()
    kinds = y[nodes].long() if y.ndim == 1 else torch.zeros(len(nodes)).long()
    return ego_graph_plot(
        np.array([layout[k] for k in range(len(nodes))]),
        edges,
        influence.score.cpu()[inside].numpy(),
        kinds.numpy(),
        [trained.name(int(node)) for node in nodes],
        [place[int(node)] for node in centers if int(node) in place],
    )


def _around(edges: EdgeList, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes within a step of the centers, nearest first, and the edges among them."""
    pairs = edges.pairs.cpu()
    touched = torch.isin(pairs, centers).any(1)
    others = pairs[touched].flatten().unique()
    others = others[~torch.isin(others, centers)]
    nodes = torch.cat([centers, others])[:MOST_NODES]
    return nodes, torch.isin(pairs, nodes).all(1).nonzero()[:, 0]

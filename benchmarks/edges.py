"""Time of edge scores, as ratios to one full-graph gradient an edge; scale of first-order scores.

    python benchmarks/edges.py cora --data DATA/graphs
    python benchmarks/edges.py scale --threads 1
    python benchmarks/edges.py solve --data DATA/graphs

`cora`: SGC (closed form) and GCN-16 (exact), all 5,278 edges. The authors' code computes the
gradient of the training loss on the whole graph once an edge; that is timed on a few edges and
multiplied. `scale`: a graph of 169,343 nodes and more than 1.1 million edges, degrees by a power
law, 128 features, GCN with 64 hidden units, float32. Steps are timed apart: those of
`graph.screened_influence(problem, 20)`, and a check on the whole graph. `solve`: binding SGC to
CiteSeer (3,703 features), and its solve: on propagated features, by the dual, and with a pass over
the whole graph for each product.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional
from torch_geometric.data import Data

from afterfit import graph
from afterfit.curvature import CG, Gram, inverse
from afterfit.graph.edits import single_removals
from afterfit.graph.influence import prepare
from afterfit.graph.inverse import NodeRoot, target_gradient
from afterfit.graph.memory import weight_derivative_bytes
from afterfit.problem.persample import unflatten

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments" / "rge"))
import data as graphs


def gradient_seconds(module, data, edges, num: int = 5) -> float:
    """One gradient of the training loss on the whole graph without an edge."""
    parameters = list(module.parameters())
    start = time.perf_counter()
    for i in range(num):
        edge_index = edges.without(torch.tensor([i])).edge_index()
        outputs = module(data.x, edge_index)[data.train_mask]
        torch.autograd.grad(functional.cross_entropy(outputs, data.y[data.train_mask]), parameters)
    return (time.perf_counter() - start) / num


def clock(function):
    start = time.perf_counter()
    found = function()
    return found, time.perf_counter() - start


def cora(folder: Path) -> None:
    data = graphs.load(folder, "Cora")
    edges = graph.union(data.edge_index, data.num_nodes)
    sgc = graphs.SgcTrainer(data, 8.5e-6)
    module, training = clock(lambda: sgc(edges.edge_index()))
    problem = graph.graph_problem(module, data)
    one = gradient_seconds(module, data, edges)
    closed, seconds = clock(
        lambda: graph.edge_influence(problem, damping=1.7e-5, method=graph.ClosedForm())
    )
    report("SGC, closed form, all edges", edges.num_edges, one, seconds)
    exact, seconds = clock(lambda: graph.edge_influence(problem, damping=1.7e-5))
    report("SGC, exact, all edges", edges.num_edges, one, seconds)
    gap = float((closed.shift - exact.shift).abs().max() / closed.shift.abs().max())
    print(f"  largest difference of the two / largest score: {gap:.1e}")
    first = graph.edge_influence(problem, damping=1.7e-5, method=graph.FirstOrder()).shift
    worst = first.argsort()[:100]
    quantiles = (closed.shift[worst] / first[worst]).quantile(
        torch.tensor([0, 0.1, 0.5, 0.9, 1]).double()
    )
    told = ", ".join(f"{q:.2f}" for q in quantiles.tolist())
    print(f"  exact over first order, the 100 worst by first order (0, .1, .5, .9, 1): {told}")
    found, seconds = clock(lambda: graph.published(problem, sgc, weight_decay=8.5e-6))
    rounds = len(found.history) - 1
    candidates = sum(
        len(nodes) > 0 for nodes in graph.affected_nodes(problem, "all", graph.paper_radius)
    )
    theirs = rounds * (candidates * one + training)
    print(
        f"RGE on Cora, {rounds} rounds: {seconds:.1f} s; one gradient for each of {candidates} "
        f"candidates a round: {theirs:.0f} s ({theirs / seconds:.0f} times)"
    )
    gcn = graphs.GnnTrainer(data, graphs.Gcn, epochs=60, rate=0.05)(edges.edge_index())
    problem = graph.graph_problem(gcn, data)
    one = gradient_seconds(gcn, data, edges)
    exact, seconds = clock(lambda: graph.edge_influence(problem, damping=1e-2))
    report("GCN-16, exact with its solve, all edges", edges.num_edges, one, seconds)
    _, seconds = clock(
        lambda: graph.edge_influence(problem, damping=1e-2, method=graph.FirstOrder())
    )
    report("GCN-16, first order with its solve, all edges", edges.num_edges, one, seconds)


def report(name: str, num_edges: int, one: float, seconds: float) -> None:
    print(
        f"{name}: {seconds:.2f} s; one gradient an edge: {num_edges * one:.0f} s "
        f"({num_edges * one / seconds:.0f} times)"
    )


def power_law(num_nodes: int, num_edges: int, generator: torch.Generator) -> torch.Tensor:
    """Endpoints drawn in proportion to weights of a power law with exponent 2.5."""
    weights = (torch.arange(num_nodes, dtype=torch.float64) + 10) ** (-1 / 1.5)
    cumulative = weights.cumsum(0)
    ends = (
        torch.rand(2, round(1.15 * num_edges), generator=generator, dtype=torch.float64)
        * cumulative[-1]
    )
    return torch.searchsorted(cumulative, ends).clamp_max(num_nodes - 1)


def scale(damping: float) -> None:
    generator = torch.Generator().manual_seed(0)
    num_nodes, num_classes = 169_343, 40
    train = torch.rand(num_nodes, generator=generator) < 0.54
    data = Data(
        x=torch.randn(num_nodes, 128, generator=generator),
        y=torch.randint(0, num_classes, (num_nodes,), generator=generator),
        edge_index=power_law(num_nodes, 1_166_243, generator),
        train_mask=train,
        val_mask=~train,
    )
    edges = graph.union(data.edge_index, num_nodes)
    degrees = torch.bincount(edges.pairs.flatten())
    print(
        f"{num_nodes:,} nodes, {edges.num_edges:,} edges, largest degree {int(degrees.max()):,}, "
        f"{int(train.sum()):,} training nodes"
    )
    torch.manual_seed(0)
    module = graphs.Gcn(128, num_classes, 64)
    problem, seconds = clock(lambda: graph.graph_problem(module, data))
    print(f"graph_problem: {seconds:.0f} s")
    query, seconds = clock(lambda: prepare(problem, [graph.validation_loss], damping))
    print(
        f"the solve: {seconds:.0f} s, {query.solved.steps} products, residual "
        f"{query.solved.residual:.0e}; peak {peak():.1f} GB"
    )
    columns = edges.edge_index().shape[1]
    need = weight_derivative_bytes(problem, columns) / 1e9
    every = single_removals(edges, torch.arange(edges.num_edges))
    found, seconds = clock(lambda: graph.FirstOrder().shift(problem, every, query)[:, 0])
    print(
        f"first order, all edges: {seconds:.0f} s, estimated at {need:.1f} GB; peak {peak():.1f} GB"
    )
    worst = found.argsort()[:20]
    ends = degrees[edges.pairs[worst]].sum(1)
    edits = single_removals(edges, worst)
    exact, seconds = clock(lambda: graph.Exact().shift(problem, edits, query)[:, 0])
    both = torch.stack([exact, found[worst]])
    print(
        f"exact, the 20 worst: {seconds:.0f} s, degrees of their two ends together "
        f"{int(ends.min()):,} to {int(ends.max()):,}, correlation with first order "
        f"{float(torch.corrcoef(both)[0, 1]):.3f}; peak {peak():.1f} GB"
    )
    ratios = (exact / found[worst]).tolist()
    print(f"exact over first order: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    expected, seconds = clock(lambda: whole_graph(problem, edits, query, num=3))
    gap = float((exact[:3] - expected).abs().max() / exact.abs().max())
    print(
        f"the first 3 by the whole graph without the edge: {seconds:.0f} s, largest difference / "
        f"largest score {gap:.0e} (float32)"
    )


def solve(folder: Path) -> None:
    data = graphs.load(folder, "CiteSeer")
    edges = graph.union(data.edge_index, data.num_nodes)
    module = graphs.SgcTrainer(data, 8.5e-6, rate=0.5)(edges.edge_index())
    problem, seconds = clock(lambda: graph.graph_problem(module, data))
    _, wide = clock(lambda: module(data.x, edges.edge_index()))
    print(f"CiteSeer, binding SGC: {seconds:.2f} s; one pass of the module: {wide:.2f} s")
    columns = target_gradient(problem, graph.validation_loss)[:, None]
    damping, steps = 1e-3, CG(5e-11, 2_000)
    ways = {
        "a pass over the graph a product": lambda: inverse(
            Gram(NodeRoot(problem)), damping, steps
        ).solve(columns),
        "propagated features": lambda: graph.conjugate_gradients(problem, columns, damping),
        "dual": lambda: graph.dual(problem, columns, damping),
    }
    slowest = expected = None
    for name, way in ways.items():
        found, seconds = clock(way)
        slowest = slowest or seconds
        expected = found.value if expected is None else expected
        gap = float((found.value - expected).norm() / expected.norm())
        print(
            f"solve, {name}: {seconds:.3f} s, {found.steps} steps, {slowest / seconds:.0f} times "
            f"faster than the first, difference {gap:.0e}",
            flush=True,
        )


def whole_graph(problem, edits, query, num: int) -> torch.Tensor:
    """Scores by one derivative of the training loss on the whole graph for each edge."""
    params = problem.problem.params
    u = unflatten(query.solved.value[:, 0].float(), params)

    def slope(edge_index: torch.Tensor) -> torch.Tensor:
        def losses(at):
            return problem.train_losses(problem.forward(at, edge_index))

        return torch.func.jvp(losses, (dict(params),), (u,))[1].double()

    before = slope(edits.graph.edge_index())
    after = [slope(edits.edited(i).edge_index()) for i in range(num)]
    return -torch.stack([(rows - before).mean() for rows in after])


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["cora", "scale", "solve"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--damping", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    commands = {
        "cora": lambda: cora(options.data),
        "scale": lambda: scale(options.damping),
        "solve": lambda: solve(options.data),
    }
    commands[options.command]()


if __name__ == "__main__":
    main()

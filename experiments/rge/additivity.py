"""Section 4.3: which pairs and groups of edges are additive, estimated and trained again (SGC).

    python experiments/rge/additivity.py run --data DATA/graphs
    python experiments/rge/additivity.py table

Pairs are drawn from the 300 strongest opponents. The relative gap of a class is Σ|group − sum| / Σ|sum|.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from command import parser_of
from correlation import optimum, truths
from data import SgcTrainer, load

from afterfit import graph
from afterfit.graph.problem import GraphProblem

RESULTS = Path(__file__).parent / "results" / "additivity"
CLASSES = ("training endpoint", "other endpoint", "paper radius", "exact radius only", "distant")


def classes(problem: GraphProblem, pairs: torch.Tensor) -> list[list[tuple[int, int]]]:
    """Pairs of positions, by how the two edges meet."""
    exact = [set(nodes.tolist()) for nodes in graph.affected_nodes(problem, pairs)]
    paper = [set(n.tolist()) for n in graph.affected_nodes(problem, pairs, graph.paper_radius)]
    train, ends = set(problem.train.tolist()), [set(edge) for edge in pairs.tolist()]
    found: list[list[tuple[int, int]]] = [[] for _ in CLASSES]
    for i, j in itertools.combinations(range(len(pairs)), 2):
        shared = ends[i] & ends[j]
        if shared:
            found[0 if shared & train else 1].append((i, j))
        elif paper[i] & paper[j]:
            found[2].append((i, j))
        elif exact[i] & exact[j]:
            found[3].append((i, j))
        else:
            found[4].append((i, j))
    return found


def run(folder: Path, name: str, decay: float, per_class: int, retrain: int) -> dict:
    data = load(folder, name)
    start = SgcTrainer(data, decay)(data.edge_index)
    whole = graph.union(data.edge_index, data.num_nodes)
    with torch.no_grad():
        start.lin.weight.copy_(optimum(data, whole, decay, start.lin.weight.detach().clone()))
    problem = graph.graph_problem(start, data)
    scores = graph.edge_influence(problem, damping=decay, method=graph.ClosedForm()).shift
    worst = scores.argsort()[:300]
    pairs = problem.edges.pairs[worst]
    generator = np.random.default_rng(0)
    rows = {}
    for label, members in zip(CLASSES, classes(problem, pairs), strict=True):
        order = generator.permutation(len(members))[:per_class]
        chosen = torch.tensor([members[i] for i in order]).reshape(-1, 2)
        if not len(chosen):
            continue
        groups = [pairs[pair] for pair in chosen]
        group = graph.group_influence(problem, groups, damping=decay).numpy()
        total = scores[worst[chosen]].sum(1).numpy()
        few = chosen[:retrain]
        positions = [problem.edges.positions(pairs[pair]) for pair in few]
        joint = truths(data, problem, decay, [problem.edges.without(p) for p in positions])
        alone = {
            int(i): truths(data, problem, decay, [problem.edges.without(worst[i][None])])[0]
            for i in few.unique()
        }
        sums = np.array([sum(alone[int(i)] for i in pair) for pair in few])
        rows[label] = {
            "pairs": len(members),
            "estimate": float(np.abs(group - total).sum() / np.abs(total).sum()),
            "largest_gap": float(np.abs(group - total).max()),
            "retrained": float(np.abs(joint - sums).sum() / np.abs(sums).sum()),
        }
    everything = problem.edges.pairs[scores < 0]
    opponents = graph.additivity_gap(problem, everything, damping=decay)
    positions = problem.edges.positions(everything)
    actual = truths(data, problem, decay, [problem.edges.without(positions)])[0]
    return {
        "dataset": name,
        "weight_decay": decay,
        "classes": rows,
        "largest_score": float(scores.abs().max()),
        "all_opponents": {
            "edges": len(everything),
            "sum": opponents.total,
            "group": opponents.group,
            "retrained": float(actual),
        },
    }


def table() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        print(
            f"\n{found['dataset']}, weight decay {found['weight_decay']:g}: relative gap estimated, retrained; largest gap / largest score"
        )
        for label, row in found["classes"].items():
            print(
                f"  {label:20s} {row['pairs']:6d} pairs  {row['estimate']:.1e}  {row['retrained']:.1e}  {row['largest_gap'] / found['largest_score']:.1e}"
            )
        row = found["all_opponents"]
        print(
            f"  all {row['edges']} opponents at once: sum {row['sum']:.4f}, group {row['group']:.4f}, retrained {row['retrained']:.4f}"
        )


def main() -> None:
    parser = parser_of(__doc__, ["Cora", "CiteSeer"])
    parser.add_argument("--decays", type=float, nargs="+", default=[1e-3, 8.5e-6])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--retrain", type=int, default=15)
    options = parser.parse_args()
    if options.command == "table":
        table()
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for decay in options.decays:
        for name in options.datasets:
            found = run(options.data, name, decay, options.pairs, options.retrain)
            (RESULTS / f"{name}-{decay:g}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(name, decay, found["classes"], flush=True)


if __name__ == "__main__":
    main()

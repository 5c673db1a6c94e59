"""Section 4.5: rectification where a quarter of the edges is noise (SGC on Cora).

    python experiments/rge/noise.py run --data DATA/graphs --seeds 2
    python experiments/rge/noise.py table

Random pairs of nodes of different classes are added, 25 % of the number of edges. Targets are read on the noisy graph: it
is the one that is given. Precision: share of added edges among the fifty worst candidates, beside their share of all
candidates (edges with a training node within two hops).
"""

import json
from pathlib import Path

import numpy as np
import torch
from command import options_of
from data import RATE, WEIGHT_DECAY, SgcTrainer, load

from afterfit import graph
from afterfit.evaluate import auc

RESULTS = Path(__file__).parent / "results" / "noise"


def noisy_pairs(data, edges, num: int, seed: int) -> torch.Tensor:
    """Pairs of nodes of different classes that are no edges."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(0, 2, dtype=torch.long)
    known = {tuple(pair) for pair in edges.pairs.tolist()}
    while len(found) < num:
        pairs = torch.randint(0, data.num_nodes, (4 * num, 2), generator=generator).sort(1).values
        pairs = pairs[data.y[pairs[:, 0]] != data.y[pairs[:, 1]]]
        new = [pair for pair in pairs.tolist() if tuple(pair) not in known]
        found = torch.cat([found, torch.tensor(new)]).unique(dim=0)
    return found[torch.randperm(len(found), generator=generator)[:num]]


def run(folder: Path, name: str, seed: int) -> dict:
    data = load(folder, name)
    clean = graph.union(data.edge_index, data.num_nodes)
    added = noisy_pairs(data, clean, round(0.25 * clean.num_edges), seed)
    noisy = clean.joined(added)
    data.edge_index = noisy.edge_index()
    decay = WEIGHT_DECAY[name]
    trainer = SgcTrainer(data, decay, RATE.get(name, 0.2), seed=42 + seed)
    problem = graph.graph_problem(trainer(data.edge_index), data)
    scores = graph.edge_influence(problem, damping=2 * decay, method=graph.ClosedForm()).shift
    fake = torch.zeros(noisy.num_edges, dtype=torch.bool)
    fake[noisy.positions(added)] = True
    candidate = torch.tensor([len(nodes) > 0 for nodes in graph.affected_nodes(problem)])
    base = float(fake[candidate].double().mean())
    precision = float(fake[scores.argsort()[:50]].double().mean())
    area = float(auc(-scores[candidate], fake[candidate]))
    published = graph.published(problem, trainer, weight_decay=decay)
    default = graph.rectify(
        problem,
        trainer,
        damping=2 * decay,
        rule=graph.TopShare(0.01),
        seed=seed,
        keep=graph.best_held_out,
    )
    once = graph.rectify(
        problem,
        trainer,
        damping=2 * decay,
        rule=graph.all_opponents,
        held_out=0.0,
        keep=graph.last_round,
    )
    accuracy = {
        "base": published.history[0].test_accuracy,
        "rge": published.history[published.kept].test_accuracy,
        "default": default.history[default.kept].test_accuracy,
        "ege": once.history[once.kept].test_accuracy,
    }
    return {
        "dataset": name,
        "seed": seed,
        "accuracy": accuracy,
        "auroc": area,
        "precision_50": precision,
        "base_rate": base,
    }


def table() -> None:
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    for r in runs:
        cells = "  ".join(f"{rule} {100 * value:.1f}" for rule, value in r["accuracy"].items())
        print(
            f"{r['dataset']} seed {r['seed']}: test accuracy {cells}; AUROC {r['auroc']:.2f}, precision@50 {r['precision_50']:.2f} (base rate {r['base_rate']:.2f})"
        )
    if len(runs) > 1:
        for rule in ("rge", "default", "ege"):
            gains = np.array([100 * (r["accuracy"][rule] - r["accuracy"]["base"]) for r in runs])
            print(
                f"gain of {rule}: {gains.mean():.1f} ± {gains.std(ddof=1) / len(gains) ** 0.5:.1f}"
            )


def main() -> None:
    options = options_of(__doc__, ["Cora"], seeds=2)
    if options.command == "table":
        table()
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.datasets:
        for seed in range(options.seeds):
            found = run(options.data, name, seed)
            (RESULTS / f"{name}-{seed}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(found, flush=True)


if __name__ == "__main__":
    main()

"""What the validation labels are worth: train on them, or let them choose edges (SGC).

    python experiments/rge/baseline.py run --data DATA/graphs --datasets Cora CiteSeer wisconsin --seeds 10
    python experiments/rge/baseline.py table

Rectification uses the labels of validation nodes. Who has them may train on them instead, and that is the honest base
line. `--splits public` takes the published split of Cora and CiteSeer (seeds are of the initial weights); `--splits
random` draws 20 training nodes a class, 500 validation and 1,000 test nodes anew for each seed; Wisconsin has ten splits
of its own; `--splits noisy` is the
public split with a quarter more edges, drawn at random between classes. Ways beyond the base line:

    rectified            edges by validation nodes (the default rule, all rounds), network trained on the training labels
    rectified-then-both  the same graph, network then trained on training and validation labels
    folds                five folds of all labels: edges that are opponents of the folds' losses, each by the network
                         that was trained on the other four; the round of lowest folded loss; then trained on all
    folds-one            the same, one round
    unlabeled            edges by the guesses of the network of all labels on unlabeled nodes, three rounds

Ways were compared on the `other` nodes of Cora (in no mask of the split) and are reported on test nodes.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from command import parser_of
from data import RATE, WEIGHT_DECAY, SgcTrainer, load
from noise import noisy_pairs
from torch import Generator, Tensor
from torch.nn import functional
from torch_geometric.data import Data

from afterfit import graph
from afterfit.graph.edges import EdgeList
from afterfit.graph.rules import opponents

RESULTS = Path(__file__).parent / "results" / "baseline"
WAYS = ("train", "both", "rectified", "rectified-then-both", "folds", "folds-one", "unlabeled")
SHARE, FOLDS, ROUNDS, SCORE_DAMPING = 0.01, 5, 3, 1e-4
"""Of the ways with folds and guesses; scores of many training nodes are solved for at more damping."""


def split_of(folder: Path, name: str, splits: str, seed: int) -> Data:
    data = load(folder, name, 0 if name in ("Cora", "CiteSeer") else seed)
    if splits == "random" and name in ("Cora", "CiteSeer"):
        order = torch.randperm(data.num_nodes, generator=Generator().manual_seed(seed))
        kinds = [order[data.y[order] == c][:20] for c in range(int(data.y.max()) + 1)]
        train = torch.cat(kinds)
        rest = order[~torch.isin(order, train)]
        masks = {"train_mask": train, "val_mask": rest[:500], "test_mask": rest[500:1500]}
        for part, nodes in masks.items():
            data[part] = torch.zeros(data.num_nodes, dtype=torch.bool)
            data[part][nodes] = True
    if splits == "noisy":
        clean = graph.union(data.edge_index, data.num_nodes)
        added = noisy_pairs(data, clean, round(0.25 * clean.num_edges), seed)
        data.edge_index = clean.joined(added).edge_index()
    return data


def masked(data: Data, **masks: Tensor) -> Data:
    other = data.clone()
    for name, mask in masks.items():
        other[name] = mask
    return other


def run(folder: Path, name: str, splits: str, seed: int, ways: list[str]) -> dict:
    data = split_of(folder, name, splits, seed)
    decay = WEIGHT_DECAY[name]
    trainer = SgcTrainer(data, decay, RATE.get(name, 0.2), seed=42 + seed)
    labeled = data.train_mask | data.val_mask
    on_all = replace(trainer, data=masked(data, train_mask=labeled))
    edges = graph.union(data.edge_index, data.num_nodes)
    found, start = {}, time.perf_counter()

    def note(way: str, module) -> None:
        with torch.no_grad():
            right = module(data.x, edges.edge_index()).argmax(1) == data.y
        rest = ~(labeled | data.test_mask)
        found[way] = {
            "test": 100 * float(right[data.test_mask].double().mean()),
            "other": 100 * float(right[rest].double().mean()) if bool(rest.any()) else None,
        }

    module, whole = trainer(edges.edge_index()), on_all(edges.edge_index())
    note("train", module)
    note("both", whole)
    if "rectified" in ways:
        cleaner = graph.rectify(
            graph.graph_problem(module, data), trainer, damping=2 * decay, held_out=0.0,
            keep=graph.last_round, max_rounds=40,
        )  # fmt: skip
        note("rectified", trainer(cleaner.edge_index()))
        note("rectified-then-both", on_all(cleaner.edge_index()))
    if "folds" in ways:
        stages, losses = folded(data, labeled, trainer, edges, seed)
        note("folds", on_all(stages[int(np.argmin(losses))].edge_index()))
        note("folds-one", on_all(stages[1].edge_index()))
        found["folds"]["losses"] = losses
    if "unlabeled" in ways:
        note("unlabeled", on_all(guessed(data, labeled, on_all, whole, edges).edge_index()))
    return {
        "dataset": name, "splits": splits, "seed": seed, "ways": found,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def folded(
    data: Data, labeled: Tensor, trainer: SgcTrainer, edges: EdgeList, seed: int
) -> tuple[list[EdgeList], list[float]]:
    """Graphs of all rounds, and the loss of every label by a network that did not see it."""
    nodes = labeled.nonzero()[:, 0]
    order = torch.randperm(len(nodes), generator=Generator().manual_seed(seed))
    parts = [nodes[part] for part in order.tensor_split(FOLDS)]
    stages, losses = [edges], []
    while True:
        scores, missed = [], 0.0
        for part in parts:
            held = torch.zeros_like(labeled)
            held[part] = True
            view = masked(data, train_mask=labeled & ~held, val_mask=held, test_mask=~labeled)
            module = replace(trainer, data=view)(stages[-1].edge_index())
            problem = replace(graph.graph_problem(module, view), edges=stages[-1])
            missed += float(functional.cross_entropy(problem.outputs(edges)[part], data.y[part]))
            if len(stages) <= ROUNDS:
                scores.append(influence(problem))
        losses.append(missed / FOLDS)
        if len(stages) > ROUNDS:
            return stages, losses
        columns = torch.stack(scores, 1)
        mean, stderr = columns.mean(1), columns.std(1) / FOLDS**0.5
        worst = opponents(mean)
        worst = worst[mean[worst] < -stderr[worst]][: round(SHARE * edges.num_edges)]
        stages.append(stages[-1].without(worst))


def guessed(data: Data, labeled: Tensor, trainer: SgcTrainer, module, edges: EdgeList) -> EdgeList:
    """Edges that raise the loss of the network's own guesses on the nodes without labels."""
    with torch.no_grad():
        guesses = module(data.x, edges.edge_index()).argmax(1)
    view = masked(data, train_mask=labeled, val_mask=~labeled)
    del view.test_mask
    view.y = torch.where(labeled, data.y, guesses)
    left = edges
    for _ in range(ROUNDS):
        problem = graph.graph_problem(module, view)
        scores = influence(replace(problem, edges=left))
        left = left.without(opponents(scores)[: round(SHARE * edges.num_edges)])
        module = trainer(left.edge_index())
    return left


def influence(problem: graph.GraphProblem) -> Tensor:
    return graph.edge_influence(
        problem, damping=SCORE_DAMPING, method=graph.ClosedForm(),
        inverse=graph.conjugate_gradients,
    ).shift  # fmt: skip


def table() -> None:
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    print(
        "accuracy in % ± standard error over seeds (public: initial weights alone) or splits; paired difference from `both`"
    )
    for name, splits in sorted({(r["dataset"], r["splits"]) for r in runs}):
        mine = [r for r in runs if (r["dataset"], r["splits"]) == (name, splits)]
        print(f"\n{name}, {splits} splits")
        for way in WAYS:
            here = [r["ways"] for r in mine if way in r["ways"]]
            if not here:
                continue
            print(f"{way:20s} ({len(here):2d})  test {cell(here, way, 'test')}", end="")
            print(f"   other {cell(here, way, 'other')}" if here[0][way]["other"] else "")


def cell(runs: list[dict], way: str, nodes: str) -> str:
    values = np.array([r[way][nodes] for r in runs])
    difference = values - np.array([r["both"][nodes] for r in runs])
    mean, gap = (
        f"{v.mean():{f}} ± {stderr(v):.2f}" for v, f in ((values, ".2f"), (difference, "+.2f"))
    )
    return f"{mean} ({gap})"


def stderr(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def main() -> None:
    parser = parser_of(__doc__, ["Cora", "CiteSeer", "wisconsin"], seeds=10)
    parser.add_argument("--splits", choices=["public", "random", "noisy"], default="random")
    parser.add_argument("--ways", nargs="+", default=["rectified", "folds", "unlabeled"])
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after so many")
    options = parser.parse_args()
    if options.command == "table":
        table()
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for seed in range(options.seeds):
        for name in options.datasets:
            path = RESULTS / f"{name}-{options.splits}-{seed}.json"
            if path.exists() or time.monotonic() - start > 60 * options.minutes:
                continue
            found = run(options.data, name, options.splits, seed, options.ways)
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(path.name, f"{found['seconds']:.0f} s", found["ways"], flush=True)


if __name__ == "__main__":
    main()

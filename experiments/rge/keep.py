"""When to keep the graph: rounds of the default rule on heterophilic graphs, and which of them each way of keeping takes.

    python experiments/rge/keep.py run --data DATA/graphs --datasets chameleon_filtered texas --seeds 10
    python experiments/rge/keep.py table

A run is one split with a fifth of its validation nodes held out; every round is written down. The table reads off which
round `ClearGain(errors)` keeps for several numbers of standard errors (0 is `best_held_out`), and what that does to test
loss and accuracy. Two was set before any of them was run. squirrel_filtered, actor and minesweeper are the
.npz files of Platonov et al. (2023); put them into the folder.
"""

import json
import time
from pathlib import Path

import numpy as np
from command import parser_of
from data import RATE, WEIGHT_DECAY, SgcTrainer, load

from afterfit import graph
from afterfit.graph.rectify import RoundRecord

RESULTS = Path(__file__).parent / "results" / "keep"
FIRST = ("chameleon_filtered", "texas")
ERRORS = (0.0, 1.0, 2.0, 3.0)
MEASURES = (
    "held_out_loss", "held_out_gain", "held_out_gain_stderr", "test_loss", "test_accuracy",
)  # fmt: skip


def run(folder: Path, name: str, seed: int, rounds: int) -> dict:
    public = name in ("Cora", "CiteSeer")
    data = load(folder, name, 0 if public else seed)
    decay = WEIGHT_DECAY.get(name, 1e-5)
    trainer = SgcTrainer(data, decay, RATE.get(name, 0.2), seed=42 + seed)
    edges = graph.union(data.edge_index, data.num_nodes)
    problem = graph.graph_problem(trainer(edges.edge_index()), data)
    start = time.perf_counter()
    found = graph.rectify(problem, trainer, damping=2 * decay, max_rounds=rounds, seed=seed)
    history = [{key: getattr(r, key) for key in MEASURES} for r in found.history]
    return {
        "dataset": name, "seed": seed, "seconds": time.perf_counter() - start, "history": history,
    }  # fmt: skip


def kept(history: list[dict], errors: float) -> int:
    """As `ClearGain`, on what was written down."""
    records = [
        RoundRecord(
            number, np.zeros((0, 2)), 0.0, 0.0, 0.0, r["held_out_loss"], r["test_loss"],  # pyright: ignore[reportArgumentType]
            r["held_out_gain"], r["held_out_gain_stderr"], 0.0, 0.0, r["test_accuracy"],
        )
        for number, r in enumerate(history)
    ]  # fmt: skip
    return graph.ClearGain(errors)(records)


def table() -> None:
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    print(
        "standard errors asked: graphs kept as they were of all; change of test loss, of test accuracy in points (mean ± s.e. over splits)"
    )
    for name in sorted({r["dataset"] for r in runs}, key=lambda n: (n not in FIRST, n)):
        mine = [r["history"] for r in runs if r["dataset"] == name]
        rounds = max(len(h) for h in mine) - 1
        print(f"\n{name}, {len(mine)} runs of at most {rounds} rounds")
        show("last round", mine, [len(h) - 1 for h in mine])
        for errors in ERRORS:
            show(f"{errors:g}", mine, [kept(h, errors) for h in mine])


def show(title: str, histories: list[list[dict]], rounds: list[int]) -> None:
    cells = []
    for key, scale in (("test_loss", 1.0), ("test_accuracy", 100.0)):
        pairs = zip(histories, rounds, strict=True)
        change = scale * np.array([h[k][key] - h[0][key] for h, k in pairs])
        error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else float("nan")
        cells.append(f"{change.mean():+.3f} ± {error:.3f}")
    print(f"{title:10s} kept {sum(k == 0 for k in rounds)} of {len(rounds)};  {';  '.join(cells)}")


def main() -> None:
    parser = parser_of(__doc__, [*FIRST, "cornell", "wisconsin"], seeds=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after so many")
    options = parser.parse_args()
    if options.command == "table":
        table()
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for seed in range(options.seeds):
        for name in options.datasets:
            path = RESULTS / f"{name}-{seed}.json"
            if path.exists() or time.monotonic() - start > 60 * options.minutes:
                continue
            found = run(options.data, name, seed, options.rounds)
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(path.name, f"{found['seconds']:.0f} s", len(found["history"]) - 1, flush=True)


if __name__ == "__main__":
    main()

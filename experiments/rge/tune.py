"""Rate and weight decay of SGC on filtered chameleon, chosen by validation loss alone (mean over splits, no edge removed).

python experiments/rge/tune.py run --data DATA/graphs
python experiments/rge/tune.py table
"""

import itertools
import json
from pathlib import Path

import numpy as np
from command import options_of
from data import SgcTrainer, load, train_features
from torch.nn import functional

from afterfit import graph

RESULTS = Path(__file__).parent / "results" / "tune"
RATES, DECAYS = (0.05, 0.2, 0.5), (1e-6, 1e-5, 1e-4, 1e-3)


def run(folder: Path, name: str, rate: float, decay: float, splits: int) -> dict:
    losses = []
    for split in range(splits):
        data = load(folder, name, split)
        weight = SgcTrainer(data, decay, rate, seed=42)(data.edge_index).lin.weight.detach()
        nodes = data.val_mask.nonzero()[:, 0]
        z = train_features(data.x, graph.union(data.edge_index, data.num_nodes), nodes)
        losses.append(float(functional.cross_entropy(z @ weight.T, data.y[nodes])))
    return {"dataset": name, "rate": rate, "weight_decay": decay, "validation_loss": losses}


def table() -> None:
    print("rate, weight decay: mean validation loss ± standard error over splits")
    runs = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    for found in sorted(runs, key=lambda r: np.mean(r["validation_loss"])):
        losses = np.array(found["validation_loss"])
        error = losses.std(ddof=1) / len(losses) ** 0.5
        print(
            f"{found['dataset']} {found['rate']:g} {found['weight_decay']:g}: {losses.mean():.4f} ± {error:.4f}"
        )


def main() -> None:
    options = options_of(__doc__, datasets=["chameleon_filtered"], seeds=5)
    if options.command == "table":
        table()
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, rate, decay in itertools.product(options.datasets, RATES, DECAYS):
        found = run(options.data, name, rate, decay, options.seeds)
        (RESULTS / f"{name}-{rate:g}-{decay:g}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

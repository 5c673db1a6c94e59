"""RGE as published (SGC, no node held out, last round) beside the authors' numbers and a reference implementation.

python experiments/rge/search.py run --data DATA/graphs --rules rge --held 0 --seeds 10 --datasets Cora CiteSeer texas-directed wisconsin-directed
python experiments/rge/published.py table
"""

import json

import numpy as np
from command import options_of
from search import RESULTS

REFERENCE = {
    "Cora": ("81.00 to 84.50", "84.10 ± .22"),
    "CiteSeer": ("71.90 to 73.75", "73.67 ± .12"),
    "texas-directed": ("63.24 to 63.24", "63.24 ± 1.99"),
    "wisconsin-directed": ("64.90 to 68.84", "69.22 ± 1.04"),
}
"""Test accuracy: the authors' README before and after, and a reference implementation after."""


def table(datasets: list[str]) -> None:
    print("test accuracy before, after (± standard error); each run; rounds; validation loss")
    for name in datasets:
        paths = sorted(RESULTS.glob(f"{name}-rge-*-held0-ridge2.json"))
        runs = sorted((json.loads(path.read_text()) for path in paths), key=lambda r: r["seed"])
        before, after = (
            np.array([100 * r[part]["test_accuracy"] for r in runs]) for part in ("base", "last")
        )
        loss = np.mean([r["last"]["validation_loss"] for r in runs])
        error = after.std(ddof=1) / len(after) ** 0.5
        authors, reference = REFERENCE[name]
        print(f"{name} ({len(runs)}): {before.mean():.2f} to {after.mean():.2f} ± {error:.2f}", end="; ")  # fmt: skip
        print(f"rounds {np.mean([r['rounds'] for r in runs]):.1f}, loss {loss:.3f}")
        print(f"    each: {' '.join(f'{a:.1f}' for a in after)}")
        print(f"    authors {authors}; reference {reference}")


def main() -> None:
    options = options_of(__doc__, list(REFERENCE))
    if options.command != "table":
        raise SystemExit("published.py only prints a table: run search.py first")
    table(options.datasets)


if __name__ == "__main__":
    main()

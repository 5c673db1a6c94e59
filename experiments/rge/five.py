"""One table over the five graphs: every rule's last round, validation loss and test accuracy (`search.py run` made the runs).

    python experiments/rge/five.py table

A fifth of the validation nodes is held out. Only seeds or splits that every rule of the table has run are read, so that
rules are compared on the same ones. The standard error of a mean over data sets is made of those within each data set; a
data set with one seed gives none to it and is marked.
"""

import json

import numpy as np
from command import options_of
from search import RESULTS

DATASETS = ("Cora", "CiteSeer", "texas", "wisconsin", "chameleon_filtered")
RULES = ("share-1%", "rge", "ege", "top-50", "random-20%", "folds-1")
MEASURES = (("validation_loss", 1.0), ("test_loss", 1.0), ("test_accuracy", 100.0))


def runs() -> dict[tuple[str, str], dict[int, dict]]:
    """By data set and rule, then seed."""
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for path in sorted(RESULTS.glob("*-held0.2-ridge2.json")):
        one = json.loads(path.read_text())
        found.setdefault((one["dataset"], one["rule"]), {})[one["seed"]] = one
    return found


def spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def table(datasets: list[str]) -> None:
    found = runs()
    rules = [r for r in RULES if all((name, r) in found for name in datasets)]
    print(f"rules that were run on every data set: {', '.join(rules)}")
    print(f"missing somewhere: {', '.join(r for r in RULES if r not in rules) or 'none'}")
    shared = {
        name: sorted(set.intersection(*(set(found[name, r]) for r in rules))) for name in datasets
    }
    for key, scale in MEASURES:
        print(f"\n{key}: mean ± standard error; below, the paired difference from {rules[0]}")
        print(" " * 12 + "".join(f"{name[:10]} ({len(shared[name])})".rjust(18) for name in datasets) + "mean of all".rjust(18))  # fmt: skip
        first: dict[str, np.ndarray] = {}
        for rule in rules:
            values = {
                name: scale * np.array([found[name, rule][s]["last"][key] for s in shared[name]])
                for name in datasets
            }
            first = first or values
            print(f"{rule:12s}" + cells(list(values.values())))
            if rule != rules[0]:
                print(" " * 12 + cells([values[name] - first[name] for name in datasets], sign="+"))
    print("\n(1): one seed, no standard error, and none of its own in the mean of all")


def cells(columns: list[np.ndarray], sign: str = "") -> str:
    errors = [spread(column) for column in columns]
    total = float(np.nansum(np.square(errors)) ** 0.5 / len(columns))
    means = [float(column.mean()) for column in columns]
    shown = [*zip(means, errors, strict=True), (float(np.mean(means)), total)]
    return "".join(f"{mean:{sign}.3f} ± {error:.3f}".rjust(18) for mean, error in shown)


def main() -> None:
    options = options_of(__doc__, DATASETS)
    if options.command != "table":
        raise SystemExit("five.py only prints a table: run search.py first")
    table(options.datasets)


if __name__ == "__main__":
    main()

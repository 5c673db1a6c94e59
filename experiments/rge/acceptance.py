"""Bounds of RGE as published on Texas and Wisconsin (ten splits each, run anew): one line a bound, `holds` or `fails`.

python experiments/rge/acceptance.py --data DATA/graphs
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from search import run

BOUNDS = {"texas-directed": (63.24, 1.99), "wisconsin-directed": (69.22, 1.04)}
"""Mean test accuracy of a reference implementation and its standard error, in percent."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (mean, error) in BOUNDS.items():
        runs = [
            run(options.data, name, "rge", split, held=0.0, ridge=2.0)
            for split in range(options.splits)
        ]
        found = float(np.mean([100 * r["last"]["test_accuracy"] for r in runs]))
        say(abs(found - mean) <= error, f"{name}: test accuracy {found:.2f}, within {mean} ± {error}")  # fmt: skip
        lower = all(r["last"]["validation_loss"] < r["base"]["validation_loss"] for r in runs)
        say(lower, f"{name}: validation loss falls on every split")


def say(holds: bool, bound: str) -> None:
    print("holds" if holds else "fails", bound, flush=True)


if __name__ == "__main__":
    main()

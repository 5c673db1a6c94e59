"""E2: weight decay before normalization makes a network look sharper while it becomes flatter, and better.

    python experiments/ctk/e2.py

Two networks on 200 digits that differ in weight decay alone (0 and 5e-3), trained with squared loss and with
cross-entropy, over five seeds. Weight decay shrinks the weights before BatchNorm without changing what they compute, so
the tangent trace and the largest eigenvalue of the Hessian grow; connectivity sharpness does not see the shrinking.

Allowed: with decay the mean tangent trace rises, mean connectivity sharpness falls, and so does the mean loss gap.
"""

import argparse
import json
from pathlib import Path

import torch
from digits import cnn, cross_entropy, digits, error, mean_loss, squared, train
from torch import Generator

from afterfit import Batches, Categorical, Problem
from afterfit.curvature import hessian
from afterfit.linalg.spectrum import spectrum
from afterfit.problem import Gaussian
from afterfit.sharpness import connectivity_curvature, connectivity_sharpness, tangent_trace

TRAIN, STEPS, SEEDS = 200, 1000, 5
DECAYS = (0.0, 5e-3)
EXPECTED = {
    "squared": "specification: tr NTK 307 -> 844, CS 15.4 -> 9.2, test error .0929 -> .0771, loss gap .137 -> .111",
    "cross-entropy": "specification: top Hessian eigenvalue 3.4 -> 55, CS 3005 -> 1060, accuracy .888 -> .898",
}
COLUMNS = ("tr NTK", "CS", "curvature_c", "top of H", "test error", "loss gap")


def numbers(loss_name: str, decay: float, seed: int) -> list[float]:
    """Per-sample means of the measures, then test error and gap."""
    loss = squared if loss_name == "squared" else cross_entropy
    x, y = digits(0)
    network = train(
        cnn(8, seed),
        x[:TRAIN],
        y[:TRAIN],
        loss,
        rate=0.1,
        batch=16,
        decay=decay,
        steps=STEPS,
        seed=seed,
    )
    missed = error(network, x[TRAIN:], y[TRAIN:])
    gap = mean_loss(network, x[TRAIN:], y[TRAIN:], loss) - mean_loss(
        network, x[:TRAIN], y[:TRAIN], loss
    )
    is_squared = loss_name == "squared"
    targets = torch.nn.functional.one_hot(y[:TRAIN], 10).double() if is_squared else y[:TRAIN]
    problem = Problem.from_module(network.double(), Gaussian(1.0) if is_squared else Categorical())
    data = Batches((x[:TRAIN].double(), targets), 100)
    top = spectrum(hessian(problem, data), 1, Generator().manual_seed(0), tolerance=1e-3).values[0]
    return [
        tangent_trace(problem, data).mean,
        connectivity_sharpness(problem, data).mean,
        connectivity_curvature(problem, data).mean,
        float(top) / TRAIN,
        missed,
        gap,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "e2.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for loss_name, expected in EXPECTED.items():
        print(f"{loss_name}: means over {SEEDS} seeds ± their standard errors, measures per sample")
        print(f"{'decay':>8s}" + "".join(f"{name:>20s}" for name in COLUMNS))
        means = {}
        for decay in DECAYS:
            rows = torch.tensor(
                [numbers(loss_name, decay, seed) for seed in range(SEEDS)], dtype=torch.float64
            )
            means[decay], errors = rows.mean(0), rows.std(0) / SEEDS**0.5
            cells = [
                f"{mean:.4g} ± {error:.2g}"
                for mean, error in zip(means[decay], errors, strict=True)
            ]
            print(f"{decay:8g}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)
            results[f"{loss_name} {decay}"] = rows.tolist()
        print(expected)
        before, after = means[DECAYS[0]], means[DECAYS[1]]
        if loss_name == "squared":
            assert after[0] > before[0], "the tangent trace did not rise"
            assert after[1] < before[1], "connectivity sharpness did not fall"
            assert after[5] < before[5], "the gap did not fall"
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps({"columns": COLUMNS, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

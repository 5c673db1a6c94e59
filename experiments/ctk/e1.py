"""E1: which numbers a rescaling of the network changes, and by what factor.

    python experiments/ctk/e1.py

A CNN with BatchNorm is trained on digits with cross-entropy. Four rescalings that preserve its function, and one change
that does not (head times 4), are applied; printed are the ratios after over before, with the values of the
specification's own network beside them. Connectivity columns must be 1 to 1e-8 in the first four rows.
"""

import argparse
import json
from pathlib import Path

import torch
from digits import cnn, cross_entropy, digits, error, train
from rescalings import BLOCKS, affine, before_norm
from torch import Generator, Tensor, nn

from afterfit import Batches, Categorical, Problem
from afterfit.curvature import hessian, jacobian
from afterfit.linalg.trace import estimate_trace
from afterfit.problem import connectivity, outputs
from afterfit.sharpness import (
    Scales,
    connectivity_curvature,
    connectivity_sharpness,
    fisher_rao_norm,
    fisher_trace,
    ridge_mean,
    tangent_trace,
)
from afterfit.sharpness.certificate import bias_term, sharpness_term
from afterfit.sharpness.pacbayes import kernel_basis
from afterfit.sharpness.rescaling import scale_units, verify, without_epsilon
from afterfit.sharpness.symmetry import Part, Symmetry

SCALES = Scales(prior=1.0, noise=1.0)
COLUMNS = (
    "tr NTK",
    "CS",
    "tr GGN",
    "tr GGN_c",
    "tr H",
    "Fisher-Rao",
    "KL-NTK",
    "KL-CTK",
    "LL var",
    "CL var",
)
EXPECTED = {  # of the specification's network, whose weights we do not have
    "conv / 2 before BN": (3.86, 1, 3.86, 1, 3.92, 1, 0.565, 1, 2.48, 1),
    "conv x 4 before BN": (0.107, 1, 0.105, 1, 0.117, 1, 0.974, 1, 0.205, 1),
    "BN x 4, next conv / 4": (12.0, 1, 12.2, 1, 14.0, 1, 0.599, 1, 4.21, 1),
    "nodes, log-normal": (2.39, 1, 2.42, 1, 2.96, 1, 0.846, 1, 1.56, 1),
    "control: head x 4": (15.9, 16.0, 0.51, 0.46, 0.45, 0.17, 3.88, 2.67, 6.06, 4.18),
}
CONNECTIVITY = (1, 3, 5, 7, 9)


def changes(network: nn.Module) -> dict[str, nn.Module]:
    """The network after each of the changes."""
    generator = Generator().manual_seed(0)
    changed = dict.fromkeys(EXPECTED, network)
    for conv, norm, reader in BLOCKS:
        size = network.get_submodule(str(norm)).num_features
        ones = torch.ones(size, dtype=torch.float64)
        draw = (
            torch.randn(2, size, dtype=torch.float64, generator=generator) * torch.tensor(4.0).log()
        )
        steps = {
            "conv / 2 before BN": [(before_norm(conv, norm, size), 0.5 * ones)],
            "conv x 4 before BN": [(before_norm(conv, norm, size), 4 * ones)],
            "BN x 4, next conv / 4": [(affine(norm, reader, size), 4 * ones)]
            if reader != 10
            else [],
            "nodes, log-normal": [
                (before_norm(conv, norm, size), draw[0].exp()),
                (affine(norm, reader, size), draw[1].exp()),
            ],
        }
        for name, moves in steps.items():
            for symmetry, factors in moves:
                changed[name] = scale_units(changed[name], symmetry, factors)
    head = Symmetry(1, (Part("10.weight"), Part("10.bias")))
    changed["control: head x 4"] = scale_units(
        network, head, torch.tensor([4.0], dtype=torch.float64)
    )
    return changed


def divergence(problem: Problem, data: Batches) -> float:
    """KL of the ridge posterior from the prior."""
    basis = kernel_basis(problem, data)
    residual = ridge_mean(outputs(problem, data), data.targets()).flatten()
    bias = bias_term(basis.eigenvalues, basis.vectors.mT @ residual, SCALES)
    return 0.5 * (bias + sharpness_term(basis.eigenvalues, SCALES))


def predictive_variance(problem: Problem, train_data: Batches, test: Batches) -> float:
    """Mean variance of a logit of a new sample under the linearized posterior."""
    here, there = jacobian(problem, train_data).matrix, jacobian(problem, test).matrix
    kernel, cross, own = here @ here.mT, there @ here.mT, there.square().sum(1)
    ridge = torch.eye(len(kernel), dtype=kernel.dtype) / SCALES.ratio
    explained = (cross * torch.linalg.solve(kernel + ridge, cross.mT).mT).sum(1)
    return float(SCALES.prior**2 * (own - explained).mean())


def numbers(network: nn.Module, train_data: Batches, test: Batches) -> Tensor:
    problem = Problem.from_module(network, Categorical())
    relative = connectivity(problem)
    bent = estimate_trace(hessian(problem, train_data), 200, Generator().manual_seed(0))
    return torch.tensor(
        [
            tangent_trace(problem, train_data).total,
            connectivity_sharpness(problem, train_data).total,
            fisher_trace(problem, train_data).total,
            connectivity_curvature(problem, train_data).total,
            bent.value,
            fisher_rao_norm(problem, train_data).total,
            divergence(problem, train_data),
            divergence(relative, train_data),
            predictive_variance(problem, train_data, test),
            predictive_variance(relative, train_data, test),
        ],
        dtype=torch.float64,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "e1.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = digits(0)
    network = train(
        cnn(8, 0),
        x[:600],
        y[:600],
        cross_entropy,
        rate=0.05,
        batch=32,
        decay=5e-4,
        steps=600,
        seed=0,
    )
    print(
        f"test error {error(network, x[800:], y[800:]):.3f}, {sum(p.numel() for p in network.parameters())} parameters"
    )
    exact = without_epsilon(network.double())
    inputs, classes = x.double(), y
    train_data, test = (
        Batches((inputs[:120], classes[:120]), 60),
        Batches((inputs[700:720], classes[700:720])),
    )
    here = numbers(exact, train_data, test)
    print(f"{'ratio after / before':24s}" + "".join(f"{name:>11s}" for name in COLUMNS))
    rows, worst = {}, 0.0
    for name, changed in changes(exact).items():
        if not name.startswith("control"):
            verify(exact, changed, inputs[:120])
        ratios = numbers(changed, train_data, test) / here
        rows[name] = ratios.tolist()
        print(f"{name:24s}" + "".join(f"{ratio:11.4g}" for ratio in ratios))
        print(f"{'  (specification)':24s}" + "".join(f"{ratio:11.4g}" for ratio in EXPECTED[name]))
        if not name.startswith("control"):
            worst = max(worst, float((ratios[list(CONNECTIVITY)] - 1).abs().max()))
            moved = (ratios[[0, 2, 4, 6, 8]] - 1).abs()
            assert bool((moved > 0.01).all()), f"{name}: a Euclidean number did not move"
    assert worst < 1e-8, worst
    print(f"largest change of a connectivity number: {worst:.1e} (allowed 1e-8)")
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(
        json.dumps({"columns": COLUMNS, "ratios": rows, "worst_connectivity": worst}, indent=1)
    )


if __name__ == "__main__":
    main()

"""E3: the PAC-Bayes bound of a network whose weights before BatchNorm are scaled by 1/2, 1, 2, 4.

    python experiments/ctk/e3.py

A network is trained on 1,000 digits with squared loss, which fixes the prior; the bound is on 200 others. The function is
the same at every scale. Bounds of the connectivity tangent kernel must be the same, those of the tangent kernel must fall
as the weights grow, all must be below 1. Printed as the specification prints them (McAllester's form, delta 0.1, the risk
of 200 draws without its own confidence), with its network's values beside; then the certificates that the library gives.
"""

import argparse
import json
from pathlib import Path

import torch
from digits import cnn, digits, error, squared, train
from rescalings import BLOCKS, before_norm
from torch import Generator, nn

from afterfit import Batches, Categorical, Problem
from afterfit.problem import connectivity, outputs
from afterfit.sharpness import Scales, mcallester, pac_bayes_bound, ridge_mean, zero_mean
from afterfit.sharpness.certificate import bias_term, sharpness_term
from afterfit.sharpness.pacbayes import gibbs_errors, kernel_basis
from afterfit.sharpness.rescaling import scale_units, verify, without_epsilon

NOISE, DELTA, DRAWS = 0.1, 0.1, 200
FORMAT = "{:10.4g} {:9.4g} {:7.4f} {:9.4g} {:7.4f}"
FACTORS = (0.5, 1.0, 2.0, 4.0)
EXPECTED = {  # trace, then KL and bound with zero mean and with ridge mean, of the specification's network
    ("CTK", 0.01): {f: (3878, 3.217, 0.1688, 13.24, 0.2371) for f in FACTORS},
    ("CTK", 0.1): {f: (3878, 78.40, 0.478, 164.0, 0.657) for f in FACTORS},
    ("NTK", 0.001): {
        0.5: (6.2e5, 4.54, 0.180, 22.6, 0.284),
        1.0: (1.64e5, 1.19, 0.151, 9.37, 0.214),
        2.0: (5.0e4, 0.23, 0.141, 4.20, 0.177),
        4.0: (2.1e4, 0.057, 0.139, 2.11, 0.159),
    },
    ("NTK", 0.01): {
        0.5: (6.2e5, 157, 0.657, 336, 0.924),
        1.0: (1.64e5, 57.6, 0.417, 180, 0.686),
        2.0: (5.0e4, 22.3, 0.284, 87, 0.491),
        4.0: (2.1e4, 11.8, 0.229, 42.8, 0.363),
    },
}


def scaled(network: nn.Module, factor: float) -> nn.Module:
    """All convolutions times the factor, with the statistics of their BatchNorms."""
    for conv, norm, _ in BLOCKS:
        size = network.get_submodule(str(norm)).num_features
        factors = torch.full((size,), factor, dtype=torch.float64)
        network = scale_units(network, before_norm(conv, norm, size), factors)
    return network


def table(problem: Problem, held_out: Batches, priors: list[float]) -> dict[float, list[float]]:
    """For each prior scale: trace, then KL and bound for both means."""
    basis, found = kernel_basis(problem, held_out), outputs(problem, held_out)
    classes, rows = held_out.targets(), {}
    for prior in priors:
        scales = Scales(prior, NOISE)
        rows[prior] = [float(basis.eigenvalues.sum())]
        for center in (zero_mean, ridge_mean):
            residual = center(found, classes)
            bias = bias_term(basis.eigenvalues, basis.vectors.mT @ residual.flatten(), scales)
            kl = 0.5 * (bias + sharpness_term(basis.eigenvalues, scales))
            risk = gibbs_errors(
                basis, residual, found, classes, scales, DRAWS, Generator().manual_seed(0)
            )
            rows[prior] += [kl, mcallester(risk, kl, held_out.num_samples, DELTA)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "e3.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = digits(0)
    network = train(
        cnn(8, 0), x[:1000], y[:1000], squared, rate=0.1, batch=32, decay=5e-4, steps=1500, seed=0
    )
    print(f"test error {error(network, x[1200:], y[1200:]):.3f} (specification .026)")
    exact, inputs = without_epsilon(network.double()), x.double()
    train_data, held_out = (
        Batches((inputs[:1000], y[:1000])),
        Batches((inputs[1000:1200], y[1000:1200])),
    )
    results: dict[str, list[list[float]]] = {}
    print(
        "kernel  alpha   scale      trace   KL zero   bound  KL ridge   bound   | the same in the specification"
    )
    networks = {factor: scaled(exact, factor) for factor in FACTORS}
    for kernel in ("CTK", "NTK"):
        priors = [prior for name, prior in EXPECTED if name == kernel]
        tables = {}
        for factor, changed in networks.items():
            verify(exact, changed, inputs[:100])
            problem = Problem.from_module(changed, Categorical())
            chosen = connectivity(problem) if kernel == "CTK" else problem
            tables[factor] = table(chosen, held_out, priors)
        for prior in priors:
            rows = [tables[factor][prior] for factor in FACTORS]
            for factor, row in zip(FACTORS, rows, strict=True):
                mine = FORMAT.format(*row)
                print(
                    f"{kernel:6s} {prior:6g} {factor:7g} {mine}   | {FORMAT.format(*EXPECTED[kernel, prior][factor])}"
                )
            results[f"{kernel} {prior}"] = rows
            check(kernel, torch.tensor(rows, dtype=torch.float64))
    relative = connectivity(Problem.from_module(exact, Categorical()))
    grid = [Scales(prior, NOISE) for prior in (0.001, 0.003, 0.01, 0.03, 0.1)]
    certificate = pac_bayes_bound(
        relative,
        train_data,
        held_out,
        grid,
        Generator().manual_seed(0),
        delta=0.05,
        num_draws=DRAWS,
    )
    print(f"certificate: {certificate}")
    assert not certificate.is_vacuous
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(
        json.dumps({"rows": results, "certificate": str(certificate)}, indent=1)
    )


def check(kernel: str, rows: torch.Tensor) -> None:
    """CTK constant over the scales, NTK falling, all bounds below 1."""
    assert bool((rows[:, [2, 4]] < 1).all()), "a bound is vacuous"
    if kernel == "CTK":
        spread = (rows / rows[1] - 1).abs()
        assert float(spread[:, [0, 1, 3]].max()) < 1e-8, spread
        assert float(spread[:, [2, 4]].max()) < 1e-8, spread
    else:
        assert bool((rows[1:] < rows[:-1]).all()), (
            "a row of the tangent kernel does not fall with the scale"
        )


if __name__ == "__main__":
    main()

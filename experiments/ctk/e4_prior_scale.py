"""E4: how the quality of predictions depends on the prior scale, for LL and CL, at three scales of the weights.

    python experiments/ctk/e4_prior_scale.py [--seeds 8] [--curvature squared]

An overconfident network (cross-entropy, 200 noisy digits) is rescaled before its BatchNorms by 1/2, 1 and 4 without
changing the function. Curvature as in the specification: J'J / sigma^2 with sigma = 1, that of the squared loss, around
the trained network; soft-max of Gaussian logits by Monte Carlo. ``--curvature soft-max`` has the curvature of the soft-max
itself instead, the library's default. Each seed draws the digits, the noise and the network. Measured on 600 clean and 600
corrupted test digits: negative log-likelihood, calibration error (10 bins), Brier score.

Claim: the NLL of CL on clean digits is the same at every weight scale to 1e-8, and at alpha = 1 it is the smallest on the
paper's grid, or within two standard errors (over seeds, of the paired difference) of the smallest; the best alpha of LL moves
with the scale of the weights. Two further alphas, 0.3 and 3, are told of and do not take part in the claim. Nothing is
chosen: what is compared is the test loss of every alpha.

One JSON file is written for each curvature after each seed, and seeds that are there are not run again.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from digits import cnn, cross_entropy, digits, train
from rescalings import BLOCKS, before_norm
from torch import Generator, Tensor, nn
from torch.nn import functional

from afterfit.evaluate import EqualWidth, brier_score, expected_calibration_error
from afterfit.posterior import GaussianPosterior, laplace, point_prediction, predict_at
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity, outputs
from afterfit.sharpness.rescaling import scale_units, without_epsilon

GRID, BETWEEN = (0.001, 0.01, 0.1, 1.0, 10.0), (0.3, 3.0)
ALPHAS = tuple(sorted(GRID + BETWEEN))
FACTORS, NUM_TRAIN, NUM_TEST = (0.5, 1.0, 4.0), 200, 600
NOISE, MORE_NOISE = 0.2, 0.35
EXPECTED = """expected (another network): Det .749/.066/.316, corrupted 1.560/.176/.579
CL at every weight scale: alpha=.1 .742/.056/.314; 1 .707/.028/.308; 10 1.117/.359/.501; corrupted alpha=1 1.360/.096/.544
LL, NLL at alpha=.1/1/10: scale 1/2 .726/1.646/2.114; scale 1 .705/1.310/2.054; scale 4 .733/.765/1.763"""


def scaled(network: nn.Module, factor: float) -> nn.Module:
    for conv, norm, _ in BLOCKS:
        size = network.get_submodule(str(norm)).num_features
        network = scale_units(
            network, before_norm(conv, norm, size), torch.full((size,), factor).double()
        )
    return network


def data(seed: int) -> tuple[nn.Module, Batches, dict[str, Batches]]:
    images, y = digits(seed)
    generator = Generator().manual_seed(3 + seed)
    noise = torch.randn(images.shape, generator=generator)
    noisy, corrupted = images + NOISE * noise, images + MORE_NOISE * noise
    network = train(
        cnn(8, seed),
        noisy[:NUM_TRAIN],
        y[:NUM_TRAIN],
        cross_entropy,
        rate=0.05,
        batch=50,
        decay=0.0,
        steps=600,
        seed=seed,
    )
    held_out = slice(NUM_TRAIN, NUM_TRAIN + NUM_TEST)
    tests = {
        name: Batches((x[held_out].double(), y[held_out]), 100)
        for name, x in (("clean", noisy), ("corrupted", corrupted))
    }
    return network.double(), Batches((noisy[:NUM_TRAIN].double(), y[:NUM_TRAIN]), 100), tests


def one_hot(data: Batches) -> Batches:
    (_, x, y) = data.fetch(torch.arange(data.num_samples))
    return Batches((x, functional.one_hot(y, 10).double()), data.batch_size)


def posterior(network: nn.Module, fit: Batches, how: str, curved: str) -> GaussianPosterior:
    problem = Problem.from_module(network, Gaussian(1.0) if curved == "squared" else Categorical())
    problem = connectivity(problem) if how == "CL" else problem
    found = laplace(problem, one_hot(fit) if curved == "squared" else fit)
    return replace(found, problem=replace(found.problem, likelihood=Categorical()))


def figures(probabilities: Tensor, test: Batches) -> tuple[float, float, float]:
    y = test.targets()
    nll = -probabilities.gather(1, y[:, None]).log().mean()
    return (
        float(nll),
        expected_calibration_error(probabilities, y, EqualWidth(10)),
        brier_score(probabilities, y),
    )


def measured(seed: int, curved: str) -> dict[str, list[tuple[float, float, float]]]:
    """NLL, ECE and Brier score of one seed, by posterior, weight scale and test set: one row for each alpha."""
    network, fit, tests = data(seed)
    network = without_epsilon(network)
    plain = Problem.from_module(network, Categorical())
    rows = {
        f"Det 1.0 {name}": [
            figures(point_prediction(Categorical(), outputs(plain, test)).mean, test)
        ]
        for name, test in tests.items()
    }
    for how in ("CL", "LL"):
        for factor in FACTORS:
            found = posterior(scaled(network, factor), fit, how, curved)
            for name, test in tests.items():
                rows[f"{how} {factor} {name}"] = [
                    figures(one.mean, test) for one in predict_at(found, ALPHAS, test)
                ]
    return rows


def told(seeds: dict[str, dict[str, list[list[float]]]]) -> None:
    """Means over seeds of the three figures."""
    print(f"means over {len(seeds)} seeds, NLL/ECE/Brier at alpha = {', '.join(map(str, ALPHAS))}")
    for key in next(iter(seeds.values())):
        mean = torch.tensor([rows[key] for rows in seeds.values()]).double().mean(0)
        print(f"{key:18}" + "  ".join("/".join(f"{v:.3f}" for v in row) for row in mean.tolist()))


def losses(seeds: dict[str, dict[str, list[list[float]]]], key: str) -> Tensor:
    """NLL of every seed (rows) and alpha (columns)."""
    return torch.tensor([rows[key] for rows in seeds.values()]).double()[:, :, 0]


def check(seeds: dict[str, dict[str, list[list[float]]]]) -> None:
    """Whether alpha = 1 is the best of the grid, or within noise of it, at every weight scale."""
    one = ALPHAS.index(1.0)
    for how in ("CL", "LL"):
        for factor in FACTORS:
            nll = losses(seeds, f"{how} {factor} clean")
            mean = nll.mean(0)
            told_of = []
            for name, grid in (("grid", GRID), ("with 0.3 and 3", ALPHAS)):
                order = sorted(grid, key=lambda alpha: float(mean[ALPHAS.index(alpha)]))
                rival = order[1] if order[0] == 1 else order[0]
                away = nll[:, one] - nll[:, ALPHAS.index(rival)]
                stderr, gap = float(away.std() / math.sqrt(len(nll))), float(away.mean())
                near = "within noise of the best" if gap <= 2 * stderr else "worse"
                verdict = "best" if order[0] == 1 else near
                told_of.append(
                    f"{name}: 1 is {verdict}, {gap:+.4f} +- {stderr:.4f} against {rival:g}"
                )
            print(f"{how} weights x {factor:<4} " + "; ".join(told_of))
    own = [losses(seeds, f"CL {factor} clean") for factor in FACTORS]
    gap = max(float((one / own[1] - 1).abs().max()) for one in own)
    print(f"CL: largest relative difference between weight scales {gap:.1e} (expected < 1e-8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--curvature", choices=("squared", "soft-max"), default="squared")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results / f"e4-{given.curvature}.json"
    seeds = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(given.seeds):
        if str(seed) not in seeds:
            seeds[str(seed)] = measured(seed, given.curvature)
            path.write_text(json.dumps(seeds, indent=1))
            print(f"seed {seed} is done", flush=True)
    seeds = {str(seed): seeds[str(seed)] for seed in range(given.seeds)}
    told(seeds)
    check(seeds)
    print(EXPECTED)


if __name__ == "__main__":
    main()

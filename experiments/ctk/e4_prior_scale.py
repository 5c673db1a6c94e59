"""E4: how the quality of predictions depends on the prior scale, for LL and CL, at three scales of the weights.

    python experiments/ctk/e4_prior_scale.py

An overconfident network (cross-entropy, 200 noisy digits) is rescaled before its BatchNorms by 1/2, 1 and 4 without
changing the function. Curvature as in the specification: that of the squared loss with sigma = 1, around the trained
network; soft-max of Gaussian logits by Monte Carlo. Printed: negative log-likelihood, calibration error (10 bins) and Brier
score on 600 clean and 600 corrupted test digits. The specification's values belong to its own network; what must hold is
said at the end and checked: CL the same at every scale and best at alpha = 1 among {0.1, 1, 10}; the best alpha and the
losses of LL move with the scale. A second table has the curvature of the soft-max itself, the library's default.
"""

from dataclasses import replace

import torch
from digits import cnn, cross_entropy, digits, train
from rescalings import BLOCKS, before_norm
from torch import Generator, Tensor, nn
from torch.nn import functional

from afterfit.evaluate import EqualWidth, brier_score, expected_calibration_error
from afterfit.posterior import GaussianPosterior, laplace, point_prediction, predict_at
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity, outputs
from afterfit.sharpness.rescaling import scale_units, without_epsilon

ALPHAS, FACTORS, NUM_TRAIN, NUM_TEST = (0.1, 1.0, 10.0), (0.5, 1.0, 4.0), 200, 600
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


def data() -> tuple[nn.Module, Batches, dict[str, Batches]]:
    images, y = digits(0)
    generator = Generator().manual_seed(3)
    noise = torch.randn(images.shape, generator=generator)
    noisy, corrupted = images + NOISE * noise, images + MORE_NOISE * noise
    network = train(
        cnn(8, 0),
        noisy[:NUM_TRAIN],
        y[:NUM_TRAIN],
        cross_entropy,
        rate=0.05,
        batch=50,
        decay=0.0,
        steps=600,
        seed=0,
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


def told(values: tuple[float, float, float]) -> str:
    return "/".join(f"{value:.3f}" for value in values)


def main() -> None:
    network, fit, tests = data()
    network = without_epsilon(network)
    plain = Problem.from_module(network, Categorical())
    for name, test in tests.items():
        print(
            f"Det {name:10}",
            told(figures(point_prediction(Categorical(), outputs(plain, test)).mean, test)),
        )
    for curved in ("squared", "soft-max"):
        print(
            f"\ncurvature of the {curved} loss: NLL/ECE/Brier at alpha = "
            + ", ".join(map(str, ALPHAS))
        )
        nll: dict[tuple[str, float], list[float]] = {}
        for how in ("CL", "LL"):
            for factor in FACTORS:
                found = posterior(scaled(network, factor), fit, how, curved)
                for name, test in tests.items():
                    rows = [figures(one.mean, test) for one in predict_at(found, ALPHAS, test)]
                    print(f"{how} weights x {factor:<4} {name:10}" + "   ".join(map(told, rows)))
                    if name == "clean":
                        nll[how, factor] = [row[0] for row in rows]
        check(nll)
    print(EXPECTED)


def check(nll: dict[tuple[str, float], list[float]]) -> None:
    rows = [torch.tensor(nll["CL", factor]) for factor in FACTORS]
    gap = max(float((row / rows[1] - 1).abs().max()) for row in rows)
    best = ALPHAS[int(rows[1].argmin())]
    moved = [
        max(nll["LL", f][i] for f in FACTORS) / min(nll["LL", f][i] for f in FACTORS) - 1
        for i in range(3)
    ]
    print(
        f"CL: largest relative difference between weight scales {gap:.1e} (expected < 1e-8), best alpha {best} (expected 1.0)"
    )
    print(
        "LL: spread of the NLL over weight scales at each alpha "
        + ", ".join(f"{100 * m:.1f} %" for m in moved)
    )


if __name__ == "__main__":
    main()

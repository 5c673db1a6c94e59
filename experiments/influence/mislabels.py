"""Which score finds wrong labels, from a network that stopped early to one that memorized them.

    python experiments/influence/mislabels.py --seeds 3 --out experiments/influence/results

Digits of scikit-learn, 1,000 samples, a perceptron 64-32-10 (2,410 parameters) with SGD and
momentum; labels of a fifth of the samples are redrawn uniformly over all classes (18 % wrong). Early
is 8 epochs, trained 40, memorized 400. Every score is a self-influence, or a simple score beside it;
all are of the same network, or of checkpoints of the same training. Nothing was tuned: settings are
the defaults of the methods, and where there is none, the ones below, set before the first run.
Written are the mean and the standard deviation over seeds of the area under the ROC curve and of
average precision, the processor seconds, and the reliability where the score is drawn.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Generator, Tensor, nn
from torch.nn import functional

from afterfit.influence import (
    TRAK,
    DataInf,
    GradientDot,
    LossCovariance,
    NearestNeighborShapley,
    RandomProjection,
    RepresenterPoints,
    TracIn,
    covariance,
    simple,
)
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.base import BlockInfluence
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.trak import TRAKInfluence
from afterfit.problem import Batches, Categorical, Problem
from afterfit.problem.persample import outputs
from afterfit.sampling import Langevin

EPOCHS = {"early": 8, "trained": 40, "memorized": 400}
NUM, RATE, DAMPING = 1000, 0.2, 1e-2

Scores = tuple[Tensor, float]
"""Of each sample, large where it is suspicious, and their reliability."""


def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, noisy labels, and which of them are wrong."""
    rng = np.random.default_rng(seed)
    pixels, labels = load_digits(return_X_y=True)
    chosen = rng.permutation(len(labels))[:NUM]
    inputs, clean = torch.tensor(pixels[chosen] / 16, dtype=torch.float32), labels[chosen]
    noisy = clean.copy()
    redrawn = rng.choice(NUM, int(RATE * NUM), replace=False)
    noisy[redrawn] = rng.integers(10, size=len(redrawn))
    return inputs, torch.tensor(noisy), torch.tensor(noisy != clean)


def train(inputs: Tensor, labels: Tensor, epochs: int, seed: int) -> tuple[nn.Module, list[dict]]:
    """A network, and its parameters at five points of the second half of training."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    generator, states = Generator().manual_seed(seed), []
    kept = {round(epochs * (0.5 + 0.1 * k)) for k in range(1, 6)}
    for epoch in range(1, epochs + 1):
        for index in torch.randperm(NUM, generator=generator).split(100):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs[index]), labels[index]).backward()
            optimizer.step()
        if epoch in kept:
            states.append({name: value.clone() for name, value in net.state_dict().items()})
    return net.eval(), states


def own(method: object, problem: Problem, train_set: Batches) -> Scores:
    influence = method.fit(problem, train_set)  # pyright: ignore
    scores = influence.self_scores()
    if isinstance(influence, TRAKInfluence):
        return scores, float("nan")  # its error is over checkpoints, and it has few
    return scores, influence.reliability() if isinstance(influence, BlockInfluence) else 1.0


def covariances(problem: Problem, train_set: Batches) -> Scores:
    sampler = Langevin(1e-6, NUM, 1e3, draws=50, chains=4, burn_in=50, thinning=5)
    influence = LossCovariance(sampler, moment=covariance).fit(problem, train_set)
    return influence.self_scores(), influence.reliability()


def methods(states: list[dict]) -> dict[str, Callable[[Problem, Batches], Scores]]:
    def told(score: Callable[[Problem, Batches], Tensor]) -> Callable[..., Scores]:
        return lambda problem, train_set: (score(problem, train_set), 1.0)

    def linear(method: object) -> Callable[..., Scores]:
        return lambda problem, train_set: own(method, problem, train_set)

    def neighbors(problem: Problem, train_set: Batches) -> Tensor:
        return simple.knn_scores(outputs(problem, train_set), train_set.targets())

    def shapley(problem: Problem, train_set: Batches) -> Tensor:
        return -NearestNeighborShapley(10).fit(problem, train_set).scores(train_set).mean(0)

    return {
        "loss": told(simple.loss_scores),
        "margin": told(simple.margin_scores),
        "gradient norm": told(simple.gradient_norm_scores),
        "neighbors of outputs": told(neighbors),
        "Shapley of neighbors (mean)": told(shapley),
        "gradient dot": linear(GradientDot()),
        "TracIn": linear(TracIn(states)),
        "TracIn, 20 projections": linear(RandomProjection(20, checkpoints=states)),
        "TRAK": linear(TRAK(512, [states[-1]], ridge=1e-3)),
        "TRAK, 5 checkpoints": linear(TRAK(512, states, ridge=1e-3)),
        "DataInf": linear(DataInf()),
        "representer points": linear(RepresenterPoints("2.*")),
        "influence function (GGN)": linear(InfluenceFunction(DAMPING)),
        "Arnoldi": linear(ArnoldiInfluence(damping=DAMPING)),
        "loss covariance (SGLD)": covariances,
    }


def run(seed: int, regime: str) -> list[dict[str, object]]:
    inputs, labels, wrong = data(seed)
    net, states = train(inputs, labels, EPOCHS[regime], seed)
    problem, train_set = Problem.from_module(net, Categorical()), Batches((inputs, labels))
    fitted = float((net(inputs).argmax(1) == labels).float().mean())
    rows = []
    for name, score in methods(states).items():
        start = time.process_time()
        try:
            scores, reliability = score(problem, train_set)
        except (ValueError, FloatingPointError) as error:
            print(f"{regime} {seed} {name}: {error}", flush=True)
            continue
        rows.append(
            {
                "regime": regime,
                "seed": seed,
                "train accuracy": fitted,
                "method": name,
                "AUC": roc_auc_score(wrong, scores.double()),
                "AP": average_precision_score(wrong, scores.double()),
                "seconds": time.process_time() - start,
                "reliability": reliability,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        for regime in EPOCHS:
            rows += run(seed, regime)
            show(pd.DataFrame(rows), options.out)


def show(frame: pd.DataFrame, out: Path) -> None:
    """Write what is done so far."""
    frame.to_csv(out / "mislabels.csv", index=False, float_format="%.4f")
    table = frame.groupby(["method", "regime"], sort=False).agg(
        {"AUC": ["mean", "std"], "AP": ["mean", "std"], "seconds": "mean", "reliability": "mean"}
    )
    table.columns = [" ".join(column) for column in table.columns]
    text = table.round(3).to_string()
    fitted = frame.groupby("regime", sort=False)["train accuracy"].mean().round(3).to_string()
    (out / "mislabels.txt").write_text(f"{fitted}\n\n{text}\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()

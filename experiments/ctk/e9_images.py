"""E9: calibration on MNIST and CIFAR-10: the network as trained, temperature, LL and CL, last layer and all layers.

    python experiments/ctk/e9_images.py --data FOLDER --on mnist
    python experiments/ctk/e9_images.py --data FOLDER --on cifar

MNIST: a small network (three strided convolutions with BatchNorm) trained by us on the first 2,000 images for 40 epochs,
which is overconfident; validation on the next 1,000 training images, test on the first 2,000 of the test set; images
of CIFAR-10 in gray as the unknown. CIFAR-10: the pretrained ResNet-20, curvature of 1,000 training images; since it was
trained on all of the training set, the first half of 1,000 lossless test images is for validation and the second for the
test; digits of MNIST as the unknown.

Temperatures and prior scales have the smallest validation loss over a grid; nothing is tuned on the test images or on the
unknown ones. "CL squared 1" is untuned: the curvature of the squared loss with noise 1, and the prior scale 1.

Printed and saved for each way: negative log-likelihood with its standard error over test images, the paired difference from
the network as trained, accuracy, Brier score, calibration error (15 bins of equal width), and the area under the ROC curve
of the entropy, telling test images from unknown ones. Each row is saved when it is there, and not computed again.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from images import cifar, digits_as_colors, gray_as_digits, mnist, normalized, pretrained, small_cnn
from torch import nn
from torch.nn import functional

from afterfit.curvature import Curvature, diagonal, ggn, kfac
from afterfit.evaluate import EqualWidth, accuracy, auc, brier_score, expected_calibration_error
from afterfit.posterior import Predictive, laplace, predict
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity, restrict
from afterfit.workflows.predictors import (
    LinearizedLaplace,
    Predictor,
    temperature_scaling,
    trained_network,
)

SCALES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Task:
    """A trained network and its data."""

    network: nn.Module
    head: str
    train: Batches
    validation: Batches
    test: Batches
    unknown: Batches


def task_of_digits(folder: Path) -> Task:
    x, y = mnist(folder, "train")
    test, test_y = mnist(folder, "test")
    unknown, unknown_y = cifar(folder, "test")
    network = fitted(small_cnn(0), x[:2000], y[:2000])
    return Task(
        network,
        "head.*",
        Batches((x[:2000], y[:2000]), 100),
        Batches((x[2000:3000], y[2000:3000]), 100),
        Batches((test[:2000], test_y[:2000]), 100),
        Batches((gray_as_digits(unknown), unknown_y), 100),
    )


def fitted(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """40 epochs of SGD with momentum and a cosine schedule, no decay."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    network.train()
    for _ in range(40):
        for chosen in torch.randperm(len(x), generator=generator).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def task_of_colors(folder: Path) -> Task:
    x, y = cifar(folder, "train")
    test, test_y = cifar(folder, "test")
    digits, digits_y = mnist(folder, "test")
    parts = [Batches((normalized(test[p]), test_y[p]), 25) for p in (slice(500), slice(500, None))]
    return Task(
        pretrained(folder, 20),
        "linear.*",
        Batches((normalized(x[:1000]), y[:1000]), 50),
        parts[0],
        parts[1],
        Batches((digits_as_colors(digits[:500]), digits_y[:500]), 25),
    )


Way = Callable[[Problem, Task], Predictor]


def as_trained(problem: Problem, task: Task) -> Predictor:
    return trained_network(problem, task.train, task.validation)


def tempered(problem: Problem, task: Task) -> Predictor:
    return temperature_scaling(problem, task.train, task.validation)


def by_laplace(
    relative: bool, last: bool, curvature: Curvature, problem: Problem, task: Task
) -> Predictor:
    def coordinates(given: Problem) -> Problem:
        chosen = connectivity(given) if relative else given
        return restrict(chosen, task.head) if last else chosen

    how = LinearizedLaplace(coordinates, curvature, SCALES)
    return how(problem, task.train, task.validation)


def by_default(problem: Problem, task: Task) -> Predictor:
    """Connectivity, the curvature of the squared loss, noise 1, prior scale 1: nothing is tuned."""
    _, x, y = task.train.fetch(torch.arange(task.train.num_samples))
    rows = Batches((x, functional.one_hot(y, 10).float()), task.train.batch_size)
    squared = connectivity(replace(problem, likelihood=Gaussian(1.0)))
    found = laplace(squared, rows, 1.0, partial(kfac, others=diagonal))
    found = replace(found, problem=replace(found.problem, likelihood=Categorical()))
    return Predictor(lambda data: predict(found, data), "prior scale 1, not tuned")


ALL_LAYERS = partial(kfac, others=diagonal)
WAYS: dict[str, Way] = {
    "MAP": as_trained,
    "temperature": tempered,
    "LL last layer": partial(by_laplace, False, True, ggn),
    "CL last layer": partial(by_laplace, True, True, ggn),
    "LL kfac": partial(by_laplace, False, False, ALL_LAYERS),
    "CL kfac": partial(by_laplace, True, False, ALL_LAYERS),
    "CL squared 1": by_default,
}


def scored(found: Predictive, unknown: Predictive, y: torch.Tensor) -> dict[str, float | list]:
    losses = found.losses(y).double()
    entropy = torch.cat([found.uncertainty, unknown.uncertainty])
    strange = torch.arange(len(entropy)) >= len(y)
    return {
        "nll": float(losses.mean()),
        "stderr": float(losses.std() / len(losses) ** 0.5),
        "accuracy": accuracy(found.probabilities, y),
        "brier": brier_score(found.probabilities, y),
        "ece": expected_calibration_error(found.probabilities, y, EqualWidth(15)),
        "auroc": auc(entropy, strange),
        "losses": [round(float(loss), 6) for loss in losses],
    }


def told(rows: dict[str, dict]) -> None:
    print(
        f"{'way':16}{'NLL':>8}{'+-':>7}{'less MAP':>10}{'+-':>7}{'acc':>7}{'Brier':>7}{'ECE':>7}{'AUROC':>7}{'s':>6}  chosen"
    )
    first = torch.tensor(rows["MAP"]["losses"]).double()
    for name, row in rows.items():
        away = torch.tensor(row["losses"]).double() - first
        print(
            f"{name:16}{row['nll']:8.4f}{row['stderr']:7.4f}{float(away.mean()):+10.4f}{float(away.std()) / len(away) ** 0.5:7.4f}"
            f"{row['accuracy']:7.3f}{row['brier']:7.4f}{row['ece']:7.4f}{row['auroc']:7.3f}{row['seconds']:6.0f}  {row['chosen']}"
        )


def against(rows: dict[str, dict], one: str, other: str) -> None:
    """Paired difference of the losses of two ways."""
    first, second = (torch.tensor(rows[name]["losses"]).double() for name in (one, other))
    away = first - second
    print(
        f"{one} less {other}: {float(away.mean()):+.4f} +- {float(away.std()) / len(away) ** 0.5:.4f} nats"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--on", choices=("mnist", "cifar"), required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results / f"e9-{given.on}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    task = {"mnist": task_of_digits, "cifar": task_of_colors}[given.on](given.data)
    problem = Problem.from_module(task.network, Categorical())
    print(f"{problem.num_params:,} parameters", flush=True)
    for name, way in WAYS.items():
        if name not in rows:
            started = time.perf_counter()
            found = way(problem, task)
            test, unknown = found.predict(task.test), found.predict(task.unknown)
            row = scored(test, unknown, task.test.targets())
            seconds = time.perf_counter() - started
            rows[name] = {**row, "chosen": found.chosen, "seconds": round(seconds, 1)}
            path.write_text(json.dumps(rows))
            print(f"{name}: {rows[name]['nll']:.4f} nats, {seconds:.0f} s", flush=True)
    told(rows)
    against(rows, "CL kfac", "LL kfac")
    against(rows, "CL last layer", "LL last layer")
    against(rows, "CL kfac", "temperature")


if __name__ == "__main__":
    main()

"""Connectivity Laplace on a convolutional network of 10 million parameters, with 2,000 inputs.

    python experiments/ctk/large.py [--inputs 2000] [--threads 2]

Random weights and images (3 x 16 x 16): it is time and memory that are measured, wall-clock and peak of the process.
Last layer: full posterior of restrict(connectivity(problem), "head.*"). All layers: Kronecker factors in their
geometric-mean form, fitted on all inputs and predicting all of them. Wanted: 8 GB and 20 minutes for all together.
"""

import argparse
import resource
import time

import torch
from torch import nn

from afterfit.curvature import kfac
from afterfit.posterior import Probit, laplace, predict
from afterfit.problem import Batches, Categorical, Problem, connectivity, restrict

WIDTHS = (64, 192, 448, 704)


def network() -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        parts += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        before = width
    body = nn.Sequential(
        *parts, nn.Flatten(), nn.Linear(before, 5230), nn.ReLU(), nn.Linear(5230, 500), nn.ReLU()
    )
    return nn.Sequential(body, nn.Linear(500, 10)).eval()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def report(what: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:58} {time.perf_counter() - started:8.1f} s   peak {peak:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    problem = connectivity(Problem.from_module(Named(), Categorical()))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(given.inputs, 3, 16, 16, generator=generator)
    data = Batches((x, torch.randint(0, 10, (given.inputs,), generator=generator)), 32)
    report(
        f"{problem.num_params:,} parameters ({problem.num_frozen:,} frozen), {given.inputs} inputs",
        started,
    )
    head = restrict(problem, "head.*")
    posterior = laplace(head, data)
    report(f"last layer fitted: {posterior.structure}, {head.num_params:,} parameters", started)
    found = predict(posterior, data, Probit())
    report(
        f"last layer predicts, mean logit variance {float(found.logit_variance.mean()):.3g}",
        started,
    )
    posterior = laplace(problem, data, 1.0, kfac)
    report(f"all layers fitted: {posterior.structure}", started)
    found = predict(posterior, data, Probit())
    report(
        f"all layers predict, mean logit variance {float(found.logit_variance.mean()):.3g}", started
    )


if __name__ == "__main__":
    main()

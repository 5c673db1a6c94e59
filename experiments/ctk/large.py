"""Connectivity on a convolutional network of 10 million parameters, with 2,000 inputs.

    python experiments/ctk/large.py [--inputs 2000] [--threads 2]

Random weights and images (3 x 16 x 16): it is time and memory that are measured, wall clock and processor seconds of
each part, and the peak of the process. Sharpness: the estimate with its standard error and the exact value. Spectrum:
the 5 largest eigenvalues of the generalized Gauss-Newton matrix in relative coordinates, each with its residual. Last
layer: full posterior of restrict(connectivity(problem), "head.*"). All layers: Kronecker factors in their
geometric-mean form. Everything is computed on all inputs, and both posteriors predict all of them. Wanted: 8 GB and 20
minutes for all together.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, nn

from afterfit.curvature import ggn, kfac
from afterfit.linalg import spectrum
from afterfit.posterior import GaussianPosterior, Probit, laplace, predict
from afterfit.problem import Batches, Categorical, Problem, connectivity, restrict
from afterfit.sharpness import connectivity_sharpness, estimate_connectivity_sharpness

WIDTHS = (64, 192, 448, 704)
TOLERANCE = 1e-3


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
            parts += [conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            before = width
        parts += [nn.Flatten(), nn.Linear(before, 5230), nn.ReLU(), nn.Linear(5230, 500), nn.ReLU()]
        self.body, self.head = nn.Sequential(*parts), nn.Linear(500, 10)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@contextmanager
def part(name: str) -> Iterator[None]:
    """Print what a part took."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {name}: {wall:.1f} s, processor {processor:.1f} s, peak {peak:.2f} GB", flush=True)


def sharpness(problem: Problem, data: Batches, generator: Generator) -> None:
    with part("connectivity sharpness, 8 probes"):
        found = estimate_connectivity_sharpness(problem, data, 8, generator)
        assert found.stderr is not None
        print(f"connectivity sharpness {found.total:.6g}, standard error {found.stderr:.2g}")
    with part("connectivity sharpness, exact"):
        print(f"connectivity sharpness {connectivity_sharpness(problem, data).total:.6g}, exact")


def top(relative: Problem, data: Batches, generator: Generator) -> None:
    with part("5 largest eigenvalues"):
        found = spectrum(ggn(relative, data), 5, generator, TOLERANCE)
        for value, residual in zip(found.values, found.residuals, strict=True):
            print(f"eigenvalue {float(value):.6g}, residual {float(residual):.1g}")


def posterior(name: str, fitted: GaussianPosterior, data: Batches) -> None:
    with part(f"{name} predicts"):
        found = predict(fitted, data, Probit())
        largest = float(found.mean.amax(1).mean())
        print(
            f"{name}: {fitted.structure}, mean variance of an output "
            f"{float(found.logit_variance.mean()):.4g}, mean largest probability {largest:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = Generator().manual_seed(1)
    x = torch.randn(given.inputs, 3, 16, 16, generator=generator)
    y = torch.randint(0, 10, (given.inputs,), generator=generator)
    small, large = Batches((x, y), 50), Batches((x, y), 250)
    with part("all"):
        problem = Problem.from_module(Network(), Categorical())
        relative = connectivity(problem)
        print(
            f"{problem.num_params:,} parameters, {given.inputs} inputs, {given.threads} threads, "
            f"torch {torch.__version__}"
        )
        sharpness(problem, small, generator)
        top(relative, large, generator)
        with part("last layer is fitted"):
            fitted = laplace(restrict(relative, "head.*"), small)
        posterior("last layer", fitted, small)
        with part("all layers are fitted"):
            fitted = laplace(relative, small, 1.0, kfac)
        posterior("all layers", fitted, small)


if __name__ == "__main__":
    main()

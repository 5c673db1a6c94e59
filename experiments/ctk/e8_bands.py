"""E8: the bands of a one-dimensional regression under rescalings that do not change the function.

    python experiments/ctk/e8_bands.py [--out bands.csv]

A ReLU network is fitted to two clusters of points, then rescaled in three ways that leave the function as it is: layer 1
times 4 and layer 2 divided by 4, the same by 1/4, and every hidden unit by a factor of its own. Printed: the standard
deviation of the function at five inputs for linearized Laplace (LL, prior scale 0.3) and connectivity Laplace (CL, prior
scale 1), and by how much each band changes. Expected: LL changes visibly (by more than 10 %), CL not at all (1e-10).
``--out`` writes x, mean and the standard deviation of every band: the data of the plot in docs/questions/uncertainty.md.
"""

import argparse
import copy
import math

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from afterfit.posterior import laplace, predict
from afterfit.problem import Batches, Gaussian, Problem, connectivity

SIGMA, GRID = 0.1, torch.linspace(-3, 3, 121).double()[:, None]
SHOWN = (0, 30, 60, 90, 120)
ALPHAS = {"LL": 0.3, "CL": 1.0}


def fitted() -> tuple[nn.Sequential, Batches]:
    generator = Generator().manual_seed(0)
    x = torch.cat(
        [torch.rand(15, 1, generator=generator) - 2, torch.rand(15, 1, generator=generator) + 1]
    ).double()
    y = torch.sin(2 * x) + SIGMA * torch.randn(30, 1, generator=generator).double()
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1)
    ).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(1500):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    return module, Batches((x, y))


@torch.no_grad()
def rescaled(module: nn.Sequential, factors: Tensor) -> nn.Sequential:
    other = copy.deepcopy(module)
    other[0].weight.mul_(factors[:, None])
    other[0].bias.mul_(factors)
    other[2].weight.div_(factors)
    return other


def band(module: nn.Sequential, train: Batches, how: str) -> tuple[Tensor, Tensor]:
    problem = Problem.from_module(module, Gaussian(SIGMA))
    problem = connectivity(problem) if how == "CL" else problem
    found = predict(laplace(problem, train, ALPHAS[how]), Batches((GRID, 0 * GRID)))
    return found.logit_mean[:, 0], found.logit_variance[:, 0].sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    out = parser.parse_args().out
    module, train = fitted()
    by_unit = torch.exp(
        math.log(4) * torch.randn(20, generator=Generator().manual_seed(2)).double()
    )
    networks = {
        "as trained": module,
        "layer x 4": rescaled(module, torch.full((20,), 4.0).double()),
        "layer x 1/4": rescaled(module, torch.full((20,), 0.25).double()),
        "unit by unit": rescaled(module, by_unit),
    }
    columns = {"x": GRID[:, 0].tolist()}
    print(
        "posterior  network        std at x ="
        + "".join(f"{float(GRID[i]):8.1f}" for i in SHOWN)
        + "   largest change"
    )
    for how in ALPHAS:
        first = None
        for name, network in networks.items():
            mean, std = band(network, train, how)
            first = std if first is None else first
            columns.setdefault("mean", mean.tolist())
            columns[f"{how} {name}"] = std.tolist()
            change = float((std / first - 1).abs().max())
            print(
                f"{how:10} {name:24}"
                + "".join(f"{float(std[i]):8.3f}" for i in SHOWN)
                + f"   {change:.1e}"
            )
            assert name == "as trained" or (change > 0.1 if how == "LL" else change < 1e-10)
    print("expected   LL changes by more than 0.1, CL by less than 1e-10")
    if out:
        pd.DataFrame(columns).to_csv(out, index=False)


if __name__ == "__main__":
    main()

"""E6: randomize-then-optimize draws have the law of the posterior, and one-hot noise makes them too narrow.

    python experiments/ctk/e6_rto.py

A small network with squared loss on one-hot targets, in connectivity. (1) The covariance of 600 draws against the closed
form: the share of its entries within 2 standard errors (95 % expected) and the largest deviation in standard errors.
(2) The variance of the outputs with the published one-hot noise over that of the exact posterior, by its formula, for
three pairs (alpha, sigma): expected from the specification (another network) at training points 0.54, 0.27, 0.13 and at
test points 0.65, 0.80, 0.97; what must hold is that all are below 1, falling with alpha at training points.
"""

import torch
from torch import Generator, Tensor, nn

from afterfit.curvature import ggn, jacobian
from afterfit.posterior import ConjugateGradients, one_hot_noise, randomize_then_optimize
from afterfit.problem import Batches, Gaussian, Problem, connectivity

DRAWS = 600
EXPECTED = {(0.1, 1.0): (0.54, 0.65), (1.0, 1.0): (0.27, 0.80), (10.0, 1.0): (0.13, 0.97)}


def task() -> tuple[nn.Sequential, Batches, Batches]:
    generator = Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator).double()
    y = torch.eye(3).double()[(x[:, :3] + 0.3 * torch.randn(60, 3, generator=generator)).argmax(1)]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        (module(x[:40]) - y[:40]).square().sum().backward()
        optimizer.step()
    return module, Batches((x[:40], y[:40]), 20), Batches((x[40:], y[40:]), 20)


def closed_form(problem: Problem, train: Batches, alpha: float) -> Tensor:
    precision = ggn(problem, train).to_dense()
    return torch.linalg.inv(precision + torch.eye(len(precision)).double() / alpha**2)


def output_variances(problem: Problem, data: Batches, covariance: Tensor) -> Tensor:
    rows = jacobian(problem, data).to_dense()
    return ((rows @ covariance) * rows).sum(1)


def main() -> None:
    module, train, test = task()
    problem = connectivity(Problem.from_module(module, Gaussian(1.0)))
    exact = closed_form(problem, train, 1.0)
    solver = ConjugateGradients(tolerance=1e-8)
    for name, noise, covariance in (
        ("full noise", None, exact),
        ("one-hot noise", one_hot_noise, one_hot(problem, train, exact, 1.0)),
    ):
        how = {} if noise is None else {"noise": noise}
        found = randomize_then_optimize(
            problem, train, DRAWS, Generator().manual_seed(1), 1.0, solver, **how
        )
        flat = torch.stack(
            [torch.cat([p.flatten() for p in m.params.values()]) for m in found.members]
        )
        empirical = flat.T @ flat / DRAWS
        variances = covariance.diagonal()
        stderr = ((variances[:, None] * variances + covariance.square()) / DRAWS).sqrt()
        off = ((empirical - covariance) / stderr).abs()
        print(
            f"{name:14} {DRAWS} draws: {100 * float((off < 2).double().mean()):.1f} % of the entries within 2 standard errors "
            f"of the formula (95.4 expected), largest {float(off.max()):.1f}; residuals up to {float(found.residuals.max()):.1e}"
        )
    print("\n(alpha, sigma)   train: measured  expected   test: measured  expected")
    for (alpha, sigma), (at_train, at_test) in EXPECTED.items():
        problem = connectivity(Problem.from_module(module, Gaussian(sigma)))
        exact = closed_form(problem, train, alpha)
        narrow = one_hot(problem, train, exact, alpha)
        ratios = [
            float(
                (
                    output_variances(problem, data, narrow) / output_variances(problem, data, exact)
                ).mean()
            )
            for data in (train, test)
        ]
        print(
            f"({alpha:4g}, {sigma:g}) {ratios[0]:20.2f} {at_train:9.2f} {ratios[1]:15.2f} {at_test:9.2f}"
        )
        assert max(ratios) < 1


def one_hot(problem: Problem, train: Batches, posterior: Tensor, alpha: float) -> Tensor:
    """Covariance of draws with noise on the output of the true class only."""
    sigma = problem.likelihood.sigma
    rows = jacobian(problem, train).to_dense() * train.targets().flatten()[:, None]
    middle = torch.eye(len(posterior)).double() / alpha**2 + rows.T @ rows / sigma**2
    return posterior @ middle @ posterior


if __name__ == "__main__":
    main()

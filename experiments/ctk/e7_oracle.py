"""E7: connectivity Laplace equals laplace-torch on the module whose parameters are the connectivity.

    python experiments/ctk/e7_oracle.py

The weights of the module are w0 * c with c = 1 at the start; laplace-torch (its exact GGN from Jacobians) is fitted on it
with a prior around 1. Expected from the specification: relative difference 1e-14 in float64. Printed: the largest
difference of the output covariances over their largest entry, for full and diagonal curvature and both likelihoods.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from afterfit.curvature import diagonal, ggn
from afterfit.posterior import laplace
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity

warnings.simplefilter("ignore")
from laplace import Laplace  # noqa: E402
from laplace.curvature import GGNInterface  # noqa: E402

ALPHA, SIGMA = 0.7, 0.4


class Relative(nn.Module):
    """A layer whose parameters c multiply its trained weights."""

    def __init__(self, trained: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight0", trained.weight.detach().clone())
        self.register_buffer("bias0", trained.bias.detach().clone())
        self.weight = nn.Parameter(torch.ones_like(trained.weight))
        self.bias = nn.Parameter(torch.ones_like(trained.bias))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight0 * self.weight, self.bias0 * self.bias)


def main() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    relative = [Relative(p) if isinstance(p, nn.Linear) else nn.Tanh() for p in module]
    x, query = torch.randn(30, 5).double(), torch.randn(20, 5).double()
    print("likelihood      structure  largest relative difference   expected")
    for kind, y in (
        ("classification", torch.arange(30) % 3),
        ("regression", torch.randn(30, 3).double()),
    ):
        likelihood = Categorical() if kind == "classification" else Gaussian(SIGMA)
        for structure, curvature in (("full", ggn), ("diag", diagonal)):
            noise = {} if kind == "classification" else {"sigma_noise": SIGMA}
            theirs = Laplace(
                nn.Sequential(*relative), kind, subset_of_weights="all", hessian_structure=structure,
                backend=GGNInterface, prior_precision=1 / ALPHA**2, prior_mean=1.0, **noise,
            )  # fmt: skip
            theirs.fit(DataLoader(TensorDataset(x, y), batch_size=10))
            expected = theirs._glm_predictive_distribution(query)[1].detach()
            problem = connectivity(Problem.from_module(module, likelihood))
            posterior = laplace(problem, Batches((x, y), 10), ALPHA, curvature)
            found = torch.cat(
                [part for _, _, part in posterior.covariances(Batches((query, y[:20]), 10))]
            )
            gap = float((found - expected).abs().max() / expected.abs().max())
            print(f"{kind:15} {structure:10} {gap:27.2e}   <= 1e-12")
            assert gap < 1e-12


if __name__ == "__main__":
    main()

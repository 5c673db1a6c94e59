"""Speed of diagonals and spectra of curvature against other libraries.

    python benchmarks/curvature.py                 # every task, with one and with two threads
    python benchmarks/curvature.py --task diagonal-mlp --threads 1

Time is processor time (the least of the repetitions, after one that is not counted), since wall
time on a shared machine tells of the neighbors. Memory is the peak of the process above what it
held when the work began. Weights and data are the same for all rows of a task, in float32, seed 0;
random. Peers: ``make oracles``.
"""

from collections.abc import Callable

import torch
from rows import Rows, conv_net, main, setting, small_mlp
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from afterfit.curvature import diagonal, ggn
from afterfit.linalg import spectrum

# Diagonal of the GGN ---------------------------------------------------------------------------


def diagonal_ours(make: Callable) -> Callable[[], Tensor]:
    _, _, _, problem, data = setting(make, 512, 128)
    return lambda: diagonal(problem, data).entries


def diagonal_backpack(make: Callable) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact

    module, inputs, labels, _, _ = setting(make, 512, 128)
    extend(module)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))

    def run() -> Tensor:
        total = 0
        for x, y in zip(inputs.split(128), labels.split(128), strict=True):
            module.zero_grad()
            with backpack(DiagGGNExact()):
                loss(module(x), y).backward()
            total = total + torch.cat([p.diag_ggn_exact.flatten() for p in module.parameters()])
        return total

    return run


def diagonal_laplace(make: Callable, backend: str) -> Callable[[], Tensor]:
    import laplace.curvature as curvature
    from laplace import Laplace

    module, inputs, labels, _, _ = setting(make, 512, 128)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=128)
    chosen = {} if backend == "default" else {"backend": getattr(curvature, backend)}

    def run() -> Tensor:
        found = Laplace(
            module, "classification", subset_of_weights="all", hessian_structure="diag", **chosen
        )
        found.fit(loader)
        return found.H.detach()

    return run


# Top of the spectrum ---------------------------------------------------------------------------


def top_ours(make: Callable) -> Callable[[], Tensor]:
    _, _, _, problem, data = setting(make, 512, 128)

    def run() -> Tensor:
        return spectrum(ggn(problem, data), 10, Generator().manual_seed(0)).values

    return run


def top_curvlinops(make: Callable, tolerance: float) -> Callable[[], Tensor]:
    from curvlinops import GGNLinearOperator
    from scipy.sparse.linalg import eigsh

    module, inputs, labels, _, _ = setting(make, 512, 128)
    data = list(zip(inputs.split(128), labels.split(128), strict=True))
    loss = nn.CrossEntropyLoss(reduction="sum")

    def run() -> Tensor:
        operator = GGNLinearOperator(
            module, loss, list(module.parameters()), data, check_deterministic=False
        )
        values = eigsh(
            operator.to_scipy(), k=10, which="LM", tol=tolerance, return_eigenvectors=False
        )
        return torch.tensor(values.copy()).sort(descending=True).values

    return run


TASKS: dict[str, Rows] = {
    "diagonal-mlp": {
        "ours": lambda: diagonal_ours(small_mlp),
        "BackPACK": lambda: diagonal_backpack(small_mlp),
        "laplace-torch": lambda: diagonal_laplace(small_mlp, "default"),
        "laplace-torch, BackPACK": lambda: diagonal_laplace(small_mlp, "BackPackGGN"),
        "laplace-torch, ASDL": lambda: diagonal_laplace(small_mlp, "AsdlGGN"),
    },
    "diagonal-conv": {
        "ours": lambda: diagonal_ours(conv_net),
        "BackPACK": lambda: diagonal_backpack(conv_net),
        "laplace-torch": lambda: diagonal_laplace(conv_net, "default"),
        "laplace-torch, BackPACK": lambda: diagonal_laplace(conv_net, "BackPackGGN"),
    },
    "top-10-mlp": {
        "ours": lambda: top_ours(small_mlp),
        "curvlinops, scipy": lambda: top_curvlinops(small_mlp, 1e-6),
    },
    "top-10-conv": {
        "ours": lambda: top_ours(conv_net),
        "curvlinops, scipy": lambda: top_curvlinops(conv_net, 1e-6),
    },
}


if __name__ == "__main__":
    main(__doc__, TASKS)

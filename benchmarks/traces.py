"""Speed of the connectivity trace against dense Jacobians and against another estimator.

    python benchmarks/traces.py                    # every task, with one and with two threads
    python benchmarks/traces.py --task mlp-784-256-256-10-by-1000 --threads 1

Time is processor time (the least of the repetitions, after one that is not counted), since wall
time on a shared machine tells of the neighbors. Memory is the peak of the process above what it
held when the work began. Weights and data are the same for all rows of a task, in float32, seed 0;
random, but for the task one-per-cent, whose network is trained on digits. The last number in the
name of a task is that of the inputs. Jacobians of the wider networks come in chunks of samples,
which are faster than all at once and fit in memory.
"""

import statistics
from collections.abc import Callable

import torch
from rows import NUM_CLASSES, Rows, large_mlp, main, mnist_mlp, setting, small_mlp
from torch import Generator, Tensor, nn

from afterfit.curvature import estimate_squared_jacobian_trace, squared_jacobian
from afterfit.problem import Batches, Categorical, Problem, connectivity


def forward_of(module: nn.Module) -> tuple[dict[str, Tensor], Callable]:
    params = {name: p.detach() for name, p in module.named_parameters()}

    def forward(at: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, at, (x,))

    return params, forward


# Exact trace of the connectivity tangent kernel ------------------------------------------------


def trace_ours(make: Callable, num: int) -> Callable[[], float]:
    _, _, _, problem, data = setting(make, num, num)
    relative = connectivity(problem)
    return lambda: float(
        sum(part.double().sum() for part in squared_jacobian(relative, data).values())
    )


def trace_dense(make: Callable, num: int, chunk: int, by_sample: bool) -> Callable[[], float]:
    module, inputs, _, _, _ = setting(make, num, num)
    params, forward = forward_of(module)

    def one(at: dict[str, Tensor], x: Tensor) -> Tensor:
        return forward(at, x[None])[0]

    whole = torch.func.jacrev(forward)
    each = torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0))

    def run() -> float:
        total = 0.0
        for x in inputs.split(chunk):
            rows = (each if by_sample else whole)(params, x)
            total += sum(float((rows[n] * p).square().sum()) for n, p in params.items())
        return total

    return run


# Time to one per cent --------------------------------------------------------------------------


def digits_net() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 16)):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, NUM_CLASSES))


def digits_setting() -> tuple[nn.Module, Tensor, Problem, Batches]:
    """A conv net with normalization after two epochs on digits, and 64 images."""
    from sklearn.datasets import load_digits

    found = load_digits()
    inputs = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)
    torch.manual_seed(0)
    module = digits_net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for index in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[index]), labels[index]).backward()
            optimizer.step()
    module.eval()
    problem = Problem.from_module(module, Categorical())
    chosen = slice(0, 64)
    return module, inputs[chosen], problem, Batches((inputs[chosen], labels[chosen]), 64)


def estimate_ours(probes: int = 20) -> Callable[[], dict]:
    _, _, problem, data = digits_setting()
    relative = connectivity(problem)

    def run() -> dict:
        found = estimate_squared_jacobian_trace(relative, data, probes, Generator().manual_seed(0))
        return {"value": found.value, "error": found.stderr * probes**0.5, "probes": probes}

    return run


def estimate_joint(probes: int = 60) -> Callable[[], dict]:
    """One vector of signs for the batch, as published; the error of a probe from their spread."""
    module, inputs, _, _ = digits_setting()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    generator = Generator().manual_seed(0)

    def probe() -> float:
        out = torch.func.functional_call(module, leaves, (inputs,))
        signs = 2.0 * torch.randint(0, 2, out.shape, generator=generator) - 1
        rows = torch.autograd.grad(out, tuple(leaves.values()), signs)
        pairs = zip(rows, leaves.values(), strict=True)
        return sum(float((g * p).square().sum()) for g, p in pairs)

    def run() -> dict:
        values = [probe() for _ in range(probes)]
        return {
            "value": statistics.mean(values),
            "error": statistics.stdev(values),
            "probes": probes,
        }

    return run


def exact_trace() -> Callable[[], dict]:
    _, _, problem, data = digits_setting()
    relative = connectivity(problem)

    def run() -> dict:
        squares = squared_jacobian(relative, data)
        value = float(sum(part.double().sum() for part in squares.values()))
        return {"value": value, "error": 0.0, "probes": 0}

    return run


def against_dense(make: Callable, num: int, chunk: int) -> Rows:
    return {
        "ours": lambda: trace_ours(make, num),
        "jacrev of the batch": lambda: trace_dense(make, num, chunk, by_sample=False),
        "vmap of jacrev": lambda: trace_dense(make, num, chunk, by_sample=True),
    }


TASKS: dict[str, Rows] = {
    "mlp-64-64-64-10-by-256": against_dense(small_mlp, 256, 256),
    "mlp-64-64-64-10-by-2000": against_dense(small_mlp, 2000, 250),
    "mlp-256-512-256-10-by-256": against_dense(large_mlp, 256, 16),
    "mlp-784-256-256-10-by-1000": against_dense(mnist_mlp, 1000, 10),
    "one-per-cent": {"ours": estimate_ours, "joint probe": estimate_joint, "exact": exact_trace},
}


if __name__ == "__main__":
    main(__doc__, TASKS)

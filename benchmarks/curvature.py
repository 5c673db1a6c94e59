"""Speed of curvature against other ways and other libraries, each in a process of its own.

    python benchmarks/curvature.py                 # every task, with one and with two threads
    python benchmarks/curvature.py --task diagonal-mlp --threads 1

Time is processor time (the median of the repetitions, after one that is not counted), since wall
time on a shared machine tells of the neighbors. Memory is the peak of the process above what it
held when the work began. Weights and data are the same for all rows of a task, in float32, seed 0;
random, but for the task one-per-cent, whose network is trained on digits. Peers: ``make oracles``.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from afterfit.curvature import diagonal, estimate_squared_jacobian_trace, ggn, squared_jacobian
from afterfit.linalg import spectrum
from afterfit.problem import Batches, Categorical, Problem, connectivity

NUM_CLASSES = 10


def small_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    body = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES)]
    return nn.Sequential(*body), (64,)


def large_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES)
    ), (256,)


def conv_net() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, NUM_CLASSES),
    ), (3, 16, 16)


def setting(
    make: Callable, num: int, batch: int
) -> tuple[nn.Module, Tensor, Tensor, Problem, Batches]:
    torch.manual_seed(0)
    module, shape = make()
    inputs, labels = torch.randn(num, *shape), torch.randint(0, NUM_CLASSES, (num,))
    problem = Problem.from_module(module, Categorical())
    return module.eval(), inputs, labels, problem, Batches((inputs, labels), batch)


def forward_of(module: nn.Module) -> tuple[dict[str, Tensor], Callable]:
    params = {name: p.detach() for name, p in module.named_parameters()}

    def forward(at: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, at, (x,))

    return params, forward


# Exact trace of the connectivity tangent kernel ------------------------------------------------


def trace_ours(make: Callable) -> Callable[[], float]:
    _, _, _, problem, data = setting(make, 256, 256)
    relative = connectivity(problem)
    return lambda: float(
        sum(part.double().sum() for part in squared_jacobian(relative, data).values())
    )


def trace_dense(make: Callable, chunk: int, by_sample: bool) -> Callable[[], float]:
    module, inputs, _, _, _ = setting(make, 256, 256)
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


def exact_trace() -> float:
    _, _, problem, data = digits_setting()
    squares = squared_jacobian(connectivity(problem), data)
    return float(sum(part.double().sum() for part in squares.values()))


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


TASKS: dict[str, dict[str, Callable[[], Callable]]] = {
    "trace-small": {
        "ours": lambda: trace_ours(small_mlp),
        "jacrev of the batch": lambda: trace_dense(small_mlp, 256, by_sample=False),
        "vmap of jacrev": lambda: trace_dense(small_mlp, 256, by_sample=True),
    },
    "trace-large": {
        "ours": lambda: trace_ours(large_mlp),
        "jacrev of the batch": lambda: trace_dense(large_mlp, 16, by_sample=False),
        "vmap of jacrev": lambda: trace_dense(large_mlp, 16, by_sample=True),
    },
    "one-per-cent": {"ours": estimate_ours, "joint probe": estimate_joint},
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


def peak() -> float:
    """Largest resident memory so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(task: str, row: str, threads: int, repetitions: int) -> dict:
    """Run one row in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    run = TASKS[task][row]()
    before = peak()
    found = run()
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        found = run()
        seconds.append(time.process_time() - start)
    value = found.double().tolist() if isinstance(found, Tensor) else found
    return {"seconds": statistics.median(seconds), "megabytes": peak() - before, "found": value}


def in_its_own_process(task: str, row: str, threads: int, repetitions: int) -> dict:
    command = [sys.executable, __file__, "--task", task, "--row", row]
    command += ["--threads", str(threads), "--repetitions", str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:100]}
    return json.loads(done.stdout.splitlines()[-1])


def quality(task: str, found: object, reference: object) -> str:
    if task == "one-per-cent":
        return f"{found['value']:.6g}, error of a probe {found['error'] / found['value']:.2%}"
    one, other = (torch.as_tensor(v, dtype=torch.float64) for v in (found, reference))
    return f"differs from ours by {float((one - other).norm() / other.norm()):.1e}"


def seconds_of(task: str, result: dict) -> float:
    """Processor seconds; for an estimate those until its error is one per cent."""
    if task != "one-per-cent":
        return result["seconds"]
    found = result["found"]
    needed = max(2.0, (found["error"] / found["value"] / 0.01) ** 2)  # two tell an error
    return result["seconds"] / found["probes"] * needed


def show(task: str, threads: int, repetitions: int) -> None:
    print(f"\n{task}, {threads} thread(s): seconds, ratio to ours, peak MB, quality")
    results = {row: in_its_own_process(task, row, threads, repetitions) for row in TASKS[task]}
    ours = results["ours"]
    for row, result in results.items():
        if "error" in result:
            print(f"  {row:24} failed: {result['error']}")
            continue
        spent = seconds_of(task, result)
        ratio = spent / seconds_of(task, ours)
        told = quality(task, result["found"], ours["found"])
        print(f"  {row:24} {spent:10.4f} {ratio:8.1f}x {result['megabytes']:8.0f}  {told}")
    if task == "one-per-cent":
        print(f"  exact value              {exact_trace():.6g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--row")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.row is not None:
        print(json.dumps(work(chosen.task, chosen.row, chosen.threads or 1, chosen.repetitions)))
        return
    for task in [chosen.task] if chosen.task else TASKS:
        for threads in [chosen.threads] if chosen.threads else (1, 2):
            show(task, threads, chosen.repetitions)


if __name__ == "__main__":
    main()

"""Speed and memory of predictions with a Laplace posterior, beside laplace-torch.

    python benchmarks/posterior.py                 # all cases, 1 and 2 threads
    python benchmarks/posterior.py --case full --threads 1

Every figure comes from a fresh process. Both get the same weights and data in float32 and compute
mean and covariance of the outputs (no link) of the queries, in the same batches; the processor
time of the first call and the least of the later ones are printed with the peak memory of the
process, and the memory that importing alone takes. Wall time on a shared machine tells of the
neighbors: with two threads on loaded cores every parallel operation waits for its turn, and the
processor time of that wait is counted. laplace-torch is run with each of its backends and its best
is compared. Cases:

    kron-10     Kronecker posterior, MLP 64-64-64-10, fitted on 512 samples, 256 queries
    kron-1000   Kronecker posterior, MLP 64-128-1000, fitted on 64 samples, 32 queries
    full        full posterior, MLP 64-40-16-10 (3 426 parameters), 512 samples, 128 queries
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CALLS = 20
MAX_MEMORY = 8 * 2**30
"""Bytes of address space of a process: who needs more fails, and the machine does not."""


@dataclass(frozen=True)
class Case:
    structure: str
    widths: tuple[int, ...]
    num_train: int
    num_query: int
    batch_size: int
    peers: tuple[str, ...]


CASES = {
    "kron-10": Case("kron", (64, 64, 64, 10), 512, 256, 128, ("CurvlinopsGGN", "AsdlGGN")),
    "kron-1000": Case("kron", (64, 128, 1000), 64, 32, 16, ("CurvlinopsGGN", "AsdlGGN")),
    "full": Case(
        "full", (64, 40, 16, 10), 512, 128, 128, ("CurvlinopsGGN", "AsdlGGN", "BackPackGGN")
    ),
}


def network(case: Case) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for first, second in zip(case.widths, case.widths[1:], strict=False):
        parts += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def data(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.num_train, case.widths[0], generator=generator)
    y = torch.randint(0, case.widths[-1], (case.num_train,), generator=generator)
    return x, y, torch.randn(case.num_query, case.widths[0], generator=generator)


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(case: Case) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    from afterfit.curvature import ggn, kfac
    from afterfit.posterior import laplace
    from afterfit.problem import Batches, Categorical, Problem

    x, y, query = data(case)
    problem = Problem.from_module(network(case), Categorical())
    fitted: list[Any] = []
    queries = Batches((query, torch.zeros(len(query), dtype=torch.long)), case.batch_size)

    def fit() -> None:
        curvature = kfac if case.structure == "kron" else ggn
        fitted.append(laplace(problem, Batches((x, y), case.batch_size), 1.0, curvature))

    def predict() -> Tensor:
        return torch.cat([part for _, _, part in fitted[0].covariances(queries)])

    return fit, predict


def theirs(case: Case, backend: str) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    import laplace.curvature
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    x, y, query = data(case)
    fitted = Laplace(
        network(case),
        "classification",
        subset_of_weights="all",
        hessian_structure=case.structure,
        prior_precision=1.0,
        backend=getattr(laplace.curvature, backend),
    )

    def fit() -> None:
        fitted.fit(DataLoader(TensorDataset(x, y), batch_size=case.batch_size))

    def predict() -> Tensor:
        parts = [
            fitted._glm_predictive_distribution(rows)[1].detach()
            for rows in query.split(case.batch_size)
        ]
        return torch.cat(parts)

    return fit, predict


def seconds(run: Callable[[], Any]) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def child(case: Case, who: str, threads: int) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    fit, predict = ours(case) if who == "afterfit" else theirs(case, who)
    loaded = memory()
    fitting = seconds(fit)
    found: list[Tensor] = []
    calls = [seconds(lambda: found.append(predict())) for _ in range(2)]
    if calls[1] < 20:
        calls += [seconds(predict) for _ in range(CALLS - 2)]
    return {
        "fit": fitting,
        "first": calls[0],
        "later": min(calls[1:]),
        "loaded": loaded,
        "peak": memory(),
        "mean_variance": float(found[0].diagonal(dim1=1, dim2=2).double().mean()),
    }


def measured(name: str, who: str, threads: int) -> dict[str, Any] | None:
    command = [sys.executable, __file__, "--case", name, "--threads", str(threads), "--who", who]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"{name:10} {threads} thread  {who:14} failed: {reason:.100}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, threads: int) -> None:
    rows = {who: measured(name, who, threads) for who in ("afterfit", *CASES[name].peers)}
    for who, row in rows.items():
        if row is not None:
            print(
                f"{name:10} {threads} thread  {who:14} fit {row['fit']:7.2f} s  first "
                f"{row['first']:8.4f} s  later {row['later']:8.4f} s  peak {row['peak']:6.0f} MB "
                f"(loaded {row['loaded']:4.0f})  mean variance {row['mean_variance']:.6g}"
            )
    own = rows.pop("afterfit")
    others = [row for row in rows.values() if row is not None]
    if own and others:
        ratio = min(row["later"] for row in others) / own["later"]
        print(
            f"{name:10} {threads} thread  later calls {ratio:.1f} x as fast as the best of theirs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--who")
    given = parser.parse_args()
    if given.who:
        print(json.dumps(child(CASES[given.case], given.who, given.threads or 1)))
        return
    for name in [given.case] if given.case else list(CASES):
        for threads in [given.threads] if given.threads else [1, 2]:
            compare(name, threads)


if __name__ == "__main__":
    main()

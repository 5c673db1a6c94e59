"""Networks, data, and a process of its own for each row, for the benchmarks of curvature."""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from afterfit.problem import Batches, Categorical, Problem

Rows = Mapping[str, Callable[[], Callable]]
"""Ways to do a task: each makes what is timed. The first is ours."""

NUM_CLASSES = 10


def small_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    body = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES)]
    return nn.Sequential(*body), (64,)


def large_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES)
    ), (256,)


def mnist_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES)
    ), (784,)


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


def peak() -> float:
    """Largest resident memory so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(make: Callable[[], Callable], threads: int, repetitions: int) -> dict:
    """Run one row in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    run = make()
    before = peak()
    found = run()
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        found = run()
        seconds.append(time.process_time() - start)
    value = found.double().tolist() if isinstance(found, Tensor) else found
    return {"seconds": min(seconds), "megabytes": peak() - before, "found": value}


def in_its_own_process(task: str, row: str, threads: int, repetitions: int) -> dict:
    command = [sys.executable, sys.argv[0], "--task", task, "--row", row]
    command += ["--threads", str(threads), "--repetitions", str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:100]}
    return json.loads(done.stdout.splitlines()[-1])


def quality(found: object, reference: object) -> str:
    one, other = (torch.as_tensor(v, dtype=torch.float64) for v in (found, reference))
    return f"differs from ours by {float((one - other).norm() / other.norm()):.1e}"


def seconds_of(result: dict) -> float:
    """Processor seconds; for an estimate those until its error is one per cent."""
    found = result["found"]
    if not isinstance(found, dict) or found["error"] == 0:
        return result["seconds"]
    needed = max(2.0, (found["error"] / found["value"] / 0.01) ** 2)  # two tell an error
    return result["seconds"] / found["probes"] * needed


def show(task: str, rows: Rows, threads: int, repetitions: int) -> None:
    print(f"\n{task}, {threads} thread(s): seconds, ratio to ours, peak MB, quality")
    results = {row: in_its_own_process(task, row, threads, repetitions) for row in rows}
    ours = results["ours"]
    for row, result in results.items():
        if "error" in result:
            print(f"  {row:24} failed: {result['error']}")
            continue
        spent, found = seconds_of(result), result["found"]
        told = (
            f"{found['value']:.6g}, error of a probe {found['error'] / found['value']:.2%}"
            if isinstance(found, dict)
            else quality(found, ours["found"])
        )
        ratio = spent / seconds_of(ours)
        print(
            f"  {row:24} {spent:10.4f} {ratio:8.1f}x {result['megabytes']:8.0f}  {told}", flush=True
        )


def main(description: str | None, tasks: Mapping[str, Rows]) -> None:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tasks)
    parser.add_argument("--row")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.row is not None:
        run = tasks[chosen.task][chosen.row]
        print(json.dumps(work(run, chosen.threads or 1, chosen.repetitions)))
        return
    for task in [chosen.task] if chosen.task else tasks:
        for threads in [chosen.threads] if chosen.threads else (1, 2):
            show(task, tasks[task], threads, chosen.repetitions)

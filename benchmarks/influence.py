"""Influence by products of gradients beside other libraries: W1 self-influence, W2 cross-influence.

    python benchmarks/influence.py                 # N = 1,000 at 2.4k, 100k and 1M parameters
    python benchmarks/influence.py --num 10000     # N = 10,000, 1,000 queries
    python benchmarks/influence.py --peers FOLDER  # where dattri (and trak) are installed, if apart

A multilayer perceptron on random inputs, its parameters at three checkpoints, batches of 500, one
thread. Every row runs in a process of its own; all libraries get the same weights and samples.

- ``tracin``: the sum over three checkpoints of inner products of whole gradients (TracInCP with
  step sizes of one), exact. captum's TracInCP is the same. kronfluence's identity strategy is the
  same at one checkpoint: three are run. dattri always projects to 512 dimensions, so that its scores
  are an estimate: the correlation with the exact ones is in the last column.
- ``datainf``: by layer, exact by its definition, which is dattri's too but that a layer of ours
  is a weight with its bias and one of dattri's a single tensor.

Cold is a first call after a small one (imports), with what is prepared for later ones; warm is 100 new queries. Columns:
processor seconds, ratio to ours, peak megabytes above those before the call, and how the scores go
with ours (rank correlation).
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from afterfit.influence import DataInf, GradientDot, TracIn
from afterfit.problem import Batches, Categorical, Problem

SIZES = {"2.4k": (64, 32, 10), "100k": (64, 280, 280, 10), "1M": (64, 960, 960, 10)}
BATCH, CHECKPOINTS, WARM = 500, 3, 100


def network(size: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    widths = SIZES[size]
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(widths):
        layers += [nn.Linear(width, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def samples(num: int, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(num, 64), torch.randint(0, 10, (num,))


class Ours:
    """Ready to be asked for self-influence, or for influence on queries."""

    def __init__(self, size: str, train: tuple[Tensor, Tensor], method: str) -> None:
        nets = [network(size, seed) for seed in range(CHECKPOINTS)]
        self.problem = Problem.from_module(nets[0], Categorical())
        states = [net.state_dict() for net in nets]
        made = {
            "tracin": lambda: TracIn(states, [1.0] * CHECKPOINTS),
            "dot": GradientDot,
            "datainf": DataInf,
        }
        self.influence = made[method]().fit(self.problem, Batches(train, BATCH))

    def own(self) -> Tensor:
        return self.influence.self_scores()

    def cross(self, query: tuple[Tensor, Tensor]) -> Tensor:
        return self.influence.scores(Batches(query, BATCH))


class Captum:
    def __init__(self, size: str, train: tuple[Tensor, Tensor], kind: str) -> None:
        from captum.influence import TracInCP, TracInCPFast

        def load(model: nn.Module, path: str) -> float:
            model.load_state_dict(torch.load(path, weights_only=True))
            return 1.0

        self.folder = tempfile.TemporaryDirectory()
        paths = []
        for seed in range(CHECKPOINTS):
            paths.append(f"{self.folder.name}/{seed}.pt")
            torch.save(network(size, seed).state_dict(), paths[-1])
        data = torch.utils.data.TensorDataset(*train)
        shared = {"checkpoints": paths, "checkpoints_load_func": load, "batch_size": BATCH}
        net = network(size, 0)
        loss = nn.CrossEntropyLoss(reduction="sum")
        self.captum = (
            TracInCP(net, data, loss_fn=loss, sample_wise_grads_per_batch=True, **shared)
            if kind == "all"
            else TracInCPFast(net, net[-1], data, loss_fn=loss, **shared)
        )

    def own(self) -> Tensor:
        return self.captum.self_influence()

    def cross(self, query: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(
            [
                self.captum.influence((x, y))
                for x, y in zip(query[0].split(BATCH), query[1].split(BATCH), strict=True)
            ]
        )


class Kronfluence:
    def __init__(self, size: str, train: tuple[Tensor, Tensor], _: str) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import ScoreArguments
        from kronfluence.task import Task

        class Classify(Task):
            def compute_train_loss(self, batch, model, sample=False):  # noqa: ARG002
                return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

            def compute_measurement(self, batch, model):
                return self.compute_train_loss(batch, model)

        self.train = torch.utils.data.TensorDataset(*train)
        self.folder = tempfile.TemporaryDirectory()
        self.arguments = ScoreArguments
        self.analyzers = []
        for seed in range(CHECKPOINTS):
            task = Classify()
            self.analyzers.append(
                Analyzer(
                    str(seed),
                    prepare_model(network(size, seed), task),
                    task,
                    cpu=True,
                    output_dir=self.folder.name,
                    disable_tqdm=True,
                )
            )
        for analyzer in self.analyzers:
            analyzer.fit_all_factors(
                "f",
                self.train,
                per_device_batch_size=BATCH,
                factor_args=_identity(),
                overwrite_output_dir=True,
            )
        self.num = 0

    def own(self) -> Tensor:
        total = []
        for analyzer in self.analyzers:
            analyzer.compute_self_scores(
                "s", "f", self.train, per_device_train_batch_size=BATCH, overwrite_output_dir=True
            )
            total.append(analyzer.load_self_scores("s")["all_modules"])
        return torch.stack(total).sum(0)

    def cross(self, query: tuple[Tensor, Tensor]) -> Tensor:
        total = []
        for analyzer in self.analyzers:
            analyzer.compute_pairwise_scores(
                "p",
                "f",
                torch.utils.data.TensorDataset(*query),
                self.train,
                per_device_query_batch_size=BATCH,
                per_device_train_batch_size=BATCH,
                overwrite_output_dir=True,
            )
            total.append(analyzer.load_pairwise_scores("p")["all_modules"])
        return torch.stack(total).sum(0)


def _identity():
    from kronfluence.arguments import FactorArguments

    return FactorArguments(strategy="identity")


class Dattri:
    def __init__(self, size: str, train: tuple[Tensor, Tensor], kind: str) -> None:
        from dattri.algorithm import IFAttributorDataInf, TracInAttributor
        from dattri.task import AttributionTask

        net = network(size, 0)

        def loss(params, data):
            x, y = data
            found = torch.func.functional_call(net, params, (x[None] if x.ndim == 1 else x,))
            return functional.cross_entropy(found, y.reshape(-1).long())

        states = [network(size, seed).state_dict() for seed in range(CHECKPOINTS)]
        one = kind == "datainf"
        task = AttributionTask(loss_func=loss, model=net, checkpoints=states[0] if one else states)
        self.dattri = (
            IFAttributorDataInf(task=task, device="cpu", regularization=0.1)
            if one
            else TracInAttributor(
                task=task, weight_list=torch.ones(CHECKPOINTS), normalized_grad=False, device="cpu"
            )
        )
        self.train = _loader(train)
        if one:
            self.dattri.cache(self.train)

    def own(self) -> Tensor:
        return self.cross_of(self.train).diagonal()

    def cross_of(self, loader) -> Tensor:
        return self.dattri.attribute(self.train, loader).T

    def cross(self, query: tuple[Tensor, Tensor]) -> Tensor:
        return self.cross_of(_loader(query))


def _loader(columns: tuple[Tensor, Tensor]):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*columns), BATCH)


ROWS = {
    ("tracin", "ours"): lambda size, train: Ours(size, train, "tracin"),
    ("tracin", "captum TracInCP"): lambda size, train: Captum(size, train, "all"),
    ("tracin", "kronfluence identity"): lambda size, train: Kronfluence(size, train, ""),
    ("tracin", "dattri (512 projections)"): lambda size, train: Dattri(size, train, "tracin"),
    ("datainf", "ours"): lambda size, train: Ours(size, train, "datainf"),
    ("datainf", "dattri"): lambda size, train: Dattri(size, train, "datainf"),
}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found.detach()


def work(task: str, row: str, size: str, num: int, which: str) -> dict:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train = samples(num, 100)
    small = ROWS[task, row](size, samples(16, 3))  # what is imported at a first call
    small.own() if which == "self" else small.cross(samples(4, 4))
    del small
    before = peak()
    seconds_fit, made = timed_make(lambda: ROWS[task, row](size, train))
    if which == "self":
        cold, found = timed(made.own)
        return {"cold": cold + seconds_fit, "megabytes": peak() - before, "found": _told(found)}
    cold, found = timed(lambda: made.cross(samples(num // 5 if num < 5000 else num // 10, 200)))
    warm, _ = timed(lambda: made.cross(samples(WARM, 300)))
    result = {"cold": cold + seconds_fit, "warm": warm, "megabytes": peak() - before}
    return {**result, "found": _told(found)}


def timed_make(make: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    made = make()
    return time.process_time() - start, made


def _told(found: Tensor) -> list[float]:
    flat = found.flatten().double()
    return flat[torch.arange(0, len(flat), max(1, len(flat) // 2000))].tolist()


def in_its_own_process(options: argparse.Namespace, task: str, row: str, size: str, which: str):
    command = [sys.executable, sys.argv[0], "--work", task, row, size, which]
    command += ["--num", str(options.num)]
    environment = {
        "PYTHONPATH": ":".join([*sys.path[1:], *([options.peers] * bool(options.peers))])
    }
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=options.limit,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {options.limit} seconds"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:90]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tasks", nargs="+", default=["tracin", "datainf"])
    parser.add_argument("--peers")
    parser.add_argument("--rows", nargs="+", help="only these libraries beside ours")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one row")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        task, row, size, which = options.work
        print(json.dumps(work(task, row, size, options.num, which)))
        return
    for size in options.sizes:
        for task in options.tasks:
            for which in ("self", "cross"):
                show(options, size, task, which)


def show(options: argparse.Namespace, size: str, task: str, which: str) -> None:
    print(f"\n{which}-influence, {task}, P = {size}, N = {options.num:,}, one thread")
    print(f"  {'':26}{'cold s':>9}{'ratio':>8}{'warm s':>9}{'ratio':>8}{'MB':>7}  agrees")
    ours: dict = {}
    for found_task, row in ROWS:
        left_out = options.rows and row != "ours" and row not in options.rows
        if found_task != task or left_out:
            continue
        result = in_its_own_process(options, task, row, size, which)
        if "error" in result:
            print(f"  {row:26} {result['error']}", flush=True)
            continue
        ours = ours or result
        line = f"  {row:26}{result['cold']:9.3f}{result['cold'] / ours['cold']:8.1f}"
        line += (
            f"{result['warm']:9.3f}{result['warm'] / ours['warm']:8.1f}"
            if "warm" in result
            else " " * 17
        )
        agree = float(spearmanr(result["found"], ours["found"])[0])
        print(f"{line}{result['megabytes']:7.0f}  {agree:.4f}", flush=True)


if __name__ == "__main__":
    main()

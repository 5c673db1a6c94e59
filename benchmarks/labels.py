"""Self-influence and warm queries: GEX beside EK-FAC by kronfluence and TracInCP by captum.

    python benchmarks/labels.py --data DATA

10,000 images of MNIST (a tenth redrawn labels), a conv net of 0.11 M parameters trained until it remembers most of
them. Every method runs in a process of its own with the same saved network and one thread. Printed: CPU seconds of
everything the method does after the training, peak memory beyond that of an idle process, and the average precision
with which it finds the wrong labels; then the time that 1,000 new queries take against the 10,000 samples once the
method is fitted, and ratios. The ensemble of GEX, its search included, is in its seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "experiments" / "gex"))

import data as sets  # noqa: E402
import networks  # noqa: E402
import noise  # noqa: E402
import numpy as np  # noqa: E402
import peers  # noqa: E402

from afterfit import GEX, Batches, Categorical, Problem  # noqa: E402
from afterfit.evaluate import auc, average_precision  # noqa: E402

NUM_TRAIN, NUM_QUERY, EPOCHS = 10_000, 1_000, 40
METHODS = ("idle", "gex", "kronfluence", "captum")


def make() -> nn.Module:
    return networks.cnn((1, 28, 28), 10, hidden=64)


def prepare(folder: Path, data: Path) -> None:
    """Train once, and keep network, checkpoints and data."""
    loaded = sets.mnist(data, NUM_TRAIN, NUM_QUERY, 0)
    labels, wrong = noise.uniform(loaded.labels, 0.1, 10, np.random.default_rng(0))
    trained = networks.train(make(), loaded.inputs, labels, networks.Regime(EPOCHS, None), 0)
    print(
        f"trained in {trained.cpu_seconds:.0f} CPU s, train accuracy {trained.train_accuracy:.3f}"
    )
    torch.save(
        {
            "network": trained.network.state_dict(),
            "states": [c.state for c in trained.checkpoints],
            "rates": [c.learning_rate + 1e-12 for c in trained.checkpoints],
            "inputs": loaded.inputs, "labels": labels, "wrong": wrong,
            "query": (loaded.test_inputs, loaded.test_labels),
        },
        folder / "task.pt",
    )  # fmt: skip


def measure(method: str, folder: Path) -> dict[str, float]:
    """One method in this process."""
    task = torch.load(folder / "task.pt", weights_only=True)
    network = make()
    network.load_state_dict(task["network"])
    network.eval()
    start = time.process_time()
    asked: float | None = None
    scores: Tensor = torch.zeros(NUM_TRAIN)
    if method == "gex":
        problem = Problem.from_module(network, Categorical())
        fitted = GEX().fit(problem, Batches((task["inputs"], task["labels"]), 512))
        scores = fitted.self_scores()
        seconds = time.process_time() - start
        begin = time.process_time()
        answers = fitted.scores(Batches(task["query"], 512))
        asked = time.process_time() - begin
    elif method == "kronfluence":
        peer = peers.Kronfluence(network, task["inputs"], task["labels"]).fit()
        scores = peer.self_scores()
        seconds = time.process_time() - start
        begin = time.process_time()
        answers = peer.scores(*task["query"])
        asked = time.process_time() - begin
    elif method == "captum":
        scores = peers.captum_tracin(
            network, task["states"], task["rates"], task["inputs"], task["labels"]
        )
        seconds = time.process_time() - start
    else:
        seconds = 0.0
    if asked is not None and answers.shape != (NUM_QUERY, NUM_TRAIN):
        raise RuntimeError(f"{method} answered {tuple(answers.shape)}")
    return {
        "seconds": seconds,
        "query_seconds": float("nan") if asked is None else asked,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "auc": auc(scores, task["wrong"]) if method != "idle" else float("nan"),
        "ap": average_precision(scores, task["wrong"]) if method != "idle" else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.method is not None:
        print(json.dumps(measure(options.method, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.data)
        found = {}
        for method in METHODS:
            command = [sys.executable, __file__, "--method", method, "--folder", temporary]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[method] = json.loads(done.stdout.strip().splitlines()[-1])
    idle = found.pop("idle")["peak_mb"]
    print(
        f"{'method':12s} {'CPU s':>8s} {'memory MB':>10s} {'AUC':>7s} {'AP':>7s} {'queries CPU s':>14s}"
    )
    for method, row in found.items():
        print(
            f"{method:12s} {row['seconds']:8.1f} {row['peak_mb'] - idle:10.0f} {row['auc']:7.4f} "
            f"{row['ap']:7.4f} {row['query_seconds']:14.3f}"
        )
    gex, kron, captum = (found[name] for name in ("gex", "kronfluence", "captum"))
    print(
        f"self-influence: GEX takes {gex['seconds'] / kron['seconds']:.2f} x the time of kronfluence, "
        f"{gex['seconds'] / captum['seconds']:.2f} x that of captum"
    )
    print(
        f"warm queries: GEX is {kron['query_seconds'] / gex['query_seconds']:.0f} x faster than kronfluence"
    )


if __name__ == "__main__":
    main()

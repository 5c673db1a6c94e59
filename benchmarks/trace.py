"""What it costs to record a training trace, in a plain loop on a small conv net.

    python benchmarks/trace.py                    # 28 x 28 images, batches of 128, one thread

The same training, step after step, once with losses by Categorical().loss and once with those by trace.record, in turn,
so that both meet the same neighbors and the same caches. Time is processor time. Printed are the
median of whole steps, the mean of the call that makes the losses within them (a mean, since the trace adds up what it
has held back once in many steps), and what the call takes longer as a share of a step, with its standard error. Whole
steps differ by more from each other than the trace costs, so the call tells. The images are random, and stand in
memory: a loader would make the share smaller.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from afterfit.influence import TrainingTrace
from afterfit.problem import Categorical

NUM_CLASSES = 10
WARM = 20  # steps that are not counted
AVERAGES = (statistics.median, statistics.mean)  # of steps, of the calls within them


class Seconds(NamedTuple):
    step: float
    losses: float


def conv_net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * 49, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)

    inputs = torch.randn(chosen.samples, 1, 28, 28)
    labels = torch.randint(0, NUM_CLASSES, (chosen.samples,))
    net, likelihood = conv_net(chosen.width), Categorical()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    trace = TrainingTrace(chosen.samples, likelihood)

    def step(index: Tensor, losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Seconds:
        start = time.process_time()
        outputs, targets = net(inputs[index]), labels[index]
        before = time.process_time()
        found = losses(index, outputs, targets)
        after = time.process_time()
        optimizer.zero_grad()
        found.mean().backward()
        optimizer.step()
        return Seconds(time.process_time() - start, after - before)

    def plain(index: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
        return likelihood.loss(outputs, targets)

    without: list[Seconds] = []
    recorded: list[Seconds] = []
    for _ in range(chosen.epochs):
        for index in torch.randperm(chosen.samples).split(chosen.batch):
            without.append(step(index, plain))
            recorded.append(step(index, trace.record))

    whole = statistics.median(s.step for s in without[WARM:])
    extra = [b.losses - a.losses for a, b in zip(without[WARM:], recorded[WARM:], strict=True)]
    share = statistics.mean(extra) / whole
    error = statistics.stdev(extra) / len(extra) ** 0.5 / whole
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters} parameters, batches of {chosen.batch}, {chosen.threads} thread(s)")
    for name, found in (("without", without[WARM:]), ("with", recorded[WARM:])):
        steps, losses = (
            average(c) * 1e3 for average, c in zip(AVERAGES, zip(*found, strict=True), strict=True)
        )
        print(f"  {name:8} the trace: a step {steps:8.3f} ms, its losses {losses:7.3f} ms")
    print(f"  the trace takes {share:.2%} +- {error:.2%} of a step")


if __name__ == "__main__":
    main()

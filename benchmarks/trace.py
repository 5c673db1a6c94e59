"""What it costs to record a training trace, in a plain loop on a small conv net.

    python benchmarks/trace.py                    # 28 x 28 images, batches of 128, one thread

The same training, epoch after epoch: once with losses by Categorical().loss, once with those by trace.record, in turn, so
that both meet the same neighbors. Time is processor time of an epoch; printed are the medians, their ratio with the
spread of the ratios of neighboring epochs, and, apart, the time of record alone beyond that of the loss, as a share of
a step. The images are random, and stand in memory: a loader would make the share smaller.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from afterfit.influence import TrainingTrace
from afterfit.problem import Categorical

NUM_CLASSES = 10


def conv_net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * 49, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES),
    )  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


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

    def epoch(losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        for index in torch.randperm(chosen.samples).split(chosen.batch):
            loss = losses(index, net(inputs[index]), labels[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def plain(index: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
        return likelihood.loss(outputs, targets)

    epoch(plain)
    epoch(trace.record)
    pairs = [
        (seconds(lambda: epoch(plain)), seconds(lambda: epoch(trace.record)))
        for _ in range(chosen.epochs)
    ]
    without, recorded = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5

    steps = -(-chosen.samples // chosen.batch)
    index = torch.arange(chosen.batch)
    outputs, targets = net(inputs[index]).detach().requires_grad_(), labels[index]

    def alone(losses: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        return min(seconds(lambda: losses(index, outputs, targets)) for _ in range(2000))

    extra = alone(trace.record) - alone(plain)

    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters} parameters, batches of {chosen.batch}, {chosen.threads} thread(s)")
    print(f"  a step without the trace {without / steps * 1e3:9.3f} ms")
    print(f"  a step with the trace    {recorded / steps * 1e3:9.3f} ms")
    print(f"  ratio of neighbors       {statistics.median(ratios):9.4f}    +- {error:.4f}")
    print(
        f"  record alone             {extra * 1e3:9.3f} ms, {extra / (without / steps):.2%} of a step"
    )


if __name__ == "__main__":
    main()

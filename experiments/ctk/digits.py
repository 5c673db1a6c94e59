"""Scikit-learn's digits, small convolutional networks with BatchNorm, and how they are trained."""

from collections.abc import Callable
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """All 1,797 images (N, 1, 8, 8) in [0, 1] and their classes, in an order drawn by the seed."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16
    return images, torch.tensor(data.target)[order]


class GlobalMean(nn.Module):
    """Mean over the positions of a channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def cnn(width: int, seed: int) -> nn.Sequential:
    """Three convolutions, each with BatchNorm and ReLU, global mean, linear head."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels, next_channels in pairwise((1, width, width, 2 * width)):
        layers += [
            nn.Conv2d(channels, next_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(next_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(2 * width, 10))


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    """Half the squared distance to one-hot targets, summed over classes, for each sample."""
    return 0.5 * (outputs - functional.one_hot(y, 10)).square().sum(1)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, y, reduction="none")


def train(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    rate: float,
    batch: int,
    decay: float,
    steps: int,
    seed: int,
) -> nn.Module:
    """SGD with momentum 0.9 and a cosine schedule; gives the network back in eval mode."""
    generator = Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator)
        chosen, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        loss(network(x[chosen]), y[chosen]).mean().backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def mean_loss(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> float:
    return float(loss(network(x), y).mean())


@torch.no_grad()
def error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((network(x).argmax(1) != y).float().mean())

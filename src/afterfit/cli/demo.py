"""The demonstration: a small conv net on digits, a tenth of whose labels are wrong."""

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from afterfit.problem.data import Batches, TrainingStream
from afterfit.workflows.trained import Trained


def shifted(images: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to one pixel, as data augmentation."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(3, (2, len(images)), generator=generator)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)
    return windows[torch.arange(len(images)), :, offsets[0], offsets[1]]


def with_wrong_labels(labels: Tensor, rate: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Give a share of the samples another label at random; also tell which."""
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.randperm(len(labels), generator=generator)[: round(rate * len(labels))]] = True
    other = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return torch.where(wrong, other, labels), wrong


def conv_net(seed: int) -> nn.Module:
    """Two convolutions and two linear layers, 0.08 million parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


def train_network(data: Batches, epochs: int, seed: int) -> nn.Module:
    """Train from scratch by SGD with a one-cycle rate, until the labels are memorized."""
    net = conv_net(seed).train()
    stream = TrainingStream(data, batch_size=64)
    steps = epochs * (data.num_samples // stream.samples_per_step)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    for _, (_, inputs, targets) in zip(range(steps), stream.batches(seed), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def digits(seed: int = 0, epochs: int = 60) -> Trained:
    """Train the demonstration's network on 1,200 digits, 120 of them with a wrong label."""
    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(target)
    noisy, wrong = with_wrong_labels(labels[:1200], 0.1, Generator().manual_seed(seed))
    train = Batches((images[:1200], noisy))
    return Trained(
        module=train_network(train, epochs, seed),
        train=train,
        fit=TrainingStream(train, augment=shifted),
        test=Batches((images[1200:], labels[1200:])),
        classes=[str(digit) for digit in range(10)],
        wrong=wrong,
        epochs=epochs,
    )

"""Three settings in which influence is measured by retraining: networks, data, and their training.

Every setting is small enough that a few hundred retrainings on half of the data take minutes on one
core, and that the dense Gauss-Newton matrix can be written down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Setting:
    """What is trained on what, and how."""

    name: str
    network: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    query_inputs: Tensor
    query_targets: Tensor
    epochs: int
    learning_rate: float
    batch_size: int = 50
    weight_decay: float = 1e-3


class Transformer(nn.Module):
    """One block of attention over a question's words, and the mean of its outputs."""

    def __init__(self, width: int, length: int, words: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(words, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        q, k, v = self.qkv(self.before(h)).chunk(3, -1)
        h = h + self.out((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
        h = h + self.down(functional.gelu(self.up(self.between(h))))
        return self.head(h.mean(-2))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def _text() -> nn.Module:
    return Transformer(width=16, length=10, words=24, classes=6)


def digits_mlp(data: Path) -> Setting:  # noqa: ARG001
    """Digits of 8 × 8 pixels, a perceptron with 2,410 parameters."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).div(16)[order]
    y = torch.tensor(labels)[order]
    return Setting("mlp", _mlp, x[:1000], y[:1000], x[1000:1300], y[1000:1300], 30, 0.1)


def mnist_conv(data: Path) -> Setting:
    """MNIST at 14 × 14 pixels, two convolutions, 2,698 parameters."""
    stored = np.load(data / "mnist" / "mnist_train.npz")
    x = torch.tensor(stored["images"][:1300], dtype=torch.float32).div(255)
    x = (functional.avg_pool2d(x[:, None], 2) - 0.13) / 0.3
    y = torch.tensor(stored["labels"][:1300]).long()
    return Setting("conv", _conv, x[:1000], y[:1000], x[1000:], y[1000:], 20, 0.05)


def trec_transformer(data: Path) -> Setting:
    """Questions of TREC, ten words of 24 numbers each, a transformer with 2,886 parameters.

    The words' numbers are the leading singular vectors of their counts in the training questions.
    """
    read = [
        [
            line.split()
            for line in (data / "text" / f"trec_{part}.txt").read_text("latin-1").splitlines()
        ]
        for part in ("train", "test")
    ]
    names = sorted({words[0] for words in read[0]})
    known = sorted({word for words in read[0] for word in words[1:]})
    place = {word: k for k, word in enumerate(known)}
    near = np.zeros((len(known), 300))
    counts = np.zeros(len(known))
    for words in read[0]:
        for word in words[1:]:
            counts[place[word]] += 1
    common = {int(k): j for j, k in enumerate(np.argsort(-counts, kind="stable")[:300])}
    for words in read[0]:
        ids = [place[w] for w in words[1:]]
        for at, one in enumerate(ids):
            for other in ids[max(0, at - 2) : at] + ids[at + 1 : at + 3]:
                if other in common:
                    near[one, common[other]] += 1
    left, values, _ = np.linalg.svd(np.log1p(near), full_matrices=False)
    vectors = left[:, :24] * values[:24] ** 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) / 24**0.5 + 1e-9

    def tensors(lines: list[list[str]]) -> tuple[Tensor, Tensor]:
        x = torch.zeros(len(lines), 10, 24)
        for row, words in enumerate(lines):
            for at, word in enumerate(words[1:11]):
                if word in place:
                    x[row, at] = torch.tensor(vectors[place[word]], dtype=torch.float32)
        return x, torch.tensor([names.index(words[0]) for words in lines])

    order = torch.randperm(len(read[0]), generator=Generator().manual_seed(0))[:1000].tolist()
    x, y = tensors([read[0][k] for k in order])
    query = tensors([words for words in read[1] if words[0] in names][:300])
    return Setting("transformer", _text, x, y, *query, 30, 0.05)


SETTINGS = {"mlp": digits_mlp, "conv": mnist_conv, "transformer": trec_transformer}


def trained(setting: Setting, kept: Tensor, seed: int) -> nn.Module:
    """Train from scratch on the samples that are kept; the seed is that of weights and order."""
    torch.manual_seed(seed)
    network = setting.network()
    optimizer = torch.optim.SGD(
        network.parameters(), setting.learning_rate, momentum=0.9, weight_decay=setting.weight_decay
    )
    steps = setting.epochs * -(-len(kept) // setting.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(setting.epochs):
        for chosen in kept[torch.randperm(len(kept))].split(setting.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(
                network(setting.inputs[chosen]), setting.targets[chosen]
            ).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def query_losses(setting: Setting, network: nn.Module) -> Tensor:
    """Loss of each query in nats."""
    with torch.no_grad():
        return functional.cross_entropy(
            network(setting.query_inputs), setting.query_targets, reduction="none"
        )

# %% [markdown]
# # Wrong labels among images
# MNIST from the folder in `AFTERFIT_DATA` (`mnist/mnist_train.npz` with `images` and `labels`), or
# else scikit-learn's digits. `AFTERFIT_DATA=... afterfit labels examples/labels_images.py`.

# %%
import logging
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import afterfit as af


# %%
def images_and_labels(size: int = 3000) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] of shape (N, 1, H, W), and class indices."""
    if "AFTERFIT_DATA" not in os.environ:
        digits = load_digits()
        return torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target)
    with np.load(Path(os.environ["AFTERFIT_DATA"]) / "mnist" / "mnist_train.npz") as file:
        images, labels = file["images"][:size], file["labels"][:size]
    return torch.tensor(images / 255.0).float()[:, None], torch.tensor(labels).long()


def conv_net() -> nn.Module:
    """Two convolutions with BatchNorm, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


# %%
def factory(epochs: int = 30) -> af.Trained:
    """A conv net trained until it remembers labels of which a tenth is wrong."""
    torch.manual_seed(0)
    images, clean = images_and_labels()
    num = 2 * len(images) // 3
    held_out = (images[num:], clean[num:])
    images, clean = images[:num], clean[:num]
    wrong = torch.rand(len(clean)) < 0.1
    labels = torch.where(wrong, (clean + torch.randint(1, 10, clean.shape)) % 10, clean)
    net, data = conv_net(), af.Batches((images, labels))
    steps = epochs * len(labels) // 64
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _, (_, x, y) in zip(range(steps), af.TrainingStream(data, 64).batches(0), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
    return af.Trained(
        net.eval(), data, test=held_out, classes=[str(k) for k in range(10)], wrong=wrong,
        epochs=epochs,
    )  # fmt: skip


# %%
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # tells how long work goes on
    trained = factory()
    analysis = af.analyze_labels(trained.problem(), trained.batches())
    print(analysis.issues.head(10))
    print("estimated share of wrong labels:", round(analysis.cut.expected_wrong, 3))

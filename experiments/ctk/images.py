"""MNIST and CIFAR-10 from a folder, a small network for the one and pretrained ResNets for the other."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in [0, 1] and classes, in the original order."""
    found = np.load(folder / "mnist" / f"mnist_{part}.npz")
    images = torch.tensor(found["images"], dtype=torch.float32)[:, None] / 255
    return images, torch.tensor(found["labels"].astype("int64"))


def cifar(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Lossless images (N, 3, 32, 32) in [0, 1] and classes: the first 4,000 for training, 1,000 for tests."""
    found = np.load(folder / "cifar10" / "cifar10_lossless_subset.npz")
    images = torch.tensor(found[f"{part}_images"]).permute(0, 3, 1, 2).float() / 255
    return images, torch.tensor(found[f"{part}_labels"].astype("int64"))


def normalized(images: Tensor) -> Tensor:
    """Colors as the pretrained ResNets expect them."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (CIFAR_MEAN, CIFAR_STD))
    return (images - mean) / std


def gray_as_digits(images: Tensor) -> Tensor:
    """CIFAR images in the format of MNIST."""
    return functional.interpolate(images.mean(1, keepdim=True), 28, mode="bilinear")


def digits_as_colors(images: Tensor) -> Tensor:
    """MNIST images in the format of CIFAR-10."""
    return normalized(functional.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1))


def small_cnn(seed: int) -> nn.Module:
    """Three strided convolutions with BatchNorm, and a head called ``head``."""
    torch.manual_seed(seed)
    network = nn.Sequential()
    for number, (before, after) in enumerate(((1, 8), (8, 16), (16, 32))):
        network.add_module(f"conv{number}", nn.Conv2d(before, after, 3, 2, 1, bias=False))
        network.add_module(f"norm{number}", nn.BatchNorm2d(after))
        network.add_module(f"relu{number}", nn.ReLU())
    network.add_module("flatten", nn.Flatten())
    network.add_module("head", nn.Linear(512, 10))
    return network


class Block(nn.Module):
    """Two convolutions beside a shortcut that drops positions and pads channels with zeros (option A)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.padding = (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride == 2:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return (inner + x).relu()


class ResNet(nn.Module):
    """ResNet of He et al. 2016 for CIFAR-10, with 6 n + 2 layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        num = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(num)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32) for i in range(num)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64) for i in range(num)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def pretrained(folder: Path, depth: int) -> ResNet:
    """Load ResNet-20 or -32 as trained on CIFAR-10, in eval mode."""
    found = np.load(folder / "cifar10_resnets" / f"resnet{depth}.npz")
    network = ResNet(depth)
    state = {name: torch.tensor(found[name]) for name in found}
    missing = network.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return network.eval()

"""Small networks of the usual architectures; no parameter is a zero or a one, as after training.

Rescaling laws are tried on all of them. They are in float64 and eval mode.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from afterfit.problem import Batches, Categorical, Problem
from afterfit.sharpness.symmetry import Symmetry

NUM_SAMPLES, NUM_CLASSES = 24, 3


@final
class Block(nn.Module):
    """Pre-norm attention and MLP on a residual stream, with one packed projection."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        nn.Module.__init__(self)
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


@final
class ViT(nn.Module):
    """Patches, two blocks, mean over positions, head."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.patch = nn.Conv2d(1, 8, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 4, 8))
        self.blocks = nn.Sequential(Block(8, 2, False), Block(8, 2, False))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


@final
class GPT(nn.Module):
    """Token and position embeddings, one causal block, the last position's logits."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.token, self.position = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.blocks = nn.Sequential(Block(8, 2, True))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, NUM_CLASSES, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))[:, -1]


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(5, 6), activation(), nn.Linear(6, 7), activation(), nn.Linear(7, NUM_CLASSES)
    )


def conv_batch_norm() -> nn.Module:
    """Two convolutions, each before a BatchNorm, flattened into a head."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, NUM_CLASSES),
    )  # fmt: skip


def vectors(generator: Generator) -> Tensor:
    return torch.randn(NUM_SAMPLES, 5, dtype=torch.float64, generator=generator)


def images(generator: Generator) -> Tensor:
    return torch.randn(NUM_SAMPLES, 1, 4, 4, dtype=torch.float64, generator=generator)


def tokens(generator: Generator) -> Tensor:
    return torch.randint(0, 11, (NUM_SAMPLES, 5), generator=generator)


@final
@dataclass(frozen=True)
class Rescalable:
    """A network, its data, and the kinds of changes that it admits."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Generator], Any]
    kinds: frozenset[str]

    def module(self) -> nn.Module:
        """Make the network, the same one every time, with generic parameters and statistics."""
        generator = Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(5)
            network = self.build().double().eval()
        with torch.no_grad():
            for value in (*network.parameters(), *network.buffers()):
                if value.is_floating_point():
                    noise = torch.rand(value.shape, dtype=value.dtype, generator=generator)
                    value.mul_(0.7 + 0.6 * noise).add_(0.1 * noise)
        return network

    def data(self) -> Batches:
        """Draw the data."""
        generator = Generator().manual_seed(4)
        inputs = self.inputs(generator)
        return Batches((inputs, torch.arange(NUM_SAMPLES) % NUM_CLASSES), 10)

    def problem(self) -> Problem:
        """Put the network before a softmax."""
        return Problem.from_module(self.module(), Categorical())


NETWORKS: Mapping[str, Rescalable] = {
    one.name: one
    for one in (
        Rescalable("mlp", mlp, vectors, frozenset({"layer", "node", "permutation"})),
        Rescalable("tanh", lambda: mlp(nn.Tanh), vectors, frozenset({"sign", "permutation"})),
        Rescalable(
            "conv-bn",
            conv_batch_norm,
            images,
            frozenset({"layer", "normalization", "affine", "sign", "permutation"}),
        ),
        Rescalable(
            "vit",
            ViT,
            images,
            frozenset({"layer", "node", "affine", "query-key", "sign", "permutation", "mixing"}),
        ),
        Rescalable(
            "gpt",
            GPT,
            tokens,
            frozenset({"layer", "node", "affine", "query-key", "sign", "permutation", "mixing"}),
        ),
    )
}


def changed_by(
    change: Callable[[nn.Module, Symmetry, Tensor], None],
    network: nn.Module,
    symmetry: Symmetry,
    how: Tensor,
) -> nn.Module:
    """Change a copy of a network."""
    changed = copy.deepcopy(network)
    change(changed, symmetry, how)
    return changed

"""Parts of the small networks in the zoo."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

IMAGE, WAVE, ROWS = (4, 5, 6), (4, 9), (3, 4)
"""What one sample is: an image, a series with channels, or some rows."""


@final
class Lambda(nn.Module):
    """A module with some parts and the function that runs them."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        nn.Module.__init__(self)
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def seen(self: nn.Module, x: Tensor) -> Tensor:
    """Body, mean over all but the first two axes, head."""
    hidden = self.body(x)
    return self.head(hidden.flatten(2).mean(2).tanh())


def conv(body: nn.Module, channels: int) -> nn.Module:
    return Lambda(seen, body=body, head=nn.Linear(channels, 2))


def sequence(body: nn.Module) -> nn.Module:
    return Lambda(lambda self, x: self.head(self.body(x).mean(1).tanh()), body=body, head=linear())


def linear() -> nn.Module:
    return nn.Linear(4, 2)


@final
@dataclass(frozen=True)
class Kind:
    """How a network is built, what one sample is, and what no rule covers."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    uncovered: tuple[str, ...] = ()
    tokens: bool = False

"""One way to change a network without changing its function: what is done, and to which units."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Generator, nn

from afterfit.sharpness.rescaling import mix_in_place, permute_in_place, scale_in_place
from afterfit.sharpness.symmetry import Symmetry

ChangeKind = Literal[
    "layer", "node", "normalization", "affine", "query-key", "sign", "permutation", "mixing"
]
CHANGES: tuple[ChangeKind, ...] = get_args(ChangeKind)
"""
``layer``: all units of a layer by one factor, or whole tensors of a residual stream;
``node``: each unit or channel by its own; ``normalization``: weights before a BatchNorm with its
buffers; ``affine``: scale and shift of a normalization, undone by what reads it; ``query-key``:
queries times a, keys divided by a; ``sign``: odd units; ``permutation``: of units; ``mixing``:
linear combinations of units between which everything is linear, no diagonal rescaling.
"""


@final
@dataclass(frozen=True)
class Freedom:
    """One verified way to change a network.

    Attributes
    ----------
    kind
        What is done to the units.
    symmetry
        Which units, and what each owns.
    """

    kind: ChangeKind
    symmetry: Symmetry

    def change(self, network: nn.Module, spread: float | int, generator: Generator) -> nn.Module:
        """Change a copy at random: factors are log-normal with standard deviation `spread`."""
        changed = copy.deepcopy(network)
        self.change_in_place(changed, spread, generator)
        return changed

    def change_in_place(
        self, network: nn.Module, spread: float | int, generator: Generator
    ) -> None:
        """Change a network at random."""
        _APPLY[self.kind](network, self.symmetry, spread, generator)

    def __str__(self) -> str:
        if self.kind not in ("permutation", "mixing", "sign"):
            return f"{self.kind}: {self.symmetry}"
        places = ", ".join(part.place for part in self.symmetry.parts)
        return f"{self.kind}: {self.symmetry.size} units: {places}"


def _scale(network: nn.Module, of: Symmetry, spread: float | int, generator: Generator) -> None:
    draw = torch.randn(of.size, dtype=torch.float64, generator=generator)
    scale_in_place(network, of, (spread * draw).exp())


def _scale_all(network: nn.Module, of: Symmetry, spread: float | int, generator: Generator) -> None:
    draw = torch.randn(1, dtype=torch.float64, generator=generator)
    scale_in_place(network, of, (spread * draw).exp().expand(of.size))


def _flip(network: nn.Module, of: Symmetry, _: float | int, generator: Generator) -> None:
    heads = torch.randint(2, (of.size,), generator=generator).double()
    heads[0] = 0  # at least one unit is flipped
    scale_in_place(network, of, 2 * heads - 1)


def _permute(network: nn.Module, of: Symmetry, _: float | int, generator: Generator) -> None:
    order = torch.randperm(of.size, generator=generator)
    moved = order.roll(1) if torch.equal(order, torch.arange(of.size)) else order
    permute_in_place(network, of, moved)


def _mix(network: nn.Module, of: Symmetry, spread: float | int, generator: Generator) -> None:
    """Mix neighbors: they belong to one head."""
    blocks = torch.randn(of.size // 2, 2, 2, dtype=torch.float64, generator=generator)
    blocks = torch.eye(2, dtype=torch.float64) + min(spread, 1.0) * 0.5 * blocks
    mix_in_place(network, of, torch.block_diag(*blocks))


_APPLY: dict[ChangeKind, Callable[[nn.Module, Symmetry, float | int, Generator], None]] = {
    "layer": _scale_all,
    "node": _scale,
    "normalization": _scale,
    "affine": _scale,
    "query-key": _scale,
    "sign": _flip,
    "permutation": _permute,
    "mixing": _mix,
}

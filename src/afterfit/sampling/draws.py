"""Members that are not walked to: draws from a Gaussian, and checkpoints that the user kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.problem.data import TrainingStream
from afterfit.problem.ensemble import Member, Store
from afterfit.problem.persample import flatten, unflatten
from afterfit.problem.problem import Problem
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class GaussianDraws:
    """Draws from N(θ̂, R Rᵀ): exact Laplace draws where R Rᵀ is the inverse of the curvature.

    With tangent moves their covariance is the influence function; with secant moves it is the
    second fix of the paper without the first, which fails on networks: along flat directions the
    draws go far and the true losses explode (Kim et al. 2023, section 4.2).

    Parameters
    ----------
    root
        R, (P, R).
    """

    root: Float[Tensor, "P R"]
    members: int = 32
    seed: int = 0

    def walk(
        self,
        problem: Problem,
        fit: TrainingStream,  # noqa: ARG002 (nothing is trained)
        store: Store | None = None,  # noqa: ARG002 (a draw is cheaper than a file)
    ) -> Iterator[Member]:
        """Draw the members one after another; each is a chain of its own."""
        center, generator = flatten(problem.params), Generator().manual_seed(self.seed)
        for chain in range(self.members):
            noise = torch.randn(self.root.shape[1], generator=generator, dtype=self.root.dtype)
            vector = center + (self.root @ noise.to(self.root.device)).to(center)
            yield Member({**problem.buffers, **unflatten(vector, problem.params)}, chain, 0)


@final
@dataclass(frozen=True)
class Checkpoints:
    """Parameters that the user kept from training, as members of one chain.

    Parameters
    ----------
    states
        Mappings of names to tensors, such as the ``state_dict`` of each checkpoint.
    """

    states: Sequence[Params]

    @property
    def members(self) -> int:
        """Number of members M."""
        return len(self.states)

    def walk(
        self,
        problem: Problem,
        fit: TrainingStream,  # noqa: ARG002 (nothing is trained)
        store: Store | None = None,  # noqa: ARG002 (the user has them)
    ) -> Iterator[Member]:
        """Yield the checkpoints in order.

        Raises
        ------
        ValueError
            If a checkpoint lacks a parameter of the network, or has it in another shape.
        """
        for stage, state in enumerate(self.states):
            _require_fit(stage, state, problem)
            known = {**problem.params, **problem.buffers}
            yield Member(
                {n: state[n].to(p.device) for n, p in known.items() if n in state}, 0, stage
            )


def _require_fit(stage: int, state: Params, problem: Problem) -> None:
    for name, p in problem.params.items():
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != tuple(p.shape):
            message = (
                f"checkpoint {stage} has {found} for '{name}', expected {tuple(p.shape)}: it "
                "belongs to another network"
            )
            raise ValueError(message)

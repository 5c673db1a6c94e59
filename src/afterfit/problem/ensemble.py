"""Many points near the trained one: members that are found by walking, kept or streamed."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from afterfit.problem.data import TrainingStream
from afterfit.problem.problem import Problem
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class Member:
    """One point of an ensemble.

    Attributes
    ----------
    params
        Parameters and buffers: the statistics of normalization layers move with the weights.
    chain, stage
        Which walk it was found on, and as which stop of it.
    seen
        Mean training loss of each sample while this member was trained, (N,), in nats; NaN for a
        sample that was not read. It costs nothing, since training computes these losses anyway.
        None where the sampler does not train.
    """

    params: Params
    chain: int
    stage: int
    seen: Float[Tensor, " N"] | None = None


@runtime_checkable
class Sampler(Protocol):
    """Finds members one after another, so that nobody needs to hold them all."""

    def walk(
        self, problem: Problem, fit: TrainingStream, store: "Store | None" = None
    ) -> Iterator[Member]:
        """Yield members; with a store, those that are complete are read and not made again."""
        ...


@runtime_checkable
class Store(Protocol):
    """Keeps members by their chain and stage."""

    def save(self, member: Member) -> None:
        """Keep a member."""
        ...

    def load(self, chain: int, stage: int, device: torch.device) -> Member | None:
        """Give a member back, or None where it is not there."""
        ...

    def holds(self, chain: int, stage: int) -> bool:
        """Whether a member is there, without reading it."""
        ...


@final
class MemoryStore:
    """Members that stay in memory."""

    def __init__(self) -> None:
        self._members: dict[tuple[int, int], Member] = {}

    def save(self, member: Member) -> None:
        """Keep a member."""
        self._members[member.chain, member.stage] = member

    def load(self, chain: int, stage: int, device: torch.device) -> Member | None:  # noqa: ARG002
        """Give a member back, or None where it is not there; it stays on its device."""
        return self._members.get((chain, stage))

    def holds(self, chain: int, stage: int) -> bool:
        """Whether a member is there."""
        return (chain, stage) in self._members


def fingerprint(problem: Problem) -> str:
    """Hash of the trained parameters and buffers, by which artifacts know their network."""
    digest = blake2b(digest_size=12)
    for name, value in sorted({**problem.params, **problem.buffers}.items()):
        digest.update(name.encode())
        digest.update(str(tuple(value.shape)).encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


@final
@dataclass(frozen=True)
class MemberStore:
    """A folder of members, each written whole or not at all.

    Parameters
    ----------
    folder
        Holds one ``CCC-SSS.safetensors`` for each member (chain, stage).
    key
        What the members depend on (settings of the sampler, data); with the fingerprint of the
        network it is written into every file, and a file with another key is refused.
    """

    folder: Path
    key: str

    def path(self, chain: int, stage: int) -> Path:
        """Where a member is kept."""
        return self.folder / f"{chain:03d}-{stage:03d}.safetensors"

    def save(self, member: Member) -> None:
        """Write a member to a temporary name, then rename it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"params/{n}": v.detach().cpu().contiguous() for n, v in member.params.items()}
        if member.seen is not None:
            tensors["seen"] = member.seen.detach().cpu().contiguous()
        path = self.path(member.chain, member.stage)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, str(temporary), metadata={"key": self.key})
        temporary.replace(path)

    def load(self, chain: int, stage: int, device: torch.device) -> Member | None:
        """Read a member, or None where it is not complete.

        Raises
        ------
        ValueError
            If the file belongs to another network, data set or sampler, or is damaged.
        """
        path = self.path(chain, stage)
        if not path.exists():
            return None
        key, tensors = _read(path)
        if key != self.key:
            message = (
                f"{path} belongs to another run: its key is {key}, expected {self.key}. The "
                "network, the data or the sampler's settings have changed; use another folder, or "
                "remove this one"
            )
            raise ValueError(message)
        params = {
            n.removeprefix("params/"): v.to(device) for n, v in tensors.items() if n != "seen"
        }
        return Member(params, chain, stage, tensors.get("seen"))

    def holds(self, chain: int, stage: int) -> bool:
        """Whether a member is there, complete; whose it is shows when it is read."""
        return self.path(chain, stage).exists()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return (file.metadata() or {}).get("key", ""), tensors
    except Exception as error:
        message = f"{path} cannot be read ({error}); remove it and run again, the rest is kept"
        raise ValueError(message) from error


def settings_key(problem: Problem, *settings: object) -> str:
    """Hash of the network together with whatever else the result depends on."""
    text = json.dumps([fingerprint(problem), *map(str, settings)])
    return blake2b(text.encode(), digest_size=12).hexdigest()


@final
@dataclass(frozen=True)
class Ensemble:
    """Members that stay, in memory or on disk, and are read one at a time.

    Parameters
    ----------
    keys
        (chain, stage) of each member, in order.
    store
        Where they are kept.
    """

    keys: Sequence[tuple[int, int]]
    store: Store
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        """Return the number of members M."""
        return len(self.keys)

    def __iter__(self) -> Iterator[Member]:
        """Read the members in order."""
        for chain, stage in self.keys:
            member = self.store.load(chain, stage, self.device)
            if member is None:
                message = f"member {chain}-{stage} is gone from its store; make the ensemble again"
                raise FileNotFoundError(message)
            yield member

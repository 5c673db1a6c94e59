"""The geometric ensemble: low-loss parameters that SGD reaches from the trained ones.

Kim, Kim and Yang 2023, "GEX: A flexible method for approximating influence via Geometric
Ensemble", NeurIPS; the sampler follows the authors' code, whose settings are :func:`reference`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from afterfit.problem.data import TrainingStream
from afterfit.problem.ensemble import Member, Store
from afterfit.problem.problem import Problem, move
from afterfit.problem.randomness import preserved_random_state
from afterfit.sampling.naming import named
from afterfit.sampling.walk import Schedule, StageTraining, Start, Step, train_alone
from afterfit.typing import Params

_RECALIBRATION_PASSES = 50


def cosine(step: int, steps: int) -> float:
    """Anneal from the peak to zero: ``(1 + cos(πt/T)) / 2``."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def warm_cosine(step: int, steps: int) -> float:
    """Rise linearly over the first quarter, then anneal to zero.

    A memorized network is in a sharp basin: the full rate at the first step throws it out of all
    structure, while a rising one lets it move to where that rate can be held.
    """
    rise = max(1, steps // 4)
    if step < rise:
        return (step + 1) / rise
    return cosine(step - rise, steps - rise)


def constant(step: int, steps: int) -> float:  # noqa: ARG001 (the signature of a schedule)
    """Stay at the peak."""
    return 1.0


def sgd(momentum: float = 0.9, weight_decay: float = 5e-4) -> Step:
    """Make plain SGD as the authors use it: no Nesterov, no dampening, L2 on every parameter."""

    def step(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            leaves, lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )

    return step


def adamw(weight_decay: float = 1.0) -> Step:
    """Make AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", ICLR).

    Its steps have the same length in every coordinate, those of rare rows of an embedding too.
    """

    def step(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        fused = all(leaf.device.type in ("cpu", "cuda") for leaf in leaves)  # one kernel a step
        return torch.optim.AdamW(leaves, learning_rate, weight_decay=weight_decay, fused=fused)

    return step


@final
@dataclass(frozen=True)
class GeometricEnsemble:
    """Members found by training on from the trained network, at a rate that unsettles it.

    Parameters
    ----------
    members
        How many, over all chains. The number matters little once the rate is right.
    steps
        SGD steps between one member and the next; ``None`` is two epochs.
    learning_rate
        Peak rate. With the batch size and the momentum it is the temperature of the ensemble: too
        cold and influence is the bilinear form again, too hot and it is noise.
    schedule
        :func:`warm_cosine`, :func:`cosine` (as published), :func:`constant`, or the user's own
        function of (step, steps).
    momentum, weight_decay
        Of plain SGD. The decay is an L2 pull on every parameter, as in training.
    step
        Makes the optimizer of a stage in place of SGD. Its state begins anew each stage.
    clip
        Largest norm of the gradient, or None. With it, a rate is a length of steps, and rates mean
        about the same on different networks.
    chains
        Independent walks from the trained network; with one, the members follow each other.
    restart
        ``"continue"`` from the chain's last member (as published) or from the ``"trained"`` one.
    batch_norm
        ``"kept"``: the running statistics that training leaves; ``"recalibrated"``: re-estimated
        by a pass in training mode at the member's parameters.
    seed
        Of the order of the data, the augmentation and dropout.

    References
    ----------
    Kim, Kim and Yang 2023, "GEX", NeurIPS, section 4.2. Huang et al. 2017, "Snapshot ensembles",
    for the restarted schedule. Izmailov et al. 2018 for the re-estimated statistics.
    """

    members: int = 8
    steps: int | None = None
    learning_rate: float = 0.8
    schedule: Schedule = warm_cosine
    momentum: float = 0.9
    weight_decay: float = 5e-4
    step: Step | None = None
    clip: float | None = 1.0
    chains: int = 1
    restart: Literal["continue", "trained"] = "continue"
    batch_norm: Literal["kept", "recalibrated"] = "kept"
    seed: int = 0

    def __post_init__(self) -> None:
        steps = 1 if self.steps is None else self.steps
        counts = {"members": self.members, "chains": self.chains, "steps": steps}
        for name, number in counts.items():
            if number < 1:
                message = f"GeometricEnsemble: {name} is {number}, expected at least 1"
                raise ValueError(message)
        if not self.learning_rate > 0:
            message = f"GeometricEnsemble: learning_rate is {self.learning_rate}, expected above 0"
            raise ValueError(message)

    def stage_training(self, fit: TrainingStream) -> StageTraining:
        """How one stage is trained on this data."""
        steps = self.steps or 2 * max(1, round(fit.num_samples / fit.samples_per_step))
        step = self.step or sgd(self.momentum, self.weight_decay)
        return StageTraining(steps, self.learning_rate, self.schedule, step, self.clip)

    def order(self) -> list[tuple[int, int]]:
        """(chain, stage) of the members in the order in which they are made."""
        return [(i % self.chains, i // self.chains) for i in range(self.members)]

    def key(self) -> str:
        """What a member depends on; not how many there are."""
        made = {n: v for n, v in sorted(vars(self).items()) if n != "members"}
        return f"{type(self).__name__} { {name: named(value) for name, value in made.items()} }"

    def describe(self, fit: TrainingStream) -> str:
        """Say in one line what will be made."""
        rule = self.stage_training(fit)
        epochs = rule.steps * fit.samples_per_step / fit.num_samples
        return (
            f"{self.members} members, {self.chains} chain(s), {rule.steps} steps ({epochs:.1f} "
            f"epochs) each at learning rate {self.learning_rate:g}"
        )

    def walk(
        self, problem: Problem, fit: TrainingStream, store: Store | None = None
    ) -> Iterator[Member]:
        """Yield the members one after another, stage by stage.

        With a store, members that are complete are read from it, and new ones are written as they
        are made, so that a run that was killed goes on where it was.

        Raises
        ------
        Diverged
            If training losses become NaN or infinite.
        """
        trained = {**problem.params, **problem.buffers}
        last: dict[int, Params] = dict.fromkeys(range(self.chains), trained)
        for chain, stage in self.order():
            member = None if store is None else store.load(chain, stage, problem.device)
            if member is None:
                member = self._member(problem, fit, last[chain], chain, stage)
                if store is not None:
                    store.save(member)
            last[chain] = trained if self.restart == "trained" else member.params
            yield member

    def _member(
        self, problem: Problem, fit: TrainingStream, params: Params, chain: int, stage: int
    ) -> Member:
        seed = self._seed_of(chain, stage)
        (stop,) = train_alone(problem, [Start(params, seed)], fit, self.stage_training(fit))
        found = stop.params
        if self.batch_norm == "recalibrated":
            found = recalibrated(problem, found, fit, seed + 1)
        return Member(found, chain, stage, stop.seen)

    def _seed_of(self, chain: int, stage: int) -> int:
        return ((self.seed * 1_009 + chain) * 1_000_003 + stage * 2) % 2**63


def reference(seed: int = 0, chains: int = 8) -> GeometricEnsemble:
    """Settings of the authors' scripts: 32 members, 800 steps, rate 0.05, cosine.

    Eight chains are what their eight devices do; use batches of 128 to match (1,024 over eight).
    """
    return GeometricEnsemble(
        members=32,
        steps=800,
        learning_rate=0.05,
        schedule=cosine,
        clip=None,
        chains=chains,
        batch_norm="recalibrated",
        seed=seed,
    )


def recalibrated(problem: Problem, params: Params, fit: TrainingStream, seed: int) -> Params:
    """Re-estimate the statistics of normalization layers by 50 passes in training mode.

    As in the authors' code: the parameters stay, the layers' own moving averages are run.
    """
    if not problem.buffers:
        return params
    state = {name: value.clone() for name, value in params.items()}
    batches = fit.batches(seed)
    with torch.no_grad(), preserved_random_state(seed):
        for _ in range(_RECALIBRATION_PASSES):
            problem.train_forward(state, move(next(batches).inputs, problem.device))
    return state

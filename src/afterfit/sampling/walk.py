"""One stage of a walk: training goes on from given parameters for a number of steps.

A stage trains one chain by itself, or several at once by mapping over stacked parameters. Both do
the same arithmetic up to rounding; dropout draws other numbers, and which is faster depends on the
network and the device. The user says which: nothing here looks at a clock.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from afterfit.problem._autodiff import over_members
from afterfit.problem.data import Batch, TrainingStream
from afterfit.problem.persample import flat_after
from afterfit.problem.problem import Problem, move
from afterfit.problem.randomness import preserved_random_state
from afterfit.typing import Params

Schedule = Callable[[int, int], float]
"""Share of the peak learning rate at step t of T."""

Step = Callable[[list[Tensor], float], torch.optim.Optimizer]
"""Makes the optimizer of one stage from the parameters and the peak learning rate."""

_CHECK_EVERY = 32


@final
class Diverged(FloatingPointError):
    """Training losses became NaN or infinite: the learning rate is too high."""


@final
@dataclass(frozen=True)
class Rule:
    """How one stage is trained."""

    steps: int
    learning_rate: float
    schedule: Schedule
    step: Step
    clip: float | None


@final
@dataclass(frozen=True)
class Start:
    """Where a chain stands, and the seed of its next stage."""

    params: Params
    seed: int


@final
@dataclass(frozen=True)
class Stop:
    """Where a stage ended, and the mean training loss of each sample on the way."""

    params: Params
    seen: Float[Tensor, " N"]


def train_alone(
    problem: Problem, starts: Sequence[Start], fit: TrainingStream, rule: Rule
) -> list[Stop]:
    """Train the chains one after another."""
    return [_train(problem, [start], fit, rule, _alone(problem))[0] for start in starts]


def train_together(
    problem: Problem, starts: Sequence[Start], fit: TrainingStream, rule: Rule
) -> list[Stop]:
    """Train the chains at once, their parameters stacked along a leading axis."""
    return _train(problem, starts, fit, rule, _stacked(problem))


@final
@dataclass(frozen=True)
class _Way:
    """How chains are laid out in tensors: alone (no axis) or stacked (a leading axis)."""

    join: Callable[[Sequence[Params]], dict[str, Tensor]]
    part: Callable[[Params, int], dict[str, Tensor]]
    losses: Callable[[Params, Sequence[Batch]], Float[Tensor, "chains B"]]
    rows: Callable[[Tensor], Tensor]


def _alone(problem: Problem) -> _Way:
    def losses(state: Params, batches: Sequence[Batch]) -> Tensor:
        (batch,) = batches
        outputs = problem.train_forward(state, move(batch.inputs, problem.device))
        targets = batch.targets.to(problem.device)
        problem.likelihood.check(outputs, targets)
        return problem.likelihood.loss(outputs, targets)[None]

    return _Way(
        join=lambda states: dict(states[0]),
        part=lambda state, _: dict(state),
        losses=losses,
        rows=lambda gradient: gradient[None],
    )


def _stacked(problem: Problem) -> _Way:
    forward = over_members(problem.train_forward)

    def losses(state: Params, batches: Sequence[Batch]) -> Tensor:
        inputs = tree_map(lambda *leaves: torch.stack(leaves), *[batch.inputs for batch in batches])
        outputs = forward(dict(state), move(inputs, problem.device))
        targets = torch.cat([batch.targets for batch in batches]).to(problem.device)
        problem.likelihood.check(outputs.flatten(0, 1), targets)
        return problem.likelihood.loss(outputs.flatten(0, 1), targets).view(len(batches), -1)

    return _Way(
        join=lambda states: {n: torch.stack([s[n] for s in states]) for n in states[0]},
        part=lambda state, chain: {name: value[chain] for name, value in state.items()},
        losses=losses,
        rows=lambda gradient: gradient,
    )


def _train(
    problem: Problem, starts: Sequence[Start], fit: TrainingStream, rule: Rule, way: _Way
) -> list[Stop]:
    """Take the steps of one stage; the momentum and the schedule begin anew."""
    state = {n: v.clone() for n, v in way.join([start.params for start in starts]).items()}
    leaves = [state[name].requires_grad_() for name in problem.params]
    optimizer = rule.step(leaves, rule.learning_rate)
    peaks = [group["lr"] for group in optimizer.param_groups]
    seen = _Seen(len(starts), fit.num_samples)
    streams = [fit.batches(start.seed) for start in starts]
    with preserved_random_state(starts[0].seed):
        for t in range(rule.steps):
            batches = [next(stream) for stream in streams]
            losses = way.losses(state, batches)
            seen.add(batches, losses.detach())
            optimizer.zero_grad()
            losses.mean(1).sum().backward()
            if rule.clip is not None:
                _clip([way.rows(leaf.grad) for leaf in leaves if leaf.grad is not None], rule.clip)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rule.schedule(t, rule.steps)
            optimizer.step()
            if t % _CHECK_EVERY == 0 or t == rule.steps - 1:
                _require_finite(losses, rule)
    ended = {name: value.detach() for name, value in state.items()}
    means = seen.means()
    return [Stop(way.part(ended, chain), means[chain]) for chain in range(len(starts))]


def _require_finite(losses: Tensor, rule: Rule) -> None:
    if not bool(torch.isfinite(losses).all()):
        message = (
            f"the training loss became {float(losses.detach().mean())} at learning rate "
            f"{rule.learning_rate:g}; lower learning_rate, set clip=1.0, or use 'auto'"
        )
        raise Diverged(message)


def _clip(gradients: list[Tensor], limit: float) -> None:
    """Scale each chain's gradient so that its norm is at most ``limit``."""
    squares = torch.stack([flat_after(1, g).square().sum(1) for g in gradients]).sum(0)
    scale = (limit / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *(1 for _ in gradient.shape[1:])))


@final
class _Seen:
    """Running sums of the training losses of every sample, chain by chain."""

    def __init__(self, chains: int, num_samples: int) -> None:
        self.total = torch.zeros(chains, num_samples, dtype=torch.float64)
        self.count = torch.zeros(chains, num_samples, dtype=torch.float64)

    def add(self, batches: Sequence[Batch], losses: Float[Tensor, "chains B"]) -> None:
        values = losses.to("cpu", torch.float64)
        for chain, batch in enumerate(batches):
            self.total[chain].index_add_(0, batch.index, values[chain])
            self.count[chain].index_add_(0, batch.index, torch.ones_like(values[chain]))

    def means(self) -> Float[Tensor, "chains N"]:
        return self.total / self.count.where(self.count > 0, torch.nan)


def stages_of(
    trainer: Callable[..., list[Stop]],
    problem: Problem,
    starts: Sequence[Start],
    fit: TrainingStream,
    rule: Rule,
) -> Iterator[Stop]:
    """Yield where each chain ends, one at a time where chains are trained alone."""
    if trainer is train_together:
        yield from train_together(problem, starts, fit, rule)
        return
    for start in starts:
        yield train_alone(problem, [start], fit, rule)[0]

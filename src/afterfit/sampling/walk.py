"""One stage of a walk: training goes on from given parameters for a number of steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.problem.data import Batch, TrainingStream
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
class StageTraining:
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
    problem: Problem, starts: Sequence[Start], fit: TrainingStream, rule: StageTraining
) -> list[Stop]:
    """Train the chains one after another."""
    return [_train(problem, start, fit, rule) for start in starts]


def _train(problem: Problem, start: Start, fit: TrainingStream, rule: StageTraining) -> Stop:
    """Take the steps of one stage; the momentum and the schedule begin anew."""
    state = {name: value.clone() for name, value in start.params.items()}
    leaves = [state[name].requires_grad_() for name in problem.params]
    optimizer = rule.step(leaves, rule.learning_rate)
    peaks = [group["lr"] for group in optimizer.param_groups]
    total = torch.zeros(fit.num_samples, dtype=torch.float64)
    count = torch.zeros_like(total)
    batches = fit.batches(start.seed)
    with preserved_random_state(start.seed):
        for t in range(rule.steps):
            batch = next(batches)
            losses = _losses(problem, state, batch)
            seen = losses.detach().to("cpu", torch.float64)
            total.index_add_(0, batch.index, seen)
            count.index_add_(0, batch.index, torch.ones_like(seen))
            optimizer.zero_grad()
            losses.mean().backward()
            if rule.clip is not None:
                _clip([leaf.grad for leaf in leaves if leaf.grad is not None], rule.clip)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rule.schedule(t, rule.steps)
            optimizer.step()
            if t % _CHECK_EVERY == 0 or t == rule.steps - 1:
                _require_finite(losses, rule)
    ended = {name: value.detach() for name, value in state.items()}
    return Stop(ended, total / count.where(count > 0, torch.nan))


def _losses(problem: Problem, state: Params, batch: Batch) -> Float[Tensor, " B"]:
    outputs = problem.train_forward(state, move(batch.inputs, problem.device))
    targets = batch.targets.to(problem.device)
    problem.likelihood.check(outputs, targets)
    return problem.likelihood.loss(outputs, targets)


def _require_finite(losses: Tensor, rule: StageTraining) -> None:
    if not bool(torch.isfinite(losses).all()):
        message = (
            f"the training loss became {float(losses.detach().mean())} at learning rate "
            f"{rule.learning_rate:g}; lower learning_rate, set clip=1.0, or use 'auto'"
        )
        raise Diverged(message)


def _clip(gradients: list[Tensor], limit: float) -> None:
    """Scale a gradient so that its norm is at most ``limit``."""
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    scale = (limit / norm.clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale)

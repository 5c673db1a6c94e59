"""What an ensemble will cost, told before it starts, and how to keep it within a budget."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from afterfit.problem.data import Batches, TrainingStream
from afterfit.problem.persample import batch_losses
from afterfit.problem.problem import Problem
from afterfit.sampling.geometric import GeometricEnsemble, adamw, warm_cosine
from afterfit.sampling.heated import HeatedWalk
from afterfit.sampling.walk import StageTraining, Start, train_alone

_FORWARD_SHARE = 1 / 3  # of the cost of a training pass: one forward against forward and backward
_FEWEST_MEMBERS = 4


@final
@dataclass(frozen=True)
class Forecast:
    """Cost of members and of the search before them.

    Attributes
    ----------
    epochs
        Cost in passes of training over the data, losses of all samples included.
    seconds
        Wall-clock time, from three timed steps and one timed batch on this machine.
    memory, disk
        Bytes for members and losses, in memory and on disk.
    """

    epochs: float
    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"about {self.epochs:.0f} epochs of training, {_told_time(self.seconds)}, "
            f"{self.memory / 2**20:.1f} MiB of memory, {self.disk / 2**20:.1f} MiB on disk"
        )


def _told_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def epochs_of(sampler: GeometricEnsemble, fit: TrainingStream, trials: int) -> float:
    """Cost in training epochs of the members, of the trials of a search, and of their losses."""
    rule = sampler.stage_training(fit)
    members = sampler.members + max(0, trials - 1)
    return members * (rule.steps * fit.samples_per_step / fit.num_samples + _FORWARD_SHARE)


def forecast(
    problem: Problem,
    train: Batches,
    fit: TrainingStream,
    sampler: GeometricEnsemble,
    trials: int,
    *,
    folder: bool,
) -> Forecast:
    """Time a few steps and one batch, and add up."""
    rule = sampler.stage_training(fit)
    start = Start({**problem.params, **problem.buffers}, sampler.seed)
    steps = replace(rule, steps=3, learning_rate=1e-12)
    seconds_step = _seconds(lambda: train_alone(problem, [start], fit, steps)) / steps.steps
    first = train.fetch(next(iter(train)).index)
    seconds_batch = _seconds(lambda: batch_losses(problem, problem.params, first))
    members = sampler.members + max(0, trials - 1)
    state = sum(v.nbytes for v in start.params.values())
    column = train.num_samples * 12  # a loss at a member, and one seen, in float64
    table = column * sampler.members
    stored = state * sampler.members + table
    return Forecast(
        epochs=epochs_of(sampler, fit, trials),
        seconds=members * (rule.steps * seconds_step + len(train) * seconds_batch),
        memory=column + 4 * state if folder else stored + 4 * state,
        disk=stored + 2 * table if folder else 0,  # columns by kind, then side by side
    )


def forecast_walks(
    problem: Problem,
    train: Batches,
    fit: TrainingStream,
    walks: Sequence[HeatedWalk],
    *,
    folder: bool,
) -> Forecast:
    """Time a few steps and one batch, and add up over the stages of all walks."""
    steps = sum(len(walk.rates) * walk.steps(fit) for walk in walks)
    passes = sum(len(walk.rates) for walk in walks)
    state = {**problem.params, **problem.buffers}
    rule = StageTraining(3, 1e-12, warm_cosine, adamw(walks[0].decay), walks[0].clip)
    start = Start(state, walks[0].seed)
    seconds_step = _seconds(lambda: train_alone(problem, [start], fit, rule)) / rule.steps
    first = train.fetch(next(iter(train)).index)
    seconds_batch = _seconds(lambda: batch_losses(problem, problem.params, first))
    network = sum(value.nbytes for value in state.values())
    table = train.num_samples * 12 * passes
    return Forecast(
        epochs=steps * fit.samples_per_step / fit.num_samples + passes * _FORWARD_SHARE,
        seconds=steps * seconds_step + passes * len(train) * seconds_batch,
        memory=table + (4 if folder else 4 + passes) * network,
        disk=passes * network + table if folder else 0,
    )


def _seconds(run: Callable[[], object]) -> float:
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def within_budget(
    sampler: GeometricEnsemble, fit: TrainingStream, trials: int, budget: float | int
) -> tuple[GeometricEnsemble, int]:
    """Take away members, then trials, then steps, until the cost is within ``budget`` epochs.

    Raises
    ------
    ValueError
        If four members of one epoch, and two trials where there is a search, cost more.
    """
    while epochs_of(sampler, fit, trials) > budget:
        steps, epoch = (
            sampler.stage_training(fit).steps,
            max(1, round(fit.num_samples / fit.samples_per_step)),
        )
        if sampler.members > _FEWEST_MEMBERS:
            sampler = replace(sampler, members=sampler.members - 1)
        elif trials > 3:
            trials -= 1
        elif steps > epoch:
            sampler = replace(sampler, steps=max(epoch, steps * 3 // 4))
        elif trials > 2:
            trials -= 1
        else:
            message = (
                f"a budget of {budget:g} epochs is too small: {sampler.members} members of one "
                f"epoch and {trials} trials cost {epochs_of(sampler, fit, trials):.1f}; raise "
                "budget, or give learning_rate a number"
            )
            raise ValueError(message)
    return sampler, trials

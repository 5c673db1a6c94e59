"""Trainings on parts of the data: the truth that influence is measured by.

Every training is a task of its own; where they run is said outside (:mod:`afterfit.parallel`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from afterfit.evaluate.subsets import Retrainings
from afterfit.parallel import map_independent
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Categorical, Likelihood
from afterfit.problem.persample import batch_losses
from afterfit.problem.problem import Problem, move
from afterfit.problem.randomness import preserved_random_state

SeededRetrain = Callable[[Batches, int], nn.Module]
"""Trains a new network on these samples, from scratch, the user's way, with this seed."""


def retrain_on(
    retrain: SeededRetrain,
    train: Batches,
    query: Batches,
    kept: Bool[Tensor, "S N"],
    seeds: Sequence[int],
    likelihood: Likelihood | None = None,
    threads: int = 1,
) -> Retrainings:
    """Train once for every subset and seed, and observe the losses of the queries.

    The result does not depend on how many workers there are: each task seeds the generators of
    torch, numpy and Python with its own seed before it calls ``retrain``, and puts them back.

    Parameters
    ----------
    retrain
        The user's training, called with the samples of a subset and a seed.
    kept
        Which samples each subset holds, as :func:`~afterfit.evaluate.drawn_subsets` makes them.
    likelihood
        What the networks are trained for; class labels by default.
    threads
        Of torch inside each training.
    """
    if kept.shape[1] != train.num_samples:
        message = f"kept is for {kept.shape[1]} samples, the data holds {train.num_samples}"
        raise ValueError(message)
    if not seeds:
        message = "there are no seeds, expected at least one training for each subset"
        raise ValueError(message)
    chosen = Categorical() if likelihood is None else likelihood
    task = _Training(retrain, train, query, chosen)
    tasks = [(row, seed) for row in kept for seed in seeds]
    found = torch.stack(map_independent(task, tasks, threads))
    losses, correct = found.view(len(kept), len(seeds), 2, -1).unbind(2)
    return Retrainings(kept, losses, correct)


@final
@dataclass(frozen=True)
class _Training:
    """One training and what it says of the queries: losses and hits, (2, Q)."""

    retrain: SeededRetrain
    train: Batches
    query: Batches
    likelihood: Likelihood

    def __call__(self, task: tuple[Tensor, int]) -> Tensor:
        kept, seed = task
        with preserved_random_state(seed):
            module = self.retrain(self.train.subset(kept), seed)
        problem = Problem.from_module(module, self.likelihood)
        columns = []
        with torch.inference_mode():
            for batch in self.query:
                losses = batch_losses(problem, problem.params, batch)
                columns.append(torch.stack([losses, self._hits(problem, batch)]).cpu())
        return torch.cat(columns, dim=1).clone()

    def _hits(self, problem: Problem, batch: tuple[Tensor, ...]) -> Tensor:
        _, inputs, targets = batch
        found = problem.forward(problem.params, move(inputs, problem.device))
        if "accuracy" not in self.likelihood.reported:
            return torch.full((len(targets),), torch.nan, dtype=found.dtype)
        return (found.argmax(1) == targets.to(found.device)).to(found.dtype)


def save_retrainings(path: Path | str, truth: Retrainings) -> None:
    """Keep retrainings in a file of safetensors."""
    tensors = {"kept": truth.kept, "losses": truth.losses, "correct": truth.correct}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def load_retrainings(path: Path | str) -> Retrainings:
    """Read what :func:`save_retrainings` wrote."""
    return Retrainings(**load_file(path))

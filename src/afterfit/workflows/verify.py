"""Does the cleaning help? Train again, and compare on held-out data."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Categorical, Likelihood
from afterfit.problem.persample import losses, outputs
from afterfit.problem.problem import Problem

Retrain = Callable[[Batches], nn.Module]
"""Trains a new network on these samples, from scratch, the user's way."""


def verify(
    retrain: Retrain,
    train: Batches,
    test: Batches,
    variants: Mapping[str, Int[Tensor, " K"] | Batches],
    likelihood: Likelihood | None = None,
) -> pd.DataFrame:
    """Train once on all samples and once for each variant, and tell the numbers before and after.

    Parameters
    ----------
    variants
        Positions to keep, or the samples themselves (with corrected labels), by name.
    likelihood
        What the networks are trained for; class labels by default.

    Returns
    -------
    pandas.DataFrame
        One row for ``"as given"`` and for each variant: ``samples`` trained on, mean ``test_loss``
        in nats, and ``test_accuracy`` (for classes; NaN otherwise).
    """
    chosen = Categorical() if likelihood is None else likelihood
    rows = {"as given": train}
    for name, variant in variants.items():
        rows[name] = variant if isinstance(variant, Batches) else train.subset(variant)
    return pd.DataFrame(
        {name: _row(retrain(data), data, test, chosen) for name, data in rows.items()}
    ).T.astype({"samples": int})


def _row(module: nn.Module, data: Batches, test: Batches, likelihood: Likelihood) -> dict[str, Any]:
    problem = Problem.from_module(module, likelihood)
    accuracy = float("nan")
    if "accuracy" in likelihood.reported:
        hit = outputs(problem, test).argmax(1).cpu() == test.targets().cpu()
        accuracy = float(hit.to(torch.float64).mean())
    return {
        "samples": data.num_samples,
        "test_loss": float(losses(problem, test).mean()),
        "test_accuracy": accuracy,
    }

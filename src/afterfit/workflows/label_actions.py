"""What to do about labels that look wrong: leave samples out, correct labels, soften them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Categorical
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem
from afterfit.workflows.labels import LabelAnalysis
from afterfit.workflows.suggest import soft_targets


def prune(data: Any, analysis: LabelAnalysis) -> Subset[Any]:
    """Take the flagged samples out of a map-style data set.

    Raises
    ------
    ValueError
        If nothing calibrates a decision: pass ``cut`` to :func:`analyze_labels` to decide.
    """
    return Subset(data, analysis.kept.tolist())


def prune_easy(scores: Float[Tensor, " N"], fraction: float) -> Int[Tensor, " K"]:
    """Positions that stay when the share ``fraction`` with the lowest scores is taken away.

    On clean data these are the samples that the others teach anyway (Kim et al. 2023, section 5).
    """
    if not 0 <= fraction < 1:
        message = f"fraction is {fraction}, expected at least 0 and below 1"
        raise ValueError(message)
    order = scores.cpu().argsort(descending=True, stable=True)
    return order[: len(order) - int(fraction * len(order))].sort().values


def relabel(problem: Problem, train: Batches, analysis: LabelAnalysis) -> TensorDataset:
    """Give each sample the soft target of the paper's rule: pairs (position, target (C,)).

    See :func:`~afterfit.workflows.suggest.soft_targets`; inputs are not copied.

    Raises
    ------
    TypeError
        If the targets are not class labels.
    """
    if not isinstance(problem.likelihood, Categorical):
        message = (
            f"the likelihood is {type(problem.likelihood).__name__}, expected Categorical: soft "
            "targets are for class labels; use corrected_labels(analysis)"
        )
        raise TypeError(message)
    probabilities = problem.likelihood.mean(outputs(problem, train)).cpu()
    targets = soft_targets(probabilities, train.targets().cpu(), analysis.decision().is_issue.cpu())
    return TensorDataset(torch.arange(len(targets)), targets)


def corrected_labels(analysis: LabelAnalysis, min_confidence: float = 0.0) -> Tensor:
    """Labels in the order of the data, the flagged ones replaced by the suggested.

    Parameters
    ----------
    min_confidence
        Keep the given label where the ensemble is less sure of the suggestion than this.

    Raises
    ------
    ValueError
        If nothing calibrates a decision.
    """
    analysis.decision()
    table = analysis.issues.sort_index()
    unsure = table["confidence"] < min_confidence  # never so where there is no confidence
    replace = table["is_issue"] & ~unsure
    return torch.tensor(table["suggested"].where(replace, table["given"]).tolist())

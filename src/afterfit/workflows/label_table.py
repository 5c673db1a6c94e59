"""The table of a label analysis."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem
from afterfit.workflows.label_scores import Found


def _doubted(problem: Problem, train: Batches, found: Found) -> Tensor | None:
    """Which output speaks most against the given labels, where there are several."""
    if found.mean is None or not problem.likelihood.names_classes:
        return None
    columns = problem.likelihood.doubts(found.mean, train.targets())
    return columns.argmax(1).cpu() if columns.shape[1] > 1 else None


def label_table(
    problem: Problem,
    train: Batches,
    found: Found,
    is_issue: Bool[Tensor, " N"],
    free: Mapping[str, Tensor],
) -> pd.DataFrame:
    """One row a sample, the most suspicious first; see :class:`LabelAnalysis`."""
    suggestion, confidence = train.targets(), torch.full((train.num_samples,), torch.nan)
    if found.mean is not None:
        suggestion, confidence = problem.likelihood.suggested(found.mean, suggestion, is_issue)
    doubted = _doubted(problem, train, found)
    value, stderr = found.scores.value.cpu(), found.scores.stderr.cpu()
    rank = torch.empty(len(value), dtype=torch.long)
    rank[value.argsort(descending=True, stable=True)] = torch.arange(1, len(value) + 1)
    columns = {
        "id": train.ids,
        "given": _plain(train.targets()),
        "suggested": _plain(suggestion),
        "confidence": confidence.numpy(),
        "p_wrong": found.p_wrong.cpu().numpy(),
        "is_issue": is_issue.cpu().numpy(),
        "score": value.numpy(),
        "stderr": stderr.numpy(),
        "rank": rank.numpy(),
        **{name: scores.numpy() for name, scores in free.items()},
    }
    if doubted is not None:
        columns["output"] = doubted.numpy()
    table = pd.DataFrame(columns, index=pd.RangeIndex(len(value), name="index"))
    return table.sort_values("rank")


def _plain(targets: Tensor) -> list[Any]:
    return [tuple(row) if isinstance(row, list) else row for row in targets.cpu().tolist()]

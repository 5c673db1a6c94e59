"""Why this prediction? The training samples that it rests on, and those that speak against it."""

from typing import Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor

from afterfit.influence.base import Influence
from afterfit.influence.covariance import Scores
from afterfit.problem.data import Batches


@runtime_checkable
class WithErrors(Protocol):
    """Influence that knows the standard errors of its scores."""

    def cross_influence(self, query: Batches) -> Scores:
        """Scores (Q, N) with their standard errors."""
        ...


def scores_with_errors(influence: Influence, query: Batches) -> Scores:
    """Influence on each query, with standard errors; NaN where the method draws nothing."""
    if isinstance(influence, WithErrors):
        return influence.cross_influence(query)
    value = influence.scores(query)
    return Scores(value, torch.full_like(value, torch.nan))


def explain_prediction(
    influence: Influence, train: Batches, query: Batches, num: int = 5
) -> pd.DataFrame:
    """Name the strongest proponents and opponents of each query.

    A proponent's score is above 0: without it the query's loss would rise. An opponent's is below.

    Parameters
    ----------
    influence
        What a method's ``fit`` on ``train`` returned.
    num
        At most so many of each kind; there are fewer where fewer scores have that sign.

    Returns
    -------
    pandas.DataFrame
        One row for each query and named sample: ``query`` and its ``query_target``, ``kind``
        (proponent or opponent), ``rank`` from 1 within the kind, ``index``, ``id`` and ``target``
        of the training sample, ``score`` and its ``stderr``, and ``certain``: whether the score is
        more than two standard errors from zero (missing where the method has no errors).

    Raises
    ------
    ValueError
        If ``num`` is below 1 or the scores do not fit the data.
    """
    return explained(scores_with_errors(influence, query), train, query, num)


def explained(scores: Scores, train: Batches, query: Batches, num: int = 5) -> pd.DataFrame:
    """The table of :func:`explain_prediction` from scores that are there already."""
    expected = (query.num_samples, train.num_samples)
    if num < 1 or scores.value.shape != expected:
        message = (
            f"num is {num} and the scores are {tuple(scores.value.shape)}, expected at least 1 and "
            f"{expected}: one row for each query, one column for each training sample"
        )
        raise ValueError(message)
    value, stderr = scores.value.cpu(), scores.stderr.cpu()
    asked, targets = _plain(query.targets()), _plain(train.targets())
    rows = []
    for q in range(query.num_samples):
        for kind, sign in (("proponent", 1), ("opponent", -1)):
            signed = sign * value[q]
            order = signed.argsort(descending=True, stable=True)[:num]
            for rank, n in enumerate(order[signed[order] > 0].tolist(), 1):
                error = float(stderr[q, n])
                rows.append(
                    {
                        "query": query.ids[q],
                        "query_target": asked[q],
                        "kind": kind,
                        "rank": rank,
                        "index": n,
                        "id": train.ids[n],
                        "target": targets[n],
                        "score": float(value[q, n]),
                        "stderr": error,
                        "certain": pd.NA if error != error else float(signed[n]) > 2 * error,
                    }
                )
    columns = ["query", "query_target", "kind", "rank", "index", "id", "target", "score"]
    table = pd.DataFrame(rows, columns=[*columns, "stderr", "certain"])
    return table.astype({"certain": "boolean"})


def _plain(targets: Tensor) -> list[object]:
    return [tuple(row) if isinstance(row, list) else row for row in targets.cpu().tolist()]

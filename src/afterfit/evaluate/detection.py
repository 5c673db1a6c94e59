"""Whether influence points at the samples that a prediction is known to rest on."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afterfit.evaluate.attribution import Metric, average_precision
from afterfit.linalg import Estimate


def detection(
    scores: Float[Tensor, "Q N"],
    relevant: Bool[Tensor, "*q N"],
    metric: Metric = average_precision,
) -> Estimate:
    """How well each query's proponents are those it must rest on, averaged over queries.

    *Shortcut detection*: plant a mark on training samples of one class, query samples of other
    classes that carry the mark and are predicted as that class, and let ``relevant`` be the marked
    training samples. *Mixed sources*: train on two sources whose labels do not depend on each
    other, query one, and let ``relevant`` be the training samples of that source.

    Parameters
    ----------
    relevant
        One mask for all queries, (N,), or one for each, (Q, N).
    metric
        :func:`~afterfit.evaluate.average_precision` or :func:`~afterfit.evaluate.auc`.

    Returns
    -------
    Estimate
        Mean over the queries, with its standard error over them (NaN for one query).

    References
    ----------
    Bareeva, Yolcu, Hedström, Schmolenski, Wiegand, Samek and Lapuschkin (2024), Quanda: an
    interpretability toolkit for training data attribution evaluation. arXiv:2410.07158
    """
    masks = relevant.expand(scores.shape) if relevant.ndim == 1 else relevant
    if masks.shape != scores.shape:
        message = (
            f"relevant is {tuple(relevant.shape)} for scores {tuple(scores.shape)}, expected one "
            "mask for all queries or one for each"
        )
        raise ValueError(message)
    values = torch.tensor([metric(row, mask) for row, mask in zip(scores, masks, strict=True)])
    num = len(values)
    stderr = float(values.std() / num**0.5) if num > 1 else float("nan")
    return Estimate(float(values.mean()), stderr, num)

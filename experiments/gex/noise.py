"""Make labels wrong: uniform, asymmetric and instance-dependent noise.

Every function returns (noisy labels, wrong), both (N,); `wrong` marks the labels that differ from
the clean ones.
"""

import numpy as np
import torch
from torch import Tensor

# Look-alike classes: Patrini et al. (2017), Making deep neural networks robust, CVPR.
SIMILAR = {
    "mnist": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "ag_news": {2: 3, 3: 2},
}


def uniform(
    labels: Tensor, rate: float, num_classes: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Redraw the labels of int(N * rate) samples uniformly over all classes.

    A redrawn label can be the old one: the fraction that is wrong is about rate * (1 - 1 /
    num_classes). This is the corruption of Kim et al. (2023), GEX, NeurIPS.
    """
    chosen = rng.choice(len(labels), int(len(labels) * rate), replace=False)
    noisy = labels.numpy().copy()
    noisy[chosen] = rng.integers(num_classes, size=len(chosen))
    return _compare(noisy, labels)


def asymmetric(
    labels: Tensor, rate: float, similar: dict[int, int], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Turn each sample of class c in `similar` into class similar[c], with probability `rate`."""
    target = {int(c): int(c) for c in labels.unique()} | similar
    flipped = np.array([target[int(c)] for c in labels])
    noisy = np.where(rng.random(len(labels)) < rate, flipped, labels.numpy())
    return _compare(noisy, labels)


def next_class(num_classes: int) -> dict[int, int]:
    """Map each class to the next one, the last to the first (pair flips)."""
    return {c: (c + 1) % num_classes for c in range(num_classes)}


def instance_dependent(
    labels: Tensor, inputs: Tensor, rate: float, num_classes: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Choose the wrong class by a random projection of the input, and the chance of it per sample.

    Sample i is wrong with probability q_i, normal around `rate` with standard deviation 0.1 cut to
    [0, 1]; the wrong class follows a soft-max of x_i @ W[y_i] without the class y_i, W standard
    normal.

    References
    ----------
    Xia et al. (2020), Part-dependent label noise, NeurIPS, arXiv:2006.07836, algorithm 2.
    """
    rows = inputs.flatten(1).numpy().astype(np.float64)
    clean = labels.numpy()
    flip = _truncated_normal(rate, 0.1, len(clean), rng)
    projection = rng.standard_normal((num_classes, rows.shape[1], num_classes))

    noisy = clean.copy()
    for c in range(num_classes):
        members = np.flatnonzero(clean == c)
        logits = rows[members] @ projection[c]
        logits[:, c] = -np.inf
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances *= flip[members, None] / chances.sum(1, keepdims=True)
        chances[:, c] = 1 - flip[members]
        below = rng.random(len(members))[:, None] > chances.cumsum(1)
        noisy[members] = below.sum(1).clip(max=num_classes - 1)
    return _compare(noisy, labels)


def _truncated_normal(mean: float, std: float, size: int, rng: np.random.Generator) -> np.ndarray:
    draws = rng.normal(mean, std, size)
    while (outside := (draws < 0) | (draws > 1)).any():
        draws[outside] = rng.normal(mean, std, outside.sum())
    return draws


def _compare(noisy: np.ndarray, labels: Tensor) -> tuple[Tensor, Tensor]:
    noisy_labels = torch.tensor(noisy, dtype=torch.int64)
    return noisy_labels, noisy_labels != labels

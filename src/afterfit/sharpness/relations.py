"""Null spaces with sparse bases: relations among columns, in small whole numbers if may be."""

import torch
from jaxtyping import Float
from torch import Tensor

_NONE, _ZERO = 1e-10, 1e-7


def null_space(matrix: Float[Tensor, "r a"]) -> list[list[float]]:
    """Sparse vectors that the matrix sends to zero, by elimination; small whole numbers if may be.

    Columns that are zero, parameters without an effect, take no part.
    """
    norms = matrix.norm(dim=0)
    alive = (norms > _NONE * norms.max()).nonzero()[:, 0]
    if not len(alive) or not float(norms.max()):
        return []
    scaled = matrix[:, alive] / norms[alive]
    _, sizes, vectors = torch.linalg.svd(scaled, full_matrices=len(scaled) < len(alive))
    rank = int((sizes > _ZERO * sizes.max()).sum())
    rows = _sparsest(eliminated(vectors[rank:] / norms[alive]))
    found = []
    for row in rows:
        vector = torch.zeros(matrix.shape[1], dtype=matrix.dtype)
        vector[alive] = row
        found.append(vector.tolist())
    return found


def eliminated(rows: Float[Tensor, "k a"]) -> Float[Tensor, "k a"]:
    """Reduced row echelon form, each row scaled so that its least entry is 1."""
    rows = rows / rows.abs().amax(1, keepdim=True) if len(rows) else rows
    for place in range(len(rows)):
        pivot = int(rows[place].abs().argmax())
        rows[place] = rows[place] / rows[place, pivot].clone()
        for other in range(len(rows)):
            if other != place:
                rows[other] = rows[other] - rows[other, pivot].clone() * rows[place]
        size = rows.abs().amax(1, keepdim=True).clamp_min(_NONE)
        rows = rows / size
    return torch.stack([_cleaned(row) for row in rows]) if len(rows) else rows


def _sparsest(rows: Float[Tensor, "k a"]) -> Float[Tensor, "k a"]:
    """A basis of the same space from rows, their sums and differences, the shortest first."""
    pool = list(rows)
    for i, row in enumerate(rows):
        for other in rows[:i]:
            if bool((row * other).any()):
                pool += [_cleaned(row - other), _cleaned(row + other)]
    pool = [row for row in pool if bool(row.any())]
    pool.sort(key=lambda row: (int((row != 0).sum()), -float(row.sum())))
    basis = rows.new_zeros(len(rows), rows.shape[1])
    chosen: list[Tensor] = []
    for row in pool:
        if len(chosen) == len(rows):
            break
        rest = row / row.norm()
        rest = rest - (basis @ rest) @ basis
        if float(rest.norm()) > 1e-6:
            basis[len(chosen)] = rest / rest.norm()
            chosen.append(row)
    return torch.stack(chosen) if chosen else rows


def _cleaned(row: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
    row = torch.where(row.abs() > 1e-5, row, 0.0)
    there = row[row != 0]
    if not len(there):
        return row
    row = row / there.abs().min() * there[0].sign()
    whole = row.round()
    return torch.where((row - whole).abs() < 1e-4, whole, row)


def beyond(basis: Float[Tensor, "k a"], known: Float[Tensor, "l a"]) -> Float[Tensor, "m a"]:
    """Sparse vectors that, with the known ones, span what the basis spans."""
    rest = basis
    if len(known):
        _, sizes, span = torch.linalg.svd(known, full_matrices=False)
        span = span[sizes > _ZERO]
        rest = basis - basis @ span.mT @ span
    _, sizes, vectors = torch.linalg.svd(rest, full_matrices=False)
    new = vectors[sizes > 1e-4 * max(1.0, float(sizes.max()))]
    return eliminated(_simplified(new, known))


def _simplified(new: Float[Tensor, "k a"], known: Float[Tensor, "l a"]) -> Float[Tensor, "k a"]:
    """Add known relations to new ones so that their pivots vanish: fewer tensors are named."""
    rows = known.clone()
    for place in range(len(rows)):
        pivot = int(rows[place].abs().argmax())
        size = float(rows[place, pivot])
        if abs(size) < 1e-6:
            continue
        rows[place] = rows[place] / size
        for other in range(len(rows)):
            if other != place:
                rows[other] = rows[other] - rows[other, pivot].clone() * rows[place]
        new = new - new[:, pivot : pivot + 1] * rows[place]
    return new

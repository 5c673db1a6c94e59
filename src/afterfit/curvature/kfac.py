"""Kronecker-factored curvature: for each layer a small matrix for its inputs, one for its outputs.

Every parameter that no matrix product uses (the affine part of a normalization, an embedding) gets
its exact diagonal.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from afterfit.curvature.blocks import KroneckerBlock, NamedBlock
from afterfit.curvature.diagonal import diagonal, flat_scale, only
from afterfit.curvature.factors import Factors, Sharing, expand, factors
from afterfit.curvature.scale import rank_one, signs_of
from afterfit.curvature.tracing import Tracer
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.structured import BlockDiagonal, Diagonal
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

Curvature = Callable[[Problem, Batches], LinearOperator]
"""The curvature of the summed loss of a problem over some data."""

Placed = tuple[LinearOperator, Tensor]
"""A block, and the entries of the flat vector that it acts on."""


def kfac(
    problem: Problem, data: Batches, sharing: Sharing = expand, others: Curvature | None = None
) -> BlockDiagonal:
    """Kronecker-factored approximation of the generalized Gauss-Newton matrix of the summed loss.

    For a layer with inputs ``a`` and gradients ``g`` at its output (pulled back along the columns
    of a root of ``Λ``), its block is ``G ⊗ A`` with ``G = Σ g gᵀ`` and ``A`` the mean of ``a aᵀ``,
    both over samples and positions; ``a`` ends in a one where the layer has a bias. Nothing depends
    on how the samples are divided into batches.

    In relative coordinates the block between two diagonals is no Kronecker product. The size of
    the scale is replaced by the product of the geometric means of its rows and columns, which
    follows every rescaling of units exactly, so that the factors ignore such rescalings as the
    exact block does; its signs stay. What is neither row nor column is not followed: a bias on
    which nothing depends, as that of the keys of attention, must be rescaled along with its weight.

    Parameters
    ----------
    sharing
        What to do with weights that are used at many positions: `expand` or `reduce`.
    others
        Curvature of the parameters that no known layer function uses; their exact `diagonal` if
        it is left out, with a warning that names them. They are one `NamedBlock` of the result.

    Warns
    -----
    UserWarning
        If a parameter is used by a function that is no known layer and `others` is missing.

    Raises
    ------
    ValueError
        If a parameter is used in one way for some samples and in another for others.
    TypeError
        If the likelihood has no curvature (``PerSample``).

    References
    ----------
    Martens, Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate
    curvature", ICML, arXiv:1503.05671. Grosse, Martens (2016), "A Kronecker-factored approximate
    Fisher matrix for convolution layers", ICML, arXiv:1602.01407. Eschenhagen, Immer, Turner,
    Schneider, Hennig (2023), "Kronecker-factored approximate curvature for modern neural network
    architectures", NeurIPS, arXiv:2311.00636 (expand and reduce).
    """
    layered, rest = split_covered(problem, data, others)
    if layered is None:
        return assembled(problem, problem, [], rest)
    sums = factors(layered, data, sharing)
    scale = flat_scale(layered)
    blocks: list[Placed] = []
    for unit, left, right in zip(sums.units, sums.outputs, sums.inputs, strict=True):
        where = unit.positions(layered.num_params).to(problem.device)
        rows, columns = rank_one(scale[where])
        block = KroneckerBlock(
            unit.names,
            (rows[:, None] * left * rows).to(problem.dtype),
            (columns[:, None] * right * columns).to(problem.dtype),
            rows,
            columns,
            signs_of(scale[where]),
        )
        blocks.append((block, where.flatten()))
    return assembled(problem, layered, [*blocks, *diagonal_blocks(layered, sums)], rest)


def split_covered(
    problem: Problem, data: Batches, others: Curvature | None
) -> tuple[Problem | None, NamedBlock | None]:
    """Keep the parameters whose layers are known, and give the others a curvature of their own.

    Warns
    -----
    UserWarning
        If there are others, and nobody has said what curvature they get: the exact diagonal.
    """
    uncovered = Tracer.of(problem, data).uncovered
    if not uncovered:
        return problem, None
    if others is None:
        listed = ", ".join(f"{name} (used by {function})" for name, function in uncovered.items())
        message = (
            f"no Kronecker factors are known for {listed}: these parameters get their exact "
            "diagonal; say so by partial(kfac, others=diagonal), or leave them out with "
            "restrict(problem, ...)"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    curvature = diagonal if others is None else others
    names = tuple(name for name in problem.params if name in uncovered)
    known = [name for name in problem.params if name not in uncovered]
    rest = NamedBlock(names, curvature(only(problem, uncovered), data))
    return (only(problem, known) if known else None), rest


def diagonal_blocks(problem: Problem, sums: Factors) -> list[Placed]:
    """Exact diagonals of the parameters that are in no Kronecker block, one by one."""
    taken = {name for unit in sums.units for name in unit.names}
    return [
        (NamedBlock((name,), Diagonal(sums.squares[where])), where)
        for name, where in places_of(problem).items()
        if name not in taken
    ]


def assembled(
    problem: Problem,
    layered: Problem,
    blocks: list[Placed],
    rest: NamedBlock | None,
) -> BlockDiagonal:
    """Put blocks of a part of a problem, and that of the rest, at their places."""
    places = places_of(problem)
    within = torch.cat([places[name] for name in layered.params])
    placed = [(block, within[where]) for block, where in blocks]
    if rest is not None:
        placed.append((rest, torch.cat([places[name] for name in rest.names])))
    placed.sort(key=lambda pair: int(pair[1][0]))
    return BlockDiagonal(tuple(block for block, _ in placed), tuple(where for _, where in placed))


def places_of(problem: Problem) -> dict[str, Tensor]:
    """Entries of the flat vector that each parameter takes."""
    whole = torch.arange(problem.num_params, device=problem.device)
    parts = whole.split([p.numel() for p in problem.params.values()])
    return dict(zip(problem.params, parts, strict=True))

"""Operations on curvatures that keep their structure."""

from dataclasses import replace
from functools import singledispatch

from afterfit.curvature.blocks import EigenBlock, KroneckerBlock, NamedBlock
from afterfit.curvature.root import Gram
from afterfit.linalg.operator import LinearOperator, Scaled
from afterfit.linalg.structured import BlockDiagonal, Dense, Diagonal, LowRank
from afterfit.linalg.trace import trace


@singledispatch
def scaled(operator: LinearOperator, factor: float) -> LinearOperator:
    """``factor * operator``, of the same structure."""
    return Scaled(factor, operator)


@scaled.register
def _(operator: Gram, factor: float) -> Gram:
    return replace(operator, factor=factor * operator.factor)


@scaled.register
def _(operator: Dense, factor: float) -> Dense:
    return replace(operator, matrix=factor * operator.matrix)


@scaled.register
def _(operator: Diagonal, factor: float) -> Diagonal:
    return Diagonal(factor * operator.entries)


@scaled.register(LowRank)
@scaled.register(EigenBlock)
def _(operator: LowRank | EigenBlock, factor: float) -> LowRank | EigenBlock:
    return replace(operator, values=factor * operator.values)


@scaled.register
def _(operator: KroneckerBlock, factor: float) -> KroneckerBlock:
    return replace(operator, output_factor=factor * operator.output_factor)


@scaled.register
def _(operator: NamedBlock, factor: float) -> NamedBlock:
    return replace(operator, operator=scaled(operator.operator, factor))


@scaled.register
def _(operator: BlockDiagonal, factor: float) -> BlockDiagonal:
    return replace(operator, blocks=tuple(scaled(block, factor) for block in operator.blocks))


@singledispatch
def mean_eigenvalue(operator: LinearOperator) -> float:
    """Trace of a block over its size."""
    return trace(operator) / operator.shape[0]


@mean_eigenvalue.register
def _(operator: NamedBlock) -> float:
    return mean_eigenvalue(operator.operator)


@mean_eigenvalue.register
def _(operator: EigenBlock) -> float:
    return float(operator.values.double().mean())


@mean_eigenvalue.register
def _(operator: KroneckerBlock) -> float:
    left, right = operator.output_factor, operator.input_factor
    return float(left.double().diagonal().mean() * right.double().diagonal().mean())


@mean_eigenvalue.register
def _(operator: Gram) -> float:
    root = operator.root.held()
    return operator.factor * float(root.to_dense().square().sum()) / operator.shape[0]

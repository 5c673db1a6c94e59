"""Batch normalization by its formula, which has a slope in its statistics."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class OpenBatchNorm(TorchFunctionMode):
    """Compute batch normalization by its formula: the fused one has no slope in its statistics."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.batch_norm and _uses_statistics(*args, **(kwargs or {})):
            return _normalized(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _uses_statistics(
    x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None,  # noqa: ARG001
    training: Any = False, momentum: Any = 0.1, eps: Any = 1e-5,  # noqa: ARG001
) -> bool:  # fmt: skip
    return mean is not None and not training


def _normalized(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
    training: Any = False, momentum: Any = 0.1, eps: float = 1e-5,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    shape = (1, -1, *(1 for _ in range(x.ndim - 2)))
    centered = (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()
    scaled = centered if weight is None else centered * weight.view(shape)
    return scaled if bias is None else scaled + bias.view(shape)

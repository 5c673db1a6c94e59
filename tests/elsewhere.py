"""Tensors that say they are on another device, so that mixing devices fails without one."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")


class Elsewhere(Tensor):
    """A tensor that meets neither a plain one nor a plain generator before it was moved."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return ELSEWHERE
        here = torch.device("cpu")
        if func is Tensor.cpu or (func is Tensor.to and here in (*args, *kwargs.values())):
            return args[0].as_subclass(Tensor)
        leaves = tree_leaves((args, kwargs))
        others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, cls)]
        if any(x.device == here and x.ndim for x in others):
            raise RuntimeError("Expected all tensors to be on the same device")
        if any(isinstance(x, Generator) for x in leaves):
            raise RuntimeError("Expected a 'meta' device type for generator but found 'cpu'")
        if any(x.device == ELSEWHERE for x in others):
            args, kwargs = tree_map(_as_meta, (args, kwargs))
            return func(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def _as_meta(leaf: Any) -> Any:
    if not isinstance(leaf, Elsewhere):
        return leaf
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=ELSEWHERE)

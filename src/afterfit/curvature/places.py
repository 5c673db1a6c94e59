"""Where the tensors that a function is called with come from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from afterfit.curvature.layers import Call, Slot


@final
@dataclass(frozen=True)
class Place:
    """Where a tensor that a function was called with comes from.

    Attributes
    ----------
    name, start, length
        Of the parameter, where it begins in the flat vector of all parameters, and its entries.
    twin
        A tensor without storage, strided in the parameter as that tensor is.
    """

    name: str
    start: int
    length: int
    twin: Tensor


Find = Callable[[Any], Place | None]
"""The place of a value; None if it holds no parameters of the problem."""

Described = tuple[Call, Tensor]
"""A call and the activations that it needs."""

Rule = Callable[..., Described | None]
"""Describes a call from how to find places and its arguments; None where it cannot."""


def slot_of(
    found: Place | None,
    view: Callable[[Tensor], Tensor],
    shape: tuple[int, ...] | None = None,
) -> Slot | None:
    """Where a view of what was found stands, in a shape that the view may not have."""
    if found is None:
        return None
    seen = view(found.twin)
    size = tuple(seen.shape)
    return Slot(
        found.name,
        found.start,
        found.length,
        int(seen.storage_offset()),
        size,
        seen.stride(),
        size if shape is None else shape,
    )

"""Which parameters share a Kronecker block: the weight of a layer, with its bias where it can."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.layers import Call, Multiply, Slot
from afterfit.curvature.tracing import Trace

Block = tuple[Slot | None, Slot | None, int]
"""Weight, bias and group."""


@final
@dataclass(frozen=True)
class Unit:
    """Parameters that one Kronecker block covers, and the calls of layers that use them.

    Attributes
    ----------
    weight, bias
        Where they stand; one of them may be missing.
    calls
        Positions of the calls within a run.
    group
        Of a convolution in groups, each of which is a block of its own.
    """

    weight: Slot | None
    bias: Slot | None
    calls: tuple[int, ...]
    group: int

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(slot.name for slot in (self.weight, self.bias) if slot is not None)

    @property
    def block(self) -> Block:
        """What tells it from other units; samples may use one in other calls."""
        return self.weight, self.bias, self.group

    def positions(self, num_params: int) -> Int[Tensor, "O I"]:
        """Entries of the flat vector that the block acts on, as (out, in)."""
        flat = torch.arange(num_params)
        parts = []
        if self.weight is not None:
            parts.append(self.weight.of(flat)[self.group])
        if self.bias is not None:
            parts.append(self.bias.of(flat)[self.group][:, None])
        return torch.cat(parts, dim=1)

    def inputs(self, trace: Trace) -> Float[Tensor, "B S I"]:
        """What the weight is multiplied with at every position, then a one for the bias."""
        return torch.cat([self._inputs(trace, i) for i in self.calls], dim=1)

    def _inputs(self, trace: Trace, i: int) -> Float[Tensor, "B S I"]:
        call = trace.calls[i]
        assert isinstance(call, Multiply)
        if self.weight is None:
            shape = call.channels(trace.probes[i]).shape
            return trace.outputs.new_ones(shape[0], shape[1], 1)
        a = trace.entered(i)[:, :, self.group]
        if self.bias is None:
            return a
        return torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)

    def outputs(self, trace: Trace, pulled: Mapping[int, Tensor]) -> Float[Tensor, "B S O"]:
        """Gradients at the output of the layer at every position, from those of its calls."""
        parts = []
        for i in self.calls:
            call = trace.calls[i]
            assert isinstance(call, Multiply)
            parts.append(call.channels(pulled[i])[:, :, self.group])
        return torch.cat(parts, dim=1)


def units_of(calls: Sequence[Call]) -> list[Unit]:
    """Blocks for the layers of a run; what else uses parameters is in none.

    A bias shares the block of its weight where neither is used without the other. A parameter that
    is used by a function other than a matrix product too has no block.
    """
    products = {i: call for i, call in enumerate(calls) if isinstance(call, Multiply)}
    unfit = _unfit(calls)
    pairs = list(dict.fromkeys((call.weight, call.bias) for call in products.values()))
    units: dict[tuple[Slot | None, Slot | None], tuple[int, ...]] = {}
    for weight, bias in pairs:
        alone = not any(_shares(pair, (weight, bias)) for pair in pairs if pair != (weight, bias))
        for part in [(weight, bias)] if alone else [(weight, None), (None, bias)]:
            if part != (None, None):
                units[part] = _users(part, products)
    return [
        Unit(weight, bias, users, group)
        for (weight, bias), users in units.items()
        if unfit.isdisjoint(slot.name for slot in (weight, bias) if slot is not None)
        for group in range(_some(weight, bias).shape[0])
    ]


def _unfit(calls: Sequence[Call]) -> set[str]:
    """Parameters with a use that is no matrix product, or whose uses overlap or leave gaps."""
    slots = {slot for call in calls for slot in call.slots}
    sizes = {slot.name: 0 for slot in slots}
    for slot in slots:
        sizes[slot.name] += prod(slot.size)
    mixed = {s.name for call in calls if not isinstance(call, Multiply) for s in call.slots}
    return mixed | {slot.name for slot in slots if sizes[slot.name] != slot.length}


def _shares(one: tuple[Slot | None, Slot | None], other: tuple[Slot | None, Slot | None]) -> bool:
    """Whether two layers have a parameter in common."""
    return any(a is not None and a == b for a, b in zip(one, other, strict=True))


def _users(
    part: tuple[Slot | None, Slot | None], products: Mapping[int, Multiply]
) -> tuple[int, ...]:
    """Calls that use a weight, a bias, or both."""
    weight, bias = part
    return tuple(
        i
        for i, call in products.items()
        if (weight is None or call.weight == weight) and (bias is None or call.bias == bias)
    )


def _some(weight: Slot | None, bias: Slot | None) -> Slot:
    found = weight if weight is not None else bias
    assert found is not None
    return found

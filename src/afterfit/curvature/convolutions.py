"""Convolutions and transposed convolutions as products at every position of their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.nn import functional

from afterfit.curvature.layers import Multiply
from afterfit.curvature.places import Described, Find, Rule, slot_of


@final
@dataclass(frozen=True)
class Patches:
    """The patches that a convolution multiplies: (B, L, channels, *space) to (B, S, groups, in)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, tensor: Tensor) -> Tensor:
        num = len(self.kernel)
        x = tensor.reshape(-1, *tensor.shape[-num - 1 :])
        x = functional.pad(x, self.padding)
        for axis, (size, step, gap) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True)
        ):
            x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
        x = x.unflatten(1, (self.groups, -1))  # images, groups, channels, *positions, *kernel
        order = (0, *range(3, 3 + num), 1, 2, *range(3 + num, 3 + 2 * num))
        x = x.permute(order).flatten(-num - 1)
        return x.reshape(len(tensor), -1, self.groups, x.shape[-1])


@final
@dataclass(frozen=True)
class Channels:
    """Gradients at the output of a convolution: (B, L, channels, *space) to (B, S, groups, out)."""

    num_axes: int
    groups: int

    def __call__(self, tensor: Tensor) -> Tensor:
        x = tensor.reshape(len(tensor), -1, *tensor.shape[-self.num_axes - 1 :])
        rows = x.flatten(3).transpose(2, 3)  # B, images, positions, channels
        rows = rows[:, 0] if rows.shape[1] == 1 else rows.flatten(1, 2)  # a view of one image
        return rows.unflatten(2, (self.groups, -1))


@final
@dataclass(frozen=True)
class SpreadPatches:
    """What a transposed convolution multiplies: (B, L, channels, *space) to (B, S, groups, in).

    It is a convolution of the input with zeros between its entries, its kernel turned around
    (Dangel 2023, "Convolutions and more as einsum", arXiv:2307.02275).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, tensor: Tensor) -> Tensor:
        num = len(self.kernel)
        sizes = [(n - 1) * s + 1 for n, s in zip(tensor.shape[-num:], self.stride, strict=True)]
        spread = tensor.new_zeros(*tensor.shape[:-num], *sizes)
        spread[(..., *(slice(None, None, step) for step in self.stride))] = tensor
        steps = (1,) * num
        patches = Patches(self.kernel, steps, self.padding, self.dilation, self.groups)(spread)
        turned = patches.unflatten(-1, (-1, *self.kernel)).flip(tuple(range(-num, 0)))
        return turned.flatten(-num - 1)


def _each(value: Any, num: int) -> tuple[int, ...]:
    """One number for each axis, where a function takes one for all as well."""
    return (value,) * num if isinstance(value, int) else tuple(value) * (num // len(value))


def _around(sides: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Padding of all axes as ``functional.pad`` takes it, the last axis first."""
    return tuple(side for pair in reversed(sides) for side in pair)


def convolution(num: int) -> Rule:
    """Rule for convolutions over some axes."""

    def describe(
        find: Find,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Described:
        kernel, gaps = tuple(weight.shape[2:]), _each(dilation, num)
        if padding == "same":
            spans = [gap * (size - 1) for size, gap in zip(kernel, gaps, strict=True)]
            sides = [(span // 2, span - span // 2) for span in spans]
        else:
            sides = [(side, side) for side in _each(0 if padding == "valid" else padding, num)]
        out, width = weight.shape[0] // groups, weight[0].numel()
        call = Multiply(
            slot_of(find(weight), lambda w: w.unflatten(0, (groups, -1)), (groups, out, width)),
            slot_of(find(bias), lambda b: b.unflatten(0, (groups, -1))),
            Patches(kernel, _each(stride, num), _around(sides), gaps, groups),
            Channels(num, groups),
        )
        return call, input

    return describe


def transposed_convolution(num: int) -> Rule:
    """Rule for transposed convolutions over some axes."""

    def describe(
        find: Find,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Described:
        kernel, gaps = tuple(weight.shape[2:]), _each(dilation, num)
        cut, more = _each(padding, num), _each(output_padding, num)
        spans = [gap * (size - 1) for size, gap in zip(kernel, gaps, strict=True)]
        sides = [(s - c, s - c + m) for s, c, m in zip(spans, cut, more, strict=True)]
        shape = groups, weight.shape[1], weight[:, 0].numel() // groups

        def by_group(w: Tensor) -> Tensor:
            return w.unflatten(0, (groups, -1)).transpose(1, 2)

        call = Multiply(
            slot_of(find(weight), by_group, shape),
            slot_of(find(bias), lambda b: b.unflatten(0, (groups, -1))),
            SpreadPatches(kernel, _each(stride, num), _around(sides), gaps, groups),
            Channels(num, groups),
        )
        return call, input

    return describe

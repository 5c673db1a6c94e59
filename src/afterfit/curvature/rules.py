"""Which functions of torch are layers, and how a call of each is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from afterfit.curvature.layers import Broadcast, Call, Look, Multiply, Slot


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


def _slot(found: Place | None, view: Callable[[Tensor], Tensor]) -> Slot | None:
    if found is None:
        return None
    seen = view(found.twin)
    return Slot(
        found.name,
        found.start,
        found.length,
        int(seen.storage_offset()),
        tuple(seen.shape),
        seen.stride(),
    )


def _same(tensor: Tensor) -> Tensor:
    return tensor


@final
@dataclass(frozen=True)
class Positions:
    """All axes between the first and the last count positions: (B, …, n) to (B, S, 1, n)."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(len(tensor), -1, 1, tensor.shape[-1])


def linear(find: Find, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Described:  # noqa: A002
    """``functional.linear``."""
    call = Multiply(
        _slot(find(weight), lambda w: w[None]),
        _slot(find(bias), lambda b: b[None]),
        Positions(),
        Positions(),
    )
    return call, input


def matmul(find: Find, input: Tensor, other: Tensor) -> Described | None:  # noqa: A002
    """``input @ weight`` with a weight (in, out) on the right."""
    if find(input) is not None or other.ndim != 2:
        return None
    call = Multiply(_slot(find(other), lambda w: w.mT[None]), None, Positions(), Positions())
    return call, input


def addmm(find: Find, input: Tensor, mat1: Tensor, mat2: Tensor) -> Described | None:  # noqa: A002
    """``bias + input @ weight``, as in the convolutions of GPT-2."""
    if find(mat1) is not None or input.ndim != 1:
        return None
    call = Multiply(
        _slot(find(mat2), lambda w: w.mT[None]),
        _slot(find(input), lambda b: b[None]),
        Positions(),
        Positions(),
    )
    return call, mat1


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


def _convolution(num: int) -> Callable[..., Described]:
    def each(value: Any) -> tuple[int, ...]:
        return (value,) * num if isinstance(value, int) else tuple(value) * (num // len(value))

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
        kernel, gaps = tuple(weight.shape[2:]), each(dilation)
        if padding == "same":
            spans = [gap * (size - 1) for size, gap in zip(kernel, gaps, strict=True)]
            sides = [(span // 2, span - span // 2) for span in spans]
        else:
            sides = [(side, side) for side in each(0 if padding == "valid" else padding)]
        around = tuple(side for pair in reversed(sides) for side in pair)
        call = Multiply(
            _slot(find(weight), lambda w: w.reshape(groups, w.shape[0] // groups, -1)),
            _slot(find(bias), lambda b: b.reshape(groups, -1)),
            Patches(kernel, each(stride), around, gaps, groups),
            Channels(num, groups),
        )
        return call, input

    return describe


def _affine(
    find: Find, normalized: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int
) -> Described:
    """Affine part of a normalization; `axes` follow the one that the parameters belong to."""

    def view(tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape, *(1,) * axes)

    return Broadcast(_slot(find(weight), view), _slot(find(bias), view), _same), normalized


def layer_norm(
    find: Find,
    input: Tensor,  # noqa: A002
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001
) -> Described:
    """``functional.layer_norm``."""
    normalized = functional.layer_norm(input, normalized_shape, None, None, eps)
    return _affine(find, normalized, weight, bias, 0)


def rms_norm(
    find: Find,
    input: Tensor,  # noqa: A002
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Described:
    """``functional.rms_norm``."""
    normalized = functional.rms_norm(input, normalized_shape, None, eps)
    return _affine(find, normalized, weight, None, 0)


def group_norm(
    find: Find,
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Described:
    """``functional.group_norm``."""
    normalized = functional.group_norm(input, num_groups, None, None, eps)
    return _affine(find, normalized, weight, bias, input.ndim - 2)


def batch_norm(
    find: Find,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Described | None:
    """``functional.batch_norm`` by stored statistics."""
    if training:
        return None
    normalized = functional.batch_norm(
        input, running_mean, running_var, None, None, training, momentum, eps
    )
    return _affine(find, normalized, weight, bias, input.ndim - 2)


def embedding(
    find: Find,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001
) -> Described | None:
    """``functional.embedding``."""
    table = _slot(find(weight), _same)
    if table is None or max_norm is not None or scale_grad_by_freq:
        return None
    padding = -1 if padding_idx is None else padding_idx % table.size[0]
    return Look(table, padding), input


def add(find: Find, input: Any, other: Any, alpha: float = 1) -> Described | None:  # noqa: A002
    """``x + parameter``, as for embeddings of positions."""
    left, right = find(input), find(other)
    found = left if right is None else right
    if found is None or (left is not None and right is not None) or alpha != 1:
        return None
    return Broadcast(None, _slot(found, _same), _same), torch.zeros(())


def multiply(find: Find, input: Any, other: Any) -> Described | None:  # noqa: A002
    """``x * parameter``, as for scales of layers."""
    left, right = find(input), find(other)
    if (left is None) == (right is None):
        return None
    found, rest = (right, input) if left is None else (left, other)
    if not isinstance(rest, Tensor):
        return None
    return Broadcast(_slot(found, _same), None, _same), rest


def concatenate(find: Find, tensors: Any, dim: int = 0) -> Described | None:
    """``torch.cat`` with one parameter among the parts, as for the token of the class."""
    held = [i for i, part in enumerate(tensors) if find(part) is not None]
    if len(held) != 1:
        return None
    chosen = tensors[held[0]]
    start = sum(part.shape[dim] for part in tensors[: held[0]])
    axis = dim % chosen.ndim + 1  # after the axis of the samples

    def part(pulled: Tensor) -> Tensor:
        return pulled.narrow(axis, start, chosen.shape[dim])

    return Broadcast(None, _slot(find(chosen), _same), part), torch.zeros(())


RULES: Mapping[Any, Callable[..., Described | None]] = {
    functional.linear: linear,
    functional.conv1d: _convolution(1),
    functional.conv2d: _convolution(2),
    functional.conv3d: _convolution(3),
    functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    functional.rms_norm: rms_norm,
    functional.group_norm: group_norm,
    functional.batch_norm: batch_norm,
    functional.embedding: embedding,
    torch.matmul: matmul,
    torch.mm: matmul,
    Tensor.matmul: matmul,
    Tensor.mm: matmul,
    Tensor.__matmul__: matmul,
    torch.addmm: addmm,
    torch.add: add,
    Tensor.add: add,
    Tensor.__add__: add,
    Tensor.__radd__: add,
    torch.mul: multiply,
    Tensor.mul: multiply,
    Tensor.__mul__: multiply,
    Tensor.__rmul__: multiply,
    torch.cat: concatenate,
}
"""Layer functions, and what describes a call: None where that call has no rule."""

VIEWS = frozenset(
    {
        Tensor.split,
        Tensor.chunk,
        Tensor.unbind,
        Tensor.t,
        Tensor.transpose,
        Tensor.permute,
        Tensor.view,
        Tensor.unsqueeze,
        Tensor.squeeze,
        Tensor.flatten,
        Tensor.reshape,
        Tensor.expand,
        Tensor.__getitem__,
        *(vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT")),
        torch.split,
        torch.chunk,
        torch.t,
        torch.transpose,
        torch.unsqueeze,
    }
)
"""Functions that only look at their first argument in another way."""

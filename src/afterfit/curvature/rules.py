"""Which functions of torch are layers, and how a call of each is described."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from afterfit.curvature.contractions import Positions, bilinear, einsum, matmul
from afterfit.curvature.convolutions import convolution, transposed_convolution
from afterfit.curvature.layers import Broadcast, Look, Multiply
from afterfit.curvature.places import Described, Find, Rule, slot_of


def _same(tensor: Tensor) -> Tensor:
    return tensor


def linear(find: Find, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Described:  # noqa: A002
    """``functional.linear``."""
    call = Multiply(
        slot_of(find(weight), lambda w: w[None]),
        slot_of(find(bias), lambda b: b[None]),
        Positions(),
        Positions(),
    )
    return call, input


def addmm(find: Find, input: Tensor, mat1: Tensor, mat2: Tensor) -> Described | None:  # noqa: A002
    """``bias + input @ weight``, as in the convolutions of GPT-2."""
    if find(mat1) is not None or input.ndim != 1:
        return None
    call = Multiply(
        slot_of(find(mat2), lambda w: w.mT[None]),
        slot_of(find(input), lambda b: b[None]),
        Positions(),
        Positions(),
    )
    return call, mat1


def _affine(
    find: Find, normalized: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int
) -> Described:
    """Affine part of a normalization; `axes` follow the one that the parameters belong to."""

    def view(tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape, *(1,) * axes)

    return Broadcast(slot_of(find(weight), view), slot_of(find(bias), view), _same), normalized


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


def instance_norm(
    find: Find,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Described:
    """``functional.instance_norm``."""
    stored = (None, None) if use_input_stats else (running_mean, running_var)
    normalized = functional.instance_norm(
        input, *stored, None, None, use_input_stats, momentum, eps
    )
    return _affine(find, normalized, weight, bias, input.ndim - 2)


def prelu(find: Find, input: Tensor, weight: Tensor) -> Described:  # noqa: A002
    """``functional.prelu``: the parameter multiplies what is negative."""
    axes = input.ndim - 2 if weight.numel() > 1 else 0
    slot = slot_of(find(weight), lambda w: w.reshape(*w.shape, *(1,) * axes))
    return Broadcast(slot, None, _same), input.clamp(max=0)


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
    max_norm: float | int | None = None,
    norm_type: float | int = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001
) -> Described | None:
    """``functional.embedding``."""
    table = slot_of(find(weight), _same)
    if table is None or max_norm is not None or scale_grad_by_freq:
        return None
    padding = -1 if padding_idx is None else padding_idx % table.shape[0]
    return Look(table, padding), input


def add(find: Find, input: Any, other: Any, alpha: float | int = 1) -> Described | None:  # noqa: A002
    """``x + parameter``, as for embeddings of positions."""
    left, right = find(input), find(other)
    found = left if right is None else right
    if found is None or (left is not None and right is not None) or alpha != 1:
        return None
    return Broadcast(None, slot_of(found, _same), _same), torch.zeros(())


def add_in_place(find: Find, input: Tensor, other: Any, alpha: float | int = 1) -> Described | None:  # noqa: A002
    """``x += parameter``."""
    return None if find(input) is not None else add(find, input, other, alpha)


def _negative(tensor: Tensor) -> Tensor:
    return -tensor


def subtract(find: Find, input: Any, other: Any, alpha: float | int = 1) -> Described | None:  # noqa: A002
    """``x - parameter`` and ``parameter - x``."""
    left, right = find(input), find(other)
    if (left is None) == (right is None) or alpha != 1:
        return None
    if left is not None:
        return Broadcast(None, slot_of(left, _same), _same), torch.zeros(())
    return Broadcast(None, slot_of(right, _same), _negative), torch.zeros(())


def subtract_from(find: Find, input: Any, other: Any) -> Described | None:  # noqa: A002
    """``other - input``, which Python asks of a parameter on the right of a number."""
    return subtract(find, other, input)


def multiply(find: Find, input: Any, other: Any) -> Described | None:  # noqa: A002
    """``x * parameter``, as for scales of layers."""
    left, right = find(input), find(other)
    if (left is None) == (right is None):
        return None
    found, rest = (right, input) if left is None else (left, other)
    assert found is not None
    factor = rest if isinstance(rest, Tensor) else torch.as_tensor(rest, dtype=found.twin.dtype)
    return Broadcast(slot_of(found, _same), None, _same), factor


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

    return Broadcast(None, slot_of(find(chosen), _same), part), torch.zeros(())


RULES: Mapping[Any, Rule] = {
    functional.linear: linear,
    functional.conv1d: convolution(1),
    functional.conv2d: convolution(2),
    functional.conv3d: convolution(3),
    functional.conv_transpose1d: transposed_convolution(1),
    functional.conv_transpose2d: transposed_convolution(2),
    functional.conv_transpose3d: transposed_convolution(3),
    functional.bilinear: bilinear,
    functional.instance_norm: instance_norm,
    torch.prelu: prelu,
    torch.einsum: einsum,
    functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    functional.rms_norm: rms_norm,
    functional.group_norm: group_norm,
    functional.batch_norm: batch_norm,
    functional.embedding: embedding,
    torch.matmul: matmul,
    torch.mm: matmul,
    torch.bmm: matmul,
    torch.mv: matmul,
    Tensor.matmul: matmul,
    Tensor.mm: matmul,
    Tensor.bmm: matmul,
    Tensor.mv: matmul,
    Tensor.__matmul__: matmul,
    torch.addmm: addmm,
    torch.add: add,
    Tensor.add: add,
    Tensor.__add__: add,
    Tensor.__radd__: add,
    Tensor.add_: add_in_place,
    Tensor.__iadd__: add_in_place,
    torch.sub: subtract,
    Tensor.sub: subtract,
    Tensor.__sub__: subtract,
    Tensor.__rsub__: subtract_from,
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
        Tensor.narrow,
        Tensor.select,
        Tensor.movedim,
        Tensor.swapaxes,
        Tensor.unflatten,
        Tensor.contiguous,
        torch.split,
        torch.chunk,
        torch.unbind,
        torch.narrow,
        torch.select,
        torch.movedim,
        torch.permute,
        torch.reshape,
        torch.flatten,
        torch.squeeze,
        torch.t,
        torch.transpose,
        torch.unsqueeze,
    }
)
"""Functions that only look at their first argument in another way."""

"""Change a network's parameters without changing what it computes, and make sure of that.

All functions take a private copy, and those that do not say "in place" give another one; the user's
module is never touched.
"""

import copy
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit.problem.problem import as_arguments, as_outputs, copy_without_hooks
from afterfit.sharpness.symmetry import Part, Symmetry, epsilon_of
from afterfit.typing import Inputs


def private_copy(module: nn.Module) -> nn.Module:
    """Copy a network without its user's hooks, in eval mode and in float64."""
    return copy_without_hooks(module).eval().double()


def evaluate(network: nn.Module, inputs: Inputs) -> Tensor:
    """Outputs of a private copy."""
    arguments, keywords = as_arguments(inputs)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return as_outputs(network(*arguments, **keywords))


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def scale_units(network: nn.Module, symmetry: Symmetry, factors: Float[Tensor, " n"]) -> nn.Module:
    """Multiply what each unit owns by its factor, to the exponent of each part.

    Variances of normalizations are scaled together with their ε: ``v' = a² (v + ε) - ε``, so that
    the function is the same whatever ε is.
    """
    changed = copy.deepcopy(network)
    scale_in_place(changed, symmetry, factors)
    return changed


def scale_in_place(network: nn.Module, symmetry: Symmetry, factors: Float[Tensor, " n"]) -> None:
    """Scale units in place."""
    tensors = tensors_of(network)
    with torch.no_grad():
        for part in symmetry.parts:
            value = tensors[part.name]
            powers = factors.to(value.device, value.dtype).pow(part.exponent)
            shift = _variance_shift(network, part.name)
            view = _units_of(value, part, symmetry.size)
            view.copy_((view + shift) * _along(powers, part, view) - shift)


def permute_in_place(network: nn.Module, symmetry: Symmetry, order: Int[Tensor, " n"]) -> None:
    """Put what unit ``order[u]`` owns in the place of unit u, in every part."""
    tensors = tensors_of(network)
    with torch.no_grad():
        for part in symmetry.parts:
            if part.axis is not None:
                view = _units_of(tensors[part.name], part, symmetry.size)
                apart = view.unflatten(part.axis, (symmetry.size, part.repeat))
                moved = apart.index_select(part.axis, order.to(view.device))
                view.copy_(moved.flatten(part.axis, part.axis + 1))


def mix_in_place(network: nn.Module, symmetry: Symmetry, matrix: Float[Tensor, "n n"]) -> None:
    """Replace units by linear combinations of them, and undo it in the parts with exponent -1.

    It preserves the function where everything between is linear, as between queries and keys. No
    diagonal rescaling does this, and connectivity is not invariant to it.

    Raises
    ------
    ValueError
        If a part is scaled as a whole.
    """
    tensors = tensors_of(network)
    with torch.no_grad():
        for part in symmetry.parts:
            if part.axis is None:
                message = f"{part.name} is scaled as a whole, expected units that can be mixed"
                raise ValueError(message)
            view = _units_of(tensors[part.name], part, symmetry.size)
            mixer = matrix if part.exponent > 0 else torch.linalg.inv(matrix).mT
            apart = view.unflatten(part.axis, (symmetry.size, part.repeat))
            first = apart.movedim(part.axis, 0)
            mixed = (mixer.to(view) @ first.flatten(1)).view_as(first).movedim(0, part.axis)
            view.copy_(mixed.flatten(part.axis, part.axis + 1))


@contextmanager
def lent(network: nn.Module, names: Collection[str]) -> Iterator[nn.Module]:
    """Let some tensors of a private copy be changed in place, and put them back afterwards."""
    tensors = tensors_of(network)
    kept = {name: tensors[name].detach().clone() for name in names}
    try:
        yield network
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                tensors[name].copy_(value)


def _units_of(value: Tensor, part: Part, size: int) -> Tensor:
    """View of the entries that belong to the units."""
    if part.axis is None:
        return value
    there = part.entries(size)
    return value.narrow(part.axis, there.start, there.stop - there.start)


def _along(powers: Tensor, part: Part, view: Tensor) -> Tensor:
    if part.axis is None:
        return powers.reshape(())  # one factor, of any tensor
    shape = [1] * view.ndim
    shape[part.axis] = -1
    return powers.repeat_interleave(part.repeat).view(shape)


def _variance_shift(network: nn.Module, name: str) -> float:
    """The ε that is added to a running variance."""
    owner, _, last = name.rpartition(".")
    if last != "running_var":
        return 0.0
    part = network.get_submodule(owner)
    attribute = epsilon_of(part)
    return float(getattr(part, attribute)) if attribute else 0.0


# The ε of normalizations by the statistics of the sample itself --------------------------------


def fold_epsilon(network: nn.Module) -> nn.Module:
    """Copy a network whose running variances have taken over the ε that was added to them.

    An exact rescaling by a small factor a leaves a variance ``a² (v + ε) - ε`` below 0, of which
    nothing but the sum with ε is a variance: neither may change without the other.
    """
    changed = copy.deepcopy(network)
    for part in changed.modules():
        attribute = epsilon_of(part)
        if attribute is not None and _has_statistics(part):
            with torch.no_grad():
                part.get_buffer("running_var").add_(float(getattr(part, attribute)))
            setattr(part, attribute, 0.0)
    return changed


def without_epsilon(network: nn.Module) -> nn.Module:
    """Copy a network with the ε of all its normalizations 0, as invariances are stated.

    Running variances take it over; where samples are normalized by their own it is left out.
    """
    changed = fold_epsilon(network)
    for part in changed.modules():
        attribute = epsilon_of(part)
        if attribute is not None:
            setattr(part, attribute, 0.0)
    return changed


def measures_samples(network: nn.Module) -> bool:
    """Whether a layer normalizes by the statistics of the sample itself, with an ε of its own."""
    return any(epsilon_of(part) and not _has_statistics(part) for part in network.modules())


def adapt_epsilon(before: nn.Module, after: nn.Module, inputs: Inputs) -> nn.Module:
    """Scale the ε of LayerNorm and its kin with the square of the factor of their inputs.

    A layer whose input was multiplied by a gives the same output where its ε is multiplied by a².
    The factors are those between two networks without ε. A network without such layers is given
    back as it is.
    """
    if not measures_samples(after):
        return after
    first, second = (_input_sizes(without_epsilon(net), inputs) for net in (before, after))
    changed = copy.deepcopy(after)
    for name, part in changed.named_modules():
        attribute = epsilon_of(part)
        scaled = name in first and name in second and first[name] > 0
        if attribute is None or not scaled or _has_statistics(part):
            continue
        ratio = (second[name] / first[name]) ** 2
        if abs(ratio - 1) > 1e-12:
            now = getattr(part, attribute)
            value = torch.finfo(torch.float64).eps if now is None else now
            setattr(part, attribute, value * ratio)
    return changed


def _has_statistics(part: nn.Module) -> bool:
    return any(name == "running_var" for name, _ in part.named_buffers(recurse=False))


def _input_sizes(network: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Root mean square of what enters each normalization layer."""
    sizes: dict[str, float] = {}

    def record(name: str, arguments: tuple[object, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            sizes[name] = float(arguments[0].detach().square().mean().sqrt())

    for name, part in network.named_modules():
        if epsilon_of(part) is not None:
            part.register_forward_pre_hook(lambda _, arguments, name=name: record(name, arguments))
    evaluate(network, inputs)
    return sizes


# Making sure ------------------------------------------------------------------------------------


def change_of_outputs(before: nn.Module, after: nn.Module, inputs: Inputs) -> float:
    """Largest change of an output, relative to the largest output; infinite where not finite."""
    return relative_change(evaluate(before, inputs), evaluate(after, inputs))


def relative_change(here: Tensor, there: Tensor) -> float:
    """Largest change of an entry, relative to the largest entry; infinite where not finite."""
    change = float((here - there).abs().max() / here.abs().max().clamp_min(1e-300))
    return change if math.isfinite(change) else math.inf


def verify(before: nn.Module, after: nn.Module, inputs: Inputs, tolerance: float = 1e-8) -> float:
    """Make sure that two networks compute the same function on these inputs.

    Returns
    -------
    float
        Largest change of an output, relative to the largest output.

    Raises
    ------
    ValueError
        If it is above the tolerance: what was done to the network is no symmetry.
    """
    change = change_of_outputs(before, after, inputs)
    if not change <= tolerance:
        message = (
            f"the outputs changed by {change:.3g} of the largest, expected at most {tolerance:g}: "
            "this change of parameters does not preserve the function. Weights before a BatchNorm "
            "must be scaled together with its running statistics; the head cannot be scaled"
        )
        raise ValueError(message)
    return change

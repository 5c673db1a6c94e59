"""A typed door to torch.func that is safe for attention.

Fused attention has no forward-mode derivative and no second reverse-mode one, and the fast path of
``nn.TransformerEncoderLayer`` has the same defect. Every derivative of the library is taken inside
:func:`differentiable_attention`, which chooses the plain kernels and puts the settings back.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterfit.problem.opened import ForwardMode
from afterfit.typing import Params

T = TypeVar("T")

ScalarOfParams = Callable[..., Tensor]

Pull = Callable[[Tensor], tuple[dict[str, Tensor]]]
"""Takes a cotangent of the outputs back to the parameters."""


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Use attention kernels that can be differentiated twice and forward, then restore."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def quiet_loops() -> Iterator[None]:
    """Say nothing where torch loops over rows for a layer (``nn.Bilinear``): slower, and right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def jvp(function: Callable[[Params], Tensor], at: Params, along: Params) -> tuple[Tensor, Tensor]:
    """Value of ``function`` at a point, and its derivative along a direction."""

    def forward() -> tuple[Tensor, Tensor]:
        value, tangent = torch.func.jvp(function, (dict(at),), (dict(along),))[:2]
        return cast(Tensor, value), cast(Tensor, tangent)

    with differentiable_attention():
        return _first_possible(forward, lambda: _twice_reverse(function, at, along)[:2])


def gradient(function: ScalarOfParams, at: Params, *arguments: Any) -> dict[str, Tensor]:
    """Gradient of a scalar function with respect to its first argument, a dict of tensors."""
    with differentiable_attention():
        return cast(dict[str, Tensor], torch.func.grad(function)(dict(at), *arguments))


def output_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a scalar function of one tensor."""
    return cast(Tensor, torch.func.grad(function)(at))


def hessian_product(
    function: Callable[[Params], Tensor], at: Params, along: Params
) -> dict[str, Tensor]:
    """Hessian of a scalar function times a direction, forward over reverse where that exists."""

    def forward() -> dict[str, Tensor]:
        derivative = torch.func.jvp(torch.func.grad(function), (dict(at),), (dict(along),))[1]
        return cast(dict[str, Tensor], derivative)

    def slope(params: Params) -> Tensor:
        gradients = cast(dict[str, Tensor], torch.func.grad(function)(params))
        return torch.stack([(g * along[name]).sum() for name, g in gradients.items()]).sum()

    with differentiable_attention():
        return _first_possible(forward, lambda: torch.func.grad(slope)(dict(at)))


def batched_gradients(
    function: ScalarOfParams, at: Params, arguments: tuple[Any, ...]
) -> dict[str, Tensor]:
    """Gradient for each row of ``arguments``: every tensor of the result has a leading axis."""
    in_dims = (None, *(0 for _ in arguments))
    with differentiable_attention(), quiet_loops():
        per_row = torch.func.vmap(torch.func.grad(function), in_dims=in_dims, randomness="error")
        return cast(dict[str, Tensor], per_row(dict(at), *arguments))


def batched_jacobians(
    function: ScalarOfParams, at: Params, arguments: tuple[Any, ...]
) -> dict[str, Tensor]:
    """Jacobian for each row of ``arguments``: tensors (rows, outputs, *shape of the parameter)."""
    in_dims = (None, *(0 for _ in arguments))
    with differentiable_attention(), quiet_loops():
        per_row = torch.func.vmap(torch.func.jacrev(function), in_dims=in_dims, randomness="error")
        return cast(dict[str, Tensor], per_row(dict(at), *arguments))


def jacobian(function: Callable[[Params], Tensor], at: Params) -> dict[str, Tensor]:
    """Jacobian of a vector of outputs, one backward pass for each: no rule to map is needed."""
    leaves = {name: p.clone().requires_grad_() for name, p in at.items()}
    with differentiable_attention(), torch.enable_grad():
        value = function(leaves)
        rows = [
            torch.autograd.grad(
                output, tuple(leaves.values()), retain_graph=True, materialize_grads=True
            )
            for output in value
        ]
    return {
        name: torch.stack(part) for name, part in zip(leaves, zip(*rows, strict=True), strict=True)
    }


Middle = Callable[[Tensor, Tensor], Tensor]
"""Takes a value and its tangent, and gives the cotangent that is pulled back."""


def sandwich(
    function: Callable[[Params], Tensor], at: Params, along: Params, middle: Middle
) -> dict[str, Tensor]:
    """``Jᵀ middle(f, J v)``: one forward pass with its tangent, one backward pass.

    Where a function of the network has no forward-mode derivative, ``J v`` is the derivative of
    ``u ↦ Jᵀ u``, which is linear: one more backward pass.
    """

    def lifted(params: Params) -> tuple[Tensor, Tensor]:
        value, tangent = torch.func.jvp(function, (params,), (dict(along),))[:2]
        return cast(Tensor, value), cast(Tensor, tangent)

    def forward() -> dict[str, Tensor]:
        value, pull, tangent = cast(
            tuple[Tensor, Pull, Tensor], torch.func.vjp(lifted, dict(at), has_aux=True)
        )
        return pull(middle(value, tangent))[0]

    def reverse() -> dict[str, Tensor]:
        value, tangent, pull = _twice_reverse(function, at, along)
        return pull(middle(value, tangent))[0]

    with differentiable_attention():
        return _first_possible(forward, reverse)


def _first_possible(forward: Callable[[], T], reverse: Callable[[], T]) -> T:
    """Compute by forward mode, by functions that have one, or by reverse mode alone."""
    try:
        return forward()
    except NotImplementedError:
        pass
    try:
        with ForwardMode():
            return forward()
    except NotImplementedError:
        return reverse()


def _twice_reverse(
    function: Callable[[Params], Tensor], at: Params, along: Params
) -> tuple[Tensor, Tensor, Pull]:
    """Value, derivative along a direction, and what pulls back, without forward mode."""
    value, pull = cast(tuple[Tensor, Pull], torch.func.vjp(function, dict(at)))
    turn = cast(Callable[[Any], Any], torch.func.vjp(lambda u: pull(u)[0], value.detach() * 0)[1])
    return value, cast(Tensor, turn(dict(along))[0]), pull


def over_columns(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Map a function of vectors over the columns of a matrix."""
    mapped = cast(Callable[[Tensor], Tensor], torch.func.vmap(function, in_dims=1, out_dims=1))

    def quiet(columns: Tensor) -> Tensor:
        with quiet_loops():
            return mapped(columns)

    return quiet


def over_samples(function: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function over a leading axis of all that it takes, recording for derivatives."""
    mapped = torch.func.vmap(function, randomness="error")

    def recorded(*arguments: Any) -> Any:
        with differentiable_attention(), torch.enable_grad(), quiet_loops():
            return mapped(*arguments)

    return recorded

"""The triple that everything works on: a network, a per-sample loss, and where training ended."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from afterfit.problem.coordinates import Coordinates, Forward
from afterfit.problem.likelihood import Likelihood, PerSample
from afterfit.typing import Inputs, Params

_COMPUTE_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks that are part of the network: without them its parameters would not reach its weights."""


@final
class _Turns:
    """A lock of one network, which starts anew in another process."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __reduce__(self) -> tuple[type["_Turns"], tuple[()]]:
        return _Turns, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@final
@dataclass(frozen=True)
class Problem:
    """What was trained, and where we stand.

    Attributes
    ----------
    forward
        ``forward(params, inputs)`` gives outputs (B, C) as the network gives them when it is used:
        dropout off, normalization by its stored statistics. ``params`` may hold any part of the
        parameters and buffers; what it leaves out is that of the trained network.
    likelihood
        Turns outputs and targets into one loss a sample, in nats.
    params
        The trained parameters, detached copies: the point at which everything is computed. The
        networks behind both forwards hold the same storage: they are never written to.
    buffers
        Their companions, such as the running statistics of normalization layers.
    train_forward
        The same network as it is trained, all of its parts in train mode: dropout on, batch
        statistics, and the buffers that are passed in ``params`` updated in place.
    normalizations, lookups
        Names of the normalization layers, and of the tables that embed indices.
    coordinates
        How `params` reach the layers of the network; None where there is no such network, as after
        ``linearize``.
    """

    forward: Forward
    likelihood: Likelihood
    params: Params
    buffers: Params
    train_forward: Forward
    normalizations: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    coordinates: Coordinates | None = None

    @classmethod
    def from_module(
        cls, module: nn.Module, likelihood: Likelihood | Callable[[Tensor, Tensor], Tensor]
    ) -> "Problem":
        """Copy a trained module; the module itself is never touched again.

        Parameters
        ----------
        module
            The trained network. It may take a tensor, a tuple of tensors or (from batches that are
            dicts) keyword arguments, and return a tensor or an object with ``logits``.
        likelihood
            One of the likelihoods, or a function ``loss(outputs, y)`` giving one number a sample.

        Raises
        ------
        ValueError
            If the loss is reduced over the batch, or a parameter is NaN or infinite.
        TypeError
            If ``module`` is not an ``nn.Module``.
        """
        if not isinstance(module, nn.Module):
            message = f"expected a torch.nn.Module, got {type(module).__name__}"
            raise TypeError(message)
        _require_initialized(module)
        evaluating = copy_without_hooks(module).eval()
        params = {name: p.detach() for name, p in evaluating.named_parameters()}
        if not params:
            message = f"the module {type(module).__name__} has no parameters, expected a network"
            raise ValueError(message)
        _require_finite(params)
        buffers = {name: b.detach() for name, b in evaluating.named_buffers()}
        training = _sharing_copy(evaluating).train()
        for network in (evaluating, training):
            network.requires_grad_(requires_grad=False)
        forward = _call(evaluating)
        return cls(
            forward=forward,
            likelihood=_as_likelihood(likelihood),
            params=params,
            buffers=buffers,
            train_forward=_call(training),
            normalizations=tuple(
                name for name, part in module.named_modules() if "Norm" in type(part).__name__
            ),
            lookups=tuple(
                name
                for name, part in module.named_modules()
                if isinstance(part, (nn.Embedding, nn.EmbeddingBag))
            ),
            coordinates=Coordinates(forward, dict, {}),
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(iter(self.params.values())).dtype

    @property
    def num_params(self) -> int:
        """Number of parameters P."""
        return sum(p.numel() for p in self.params.values())

    @property
    def num_frozen(self) -> int:
        """Number of coordinates that move nothing: those of parameters whose scale is zero."""
        scale = {} if self.coordinates is None else self.coordinates.scale
        return sum(int((scale[name] == 0).sum()) for name in self.params if name in scale)


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """Copy a module without the hooks that the user put on it, which are not ours to run."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf  # deepcopy refuses these
    }
    copied = copy.deepcopy(module, computed)
    for part in copied.modules():
        for hooks in (getattr(part, kind) for kind in kinds):
            for key in [k for k, hook in hooks.items() if not isinstance(hook, _COMPUTE_WEIGHTS)]:
                del hooks[key]
    return copied


def _sharing_copy(module: nn.Module) -> nn.Module:
    """Copy the structure of a private module, and share its parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def _call(network: nn.Module) -> Forward:
    """Bind a private network into a pure function of parameters and inputs.

    One call at a time: it lends the network its parameters, and two threads would mix theirs.
    Buffers that the caller leaves out are lent as clones: whatever a call in train mode writes into
    them is forgotten, so that the next call starts from the trained network again.
    """
    buffers = dict(network.named_buffers()) if network.training else {}
    known, turns = _all_names(network), _Turns()

    def forward(params: Params, inputs: Inputs) -> Tensor:
        _require_known(params, known)
        lent = {name: b.clone() for name, b in buffers.items() if name not in params}
        arguments, keywords = as_arguments(inputs)
        tensors = {**lent, **params}
        with turns:
            returned = torch.func.functional_call(network, tensors, arguments, keywords)
        return as_outputs(returned)

    return forward


def _all_names(network: nn.Module) -> frozenset[str]:
    """Names of parameters and buffers, those of tied ones included."""
    parameters = network.named_parameters(remove_duplicate=False)
    buffers = network.named_buffers(remove_duplicate=False)
    return frozenset(name for name, _ in (*parameters, *buffers))


def _require_known(params: Params, known: frozenset[str]) -> None:
    if not known.issuperset(params):
        unknown = sorted(set(params) - known)
        message = (
            f"the network has no parameters or buffers {unknown[:3]}; its names are "
            f"{sorted(known)[:8]} …"
        )
        raise ValueError(message)


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Say how a network is called with these inputs: by position and by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple):
        return inputs, {}
    return (inputs,), {}


def as_outputs(returned: Any) -> Tensor:
    """Find the tensor of outputs in what the network returned."""
    if isinstance(returned, Tensor):
        return returned
    named = returned if isinstance(returned, Mapping) else {}
    logits = named.get("logits", getattr(returned, "logits", None))
    if isinstance(logits, Tensor):
        return logits
    message = (
        f"the network returned a {type(returned).__name__}, expected a tensor of outputs or an "
        "object with 'logits'; wrap the module so that its forward returns the outputs"
    )
    raise TypeError(message)


def _as_likelihood(given: Likelihood | Callable[[Tensor, Tensor], Tensor]) -> Likelihood:
    if isinstance(given, type):
        message = (
            f"the likelihood is the class {given.__name__}, expected an object: pass "
            f"{given.__name__}()"
        )
        raise TypeError(message)
    if isinstance(given, Likelihood):
        return given
    if isinstance(given, nn.Module):
        _require_unreduced(given)
    if callable(given):
        return PerSample(given)
    message = (
        f"expected a likelihood such as Categorical() or a function loss(outputs, y), got "
        f"{type(given).__name__}; a likelihood of your own inherits afterfit.problem.Likelihood"
    )
    raise TypeError(message)


def _require_unreduced(loss: nn.Module) -> None:
    reduction = getattr(loss, "reduction", "none")
    if reduction != "none":
        message = (
            f"{type(loss).__name__} has reduction='{reduction}', expected one loss a sample: pass "
            f"{type(loss).__name__}(reduction='none'), or a likelihood such as Categorical()"
        )
        raise ValueError(message)


def _require_initialized(module: nn.Module) -> None:
    named = (*module.named_parameters(), *module.named_buffers())
    lazy = [name for name, value in named if is_lazy(value)]
    if lazy:
        message = (
            f"parameters {lazy[:3]} have no shape yet (the module is lazy), expected a trained "
            "network; run it on one batch and train it first"
        )
        raise ValueError(message)


def _require_finite(params: Params) -> None:
    broken = [name for name, p in params.items() if not bool(torch.isfinite(p).all())]
    if broken:
        message = (
            f"parameters {broken[:3]} hold NaN or infinite values, expected a trained network; "
            "load an earlier checkpoint"
        )
        raise ValueError(message)


def move(value: Any, device: torch.device) -> Any:
    """Put tensors, and tuples, lists and dicts of them, onto a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        make = getattr(type(value), "_make", type(value))  # a named tuple is made by its _make
        return make(move(item, device) for item in value)
    return value

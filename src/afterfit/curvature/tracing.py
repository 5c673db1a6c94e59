"""Run a network, see every call of a layer, and get the gradient at each of their outputs.

Every sample runs through ``vmap`` as a batch of one, so that there is no doubt which axis of an
activation belongs to the samples, however a network folds and turns its axes. To the output of each
call a probe of zeros is added, which comes in with an axis of samples: the derivative in it is the
gradient at that output, sample by sample. Networks that cannot be mapped run one sample at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from afterfit.curvature.layers import Call
from afterfit.curvature.places import Place
from afterfit.curvature.rules import RULES, VIEWS
from afterfit.problem._autodiff import differentiable_attention, over_samples, quiet_loops
from afterfit.problem.coordinates import Forward
from afterfit.problem.data import Batch, Batches
from afterfit.problem.mappable import Mappable
from afterfit.problem.opened import OPENED
from afterfit.problem.persample import has_leading_axis
from afterfit.problem.problem import Problem, move
from afterfit.typing import Inputs

_ENTRIES_KEPT = 2**26
"""Entries of prepared activations, such as the patches of convolutions, that a run may hold."""

_SMALL = 2**19
"""Entries of the gradients at the outputs of layers up to which several columns go together."""

Shapes = list[tuple[torch.Size, torch.dtype]]

Probe = Callable[[int, Tensor], Tensor]
"""What is added to the output of a call, from its position in the run and that output."""


@final
class Watch(TorchFunctionMode):
    """Sees all functions of torch that are called with parameters of the problem.

    Attributes
    ----------
    calls, activations, shapes
        The calls of layers in order, what they need of their inputs, and the shapes of their
        outputs.
    uncovered
        Names of parameters that met a function without a rule, and the name of that function.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], names: Sequence[str], probe: Probe | None
    ) -> None:
        TorchFunctionMode.__init__(self)
        self._places: dict[int, Place] = {}
        self._alive: list[Tensor] = []
        self._probe = probe
        self.calls: list[Call] = []
        self.activations: list[Tensor] = []
        self.shapes: Shapes = []
        self.uncovered: dict[str, str] = {}
        offset = 0
        for name in names:
            weight = weights[name]
            twin = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
            self._keep(weight, Place(name, offset, weight.numel(), twin))
            offset += weight.numel()

    def _keep(self, tensor: Tensor, place: Place) -> None:
        self._places[id(tensor)] = place
        self._alive.append(tensor)

    def _find(self, value: Any) -> Place | None:
        return self._places.get(id(value))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and note it if it is a layer with parameters of the problem."""
        kwargs = kwargs or {}
        leaves = [*args, *kwargs.values()]
        places = [p for leaf in leaves for p in self._within(leaf)]
        if not places:
            return func(*args, **kwargs)
        if func in OPENED and OPENED[func].fits(*args, **kwargs):
            with self:
                return OPENED[func].run(*args, **kwargs)
        if func in VIEWS and self._find(args[0]) is not None:
            return self._view(func, args, kwargs)
        out = func(*args, **kwargs)
        found = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not any(leaf.numel() for leaf in found):
            return out  # a shape, a type, …; or an expert that no row asks
        described = RULES[func](self._find, *args, **kwargs) if func in RULES else None
        if described is None or len(described[0].slots) != len(places):
            self.uncovered.update({place.name: _name_of(func) for place in places})
            return out
        return self._note(*described, out, in_place=out is args[0])

    def _within(self, leaf: Any) -> Iterator[Place]:
        for item in leaf if isinstance(leaf, (tuple, list)) else (leaf,):
            place = self._find(item)
            if place is not None:
                yield place

    def _view(self, func: Any, args: Any, kwargs: Any) -> Any:
        place = self._places[id(args[0])]
        out, seen = func(*args, **kwargs), func(place.twin, *args[1:], **kwargs)
        for part, twin in zip(tree_leaves(out), tree_leaves(seen), strict=True):
            if twin is not place.twin and not twin._is_view():
                self.uncovered[place.name] = _name_of(func)
            self._keep(part, replace(place, twin=twin))
        return out

    def _note(self, call: Call, activation: Tensor, out: Tensor, in_place: bool) -> Tensor:
        for slot in call.slots:
            if any(s == 0 and n > 1 for s, n in zip(slot.stride, slot.size, strict=True)):
                self.uncovered[slot.name] = "expand"
        self.calls.append(call)
        self.activations.append(activation)
        self.shapes.append((out.shape, out.dtype))
        if self._probe is None:
            return out
        probe = self._probe(len(self.calls) - 1, out)
        return out.add_(probe) if in_place else out + probe


def _name_of(func: Any) -> str:
    return getattr(func, "__name__", str(func))


@final
@dataclass(frozen=True)
class Trace:
    """One run of some samples.

    Attributes
    ----------
    outputs
        Of the network, (B, C).
    calls
        Of layers.
    activations
        What each call needs of its inputs, (B, …).
    """

    outputs: Tensor
    calls: tuple[Call, ...]
    activations: tuple[Tensor, ...]
    probes: tuple[Tensor, ...]
    _columns: Mappable = field(default_factory=Mappable)
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False)

    def entered(self, i: int) -> Tensor:
        """Prepared activations of one call, kept for the next column where they are small."""
        if i in self._kept:
            return self._kept[i]
        prepared = self.calls[i].prepare(self.activations[i])
        taken = sum(other.numel() for other in self._kept.values())
        if taken + prepared.numel() <= _ENTRIES_KEPT:
            self._kept[i] = prepared
        return prepared

    def pull(self, cotangents: Tensor) -> tuple[Tensor, ...]:
        """Gradients of ``(cotangents[k] * outputs).sum()`` at the output of each call, (K, B, …).

        In memory the samples come first. All at once where the backward pass is small (for larger
        ones a call is no overhead, and caches matter) and can be mapped.
        """
        small = sum(probe.numel() for probe in self.probes) <= _SMALL
        with differentiable_attention(), quiet_loops():
            if small and len(cotangents) > 1:
                return self._columns.either(
                    lambda: self._pulled(cotangents, several=True),
                    lambda: self._one_by_one(cotangents),
                )
            return self._one_by_one(cotangents)

    def _one_by_one(self, cotangents: Tensor) -> tuple[Tensor, ...]:
        each = [self._pulled(cotangent, several=False) for cotangent in cotangents]
        return tuple(torch.stack(parts, dim=1).movedim(1, 0) for parts in zip(*each, strict=True))

    def _pulled(self, cotangents: Tensor, several: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self.outputs,
            self.probes,
            cotangents,
            retain_graph=True,
            materialize_grads=True,
            is_grads_batched=several,
        )


@final
@dataclass(frozen=True)
class Tracer:
    """Runs of the network behind a problem.

    Attributes
    ----------
    weights
        The parameters of the network where the problem stands.
    names
        Those that belong to the problem, in its order.
    uncovered
        Those that are used in a way that no rule describes, and the function that used them.
    """

    network: Forward
    weights: Mapping[str, Tensor]
    names: tuple[str, ...]
    device: torch.device
    uncovered: Mapping[str, str]
    _shapes: dict[Any, Shapes] = field(default_factory=dict)
    _samples: Mappable = field(default_factory=Mappable)
    _columns: Mappable = field(default_factory=Mappable)

    @classmethod
    def of(cls, problem: Problem, data: Batches) -> "Tracer":
        """Look at one run of the first sample.

        Raises
        ------
        ValueError
            If the problem has lost its layers by ``linearize``.
        """
        coordinates = problem.coordinates
        if coordinates is None:
            message = (
                "the layers of this problem cannot be seen (it was linearized, or built without "
                "coordinates); pass the problem as it was before linearize: its Jacobian at the "
                "trained parameters is the same"
            )
            raise ValueError(message)
        weights, names = coordinates.weights(problem.params), tuple(problem.params)
        blind = cls(coordinates.network, weights, names, problem.device, {})
        first = move(data.fetch(torch.arange(1)).inputs, problem.device)
        with torch.no_grad():
            _, watch = blind._run(first, None)
        return replace(blind, uncovered=watch.uncovered, _shapes={_key(first): watch.shapes})

    def traces(self, batch: Batch) -> Iterator[tuple[Tensor, Trace]]:
        """Run a batch: positions within it and what was seen, at once or one sample at a time."""
        inputs, size = move(batch.inputs, self.device), len(batch.index)
        everything = torch.arange(size)
        mapped = None
        if has_leading_axis(inputs, size):
            mapped = self._samples.attempt(lambda: self._mapped(inputs, size))
        if mapped is not None:
            yield everything, mapped
            return
        for i in everything.split(1):
            one = inputs if size == 1 else tree_map(lambda leaf, i=i: leaf[i], inputs)
            alone = self._alone(one)
            self._samples.worked_alone()
            yield i, alone

    def _mapped(self, inputs: Inputs, size: int) -> Trace:
        calls: list[Call] = []

        def one(sample: Inputs, probes: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            single = tree_map(lambda leaf: leaf[None], sample)
            outputs, watch = self._run(single, lambda i, _: probes[i])
            calls[:] = watch.calls
            return outputs[0], tuple(watch.activations)

        first = tree_map(lambda leaf: leaf[:1], inputs)
        probes = self._probes(first, size)
        outputs, activations = over_samples(one)(inputs, probes)
        seen = tuple(activation.detach() for activation in activations)
        return Trace(outputs, tuple(calls), seen, probes, self._columns)

    def _alone(self, inputs: Inputs) -> Trace:
        """Run one sample, which may take calls that no other does: probes are made as it goes."""
        probes: list[Tensor] = []

        def probe(_: int, out: Tensor) -> Tensor:
            probes.append(self._zeros(1, out.shape, out.dtype))
            return probes[-1][0]

        with torch.enable_grad():
            outputs, watch = self._run(inputs, probe)
        activations = tuple(activation.detach()[None] for activation in watch.activations)
        return Trace(outputs, tuple(watch.calls), activations, tuple(probes), self._columns)

    def _probes(self, first: Inputs, size: int) -> tuple[Tensor, ...]:
        """Zeros for the output of each call, with an axis of samples, that take no memory."""
        key = _key(first)
        if key not in self._shapes:
            with torch.no_grad():
                self._shapes[key] = self._run(first, None)[1].shapes
        return tuple(self._zeros(size, shape, dtype) for shape, dtype in self._shapes[key])

    def _zeros(self, size: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        zero = torch.zeros((), dtype=dtype, device=self.device)
        return zero.expand(size, *shape).requires_grad_()

    def _run(self, inputs: Inputs, probe: Probe | None) -> tuple[Tensor, Watch]:
        watch = Watch(self.weights, self.names, probe)
        with differentiable_attention(), watch:
            outputs = self.network(self.weights, inputs)
        new = [name for name in watch.uncovered if name not in self.uncovered]
        if new and probe is not None:
            message = (
                f"{new[0]} is used by {watch.uncovered[new[0]]} for some samples and not for the "
                "first, expected a function that has a rule, or to see it at the first sample; put "
                "one that uses it first, or leave it out with restrict(problem, ...)"
            )
            raise ValueError(message)
        return outputs, watch


def _key(inputs: Inputs) -> tuple[Any, ...]:
    """Shapes of the inputs, on which those of all layers depend."""
    return tuple(x.shape if isinstance(x, Tensor) else str(x) for x in tree_leaves(inputs))

"""The geometric ensemble: low-loss parameters that SGD reaches from the trained ones.

Kim, Kim and Yang 2023, "GEX: A flexible method for approximating influence via Geometric
Ensemble", NeurIPS; the sampler follows the authors' code, whose settings are :func:`reference`.
"""

import copyreg
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, singledispatch
from hashlib import blake2b
from itertools import count
from types import (
    CellType,
    CodeType,
    EllipsisType,
    FunctionType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, Literal, final
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from afterfit.problem.data import TrainingStream
from afterfit.problem.ensemble import Member, Store
from afterfit.problem.problem import Problem, move
from afterfit.problem.randomness import preserved_random_state
from afterfit.sampling.walk import (
    Rule,
    Schedule,
    Start,
    Step,
    Stop,
    stages_of,
    train_alone,
    train_together,
)
from afterfit.typing import Params

_RECALIBRATION_PASSES = 50
_WAYS = {"alone": train_alone, "together": train_together, "fastest": train_alone}


def cosine(step: int, steps: int) -> float:
    """Anneal from the peak to zero: ``(1 + cos(πt/T)) / 2``."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def warm_cosine(step: int, steps: int) -> float:
    """Rise linearly over the first quarter, then anneal to zero.

    A memorized network is in a sharp basin: the full rate at the first step throws it out of all
    structure, while a rising one lets it move to where that rate can be held.
    """
    rise = max(1, steps // 4)
    if step < rise:
        return (step + 1) / rise
    return cosine(step - rise, steps - rise)


def constant(step: int, steps: int) -> float:  # noqa: ARG001 (the signature of a schedule)
    """Stay at the peak."""
    return 1.0


def sgd(momentum: float = 0.9, weight_decay: float = 5e-4) -> Step:
    """Make plain SGD as the authors use it: no Nesterov, no dampening, L2 on every parameter."""

    def step(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            leaves, lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )

    return step


def adamw(weight_decay: float = 1.0) -> Step:
    """Make AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", ICLR).

    Its steps have the same length in every coordinate, those of rare rows of an embedding too.
    """

    def step(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        fused = all(leaf.device.type in ("cpu", "cuda") for leaf in leaves)  # one kernel a step
        return torch.optim.AdamW(leaves, learning_rate, weight_decay=weight_decay, fused=fused)

    return step


@final
@dataclass(frozen=True)
class GeometricEnsemble:
    """Members found by training on from the trained network, at a rate that unsettles it.

    Parameters
    ----------
    members
        How many, over all chains. The number matters little once the rate is right.
    steps
        SGD steps between one member and the next; ``None`` is two epochs.
    learning_rate
        Peak rate. With the batch size and the momentum it is the temperature of the ensemble: too
        cold and influence is the bilinear form again, too hot and it is noise.
    schedule
        :func:`warm_cosine`, :func:`cosine` (as published), :func:`constant`, or the user's own
        function of (step, steps).
    momentum, weight_decay
        Of plain SGD. The decay is an L2 pull on every parameter, as in training.
    step
        Makes the optimizer of a stage in place of SGD. Its state begins anew each stage.
    clip
        Largest norm of the gradient, or None. With it, a rate is a length of steps, and rates mean
        about the same on different networks.
    chains
        Independent walks from the trained network; with one, the members follow each other.
    restart
        ``"continue"`` from the chain's last member (as published) or from the ``"trained"`` one.
    batch_norm
        ``"kept"``: the running statistics that training leaves; ``"recalibrated"``: re-estimated
        by a pass in training mode at the member's parameters.
    way
        Chains are trained ``"alone"``, one after another, or ``"together"`` (stacked, by vmap),
        which may be faster for small networks. The two differ by rounding, which a long walk
        amplifies, and in what dropout draws. ``"fastest"`` is accepted and means ``"alone"``: no
        clock decides, so the seed alone says what the members are.
    seed
        Of the order of the data, the augmentation and dropout.

    References
    ----------
    Kim, Kim and Yang 2023, "GEX", NeurIPS, section 4.2. Huang et al. 2017, "Snapshot ensembles",
    for the restarted schedule. Izmailov et al. 2018 for the re-estimated statistics.
    """

    members: int = 8
    steps: int | None = None
    learning_rate: float = 0.8
    schedule: Schedule = warm_cosine
    momentum: float = 0.9
    weight_decay: float = 5e-4
    step: Step | None = None
    clip: float | None = 1.0
    chains: int = 1
    restart: Literal["continue", "trained"] = "continue"
    batch_norm: Literal["kept", "recalibrated"] = "kept"
    way: Literal["alone", "together", "fastest"] = "alone"
    seed: int = 0

    def __post_init__(self) -> None:
        steps = 1 if self.steps is None else self.steps
        counts = {"members": self.members, "chains": self.chains, "steps": steps}
        for name, number in counts.items():
            if number < 1:
                message = f"GeometricEnsemble: {name} is {number}, expected at least 1"
                raise ValueError(message)
        if not self.learning_rate > 0:
            message = f"GeometricEnsemble: learning_rate is {self.learning_rate}, expected above 0"
            raise ValueError(message)

    def rule(self, fit: TrainingStream) -> Rule:
        """How one stage is trained on this data."""
        steps = self.steps or 2 * max(1, round(fit.num_samples / fit.samples_per_step))
        step = self.step or sgd(self.momentum, self.weight_decay)
        return Rule(steps, self.learning_rate, self.schedule, step, self.clip)

    def order(self) -> list[tuple[int, int]]:
        """(chain, stage) of the members in the order in which they are made."""
        return [(i % self.chains, i // self.chains) for i in range(self.members)]

    def key(self) -> str:
        """What a member depends on; not how many there are, nor how they are computed."""
        made = {n: v for n, v in sorted(vars(self).items()) if n not in ("members", "way")}
        return f"{type(self).__name__} { {name: named(value) for name, value in made.items()} }"

    def describe(self, fit: TrainingStream) -> str:
        """Say in one line what will be made."""
        rule = self.rule(fit)
        epochs = rule.steps * fit.samples_per_step / fit.num_samples
        return (
            f"{self.members} members, {self.chains} chain(s), {rule.steps} steps ({epochs:.1f} "
            f"epochs) each at learning rate {self.learning_rate:g}"
        )

    def walk(
        self, problem: Problem, fit: TrainingStream, store: Store | None = None
    ) -> Iterator[Member]:
        """Yield the members one after another, stage by stage.

        With a store, members that are complete are read from it, and new ones are written as they
        are made, so that a run that was killed goes on where it was.

        Raises
        ------
        Diverged
            If training losses become NaN or infinite.
        """
        trained = {**problem.params, **problem.buffers}
        last: dict[int, Params] = dict.fromkeys(range(self.chains), trained)
        order = self.order()
        for first in range(0, len(order), self.chains):
            stage = order[first : first + self.chains]
            ready = [None if store is None else store.load(c, s, problem.device) for c, s in stage]
            missing = [key for key, member in zip(stage, ready, strict=True) if member is None]
            starts = [Start(last[c], self._seed_of(c, s)) for c, s in missing]
            rule = self.rule(fit)
            way = _WAYS[self.way]
            stops = stages_of(way, problem, starts, fit, rule) if missing else iter(())
            for (chain, number), found in zip(stage, ready, strict=True):
                member = found or self._member(problem, fit, chain, number, next(stops))
                if store is not None and found is None:
                    store.save(member)
                last[chain] = trained if self.restart == "trained" else member.params
                yield member

    def _member(
        self, problem: Problem, fit: TrainingStream, chain: int, stage: int, stop: Stop
    ) -> Member:
        params = stop.params
        if self.batch_norm == "recalibrated":
            params = recalibrated(problem, params, fit, self._seed_of(chain, stage) + 1)
        return Member(params, chain, stage, stop.seen)

    def _seed_of(self, chain: int, stage: int) -> int:
        return ((self.seed * 1_009 + chain) * 1_000_003 + stage * 2) % 2**63


def reference(seed: int = 0, chains: int = 8) -> GeometricEnsemble:
    """Settings of the authors' scripts: 32 members, 800 steps, rate 0.05, cosine.

    Eight chains are what their eight devices do; use batches of 128 to match (1,024 over eight).
    """
    return GeometricEnsemble(
        members=32,
        steps=800,
        learning_rate=0.05,
        schedule=cosine,
        clip=None,
        chains=chains,
        batch_norm="recalibrated",
        seed=seed,
    )


def recalibrated(problem: Problem, params: Params, fit: TrainingStream, seed: int) -> Params:
    """Re-estimate the statistics of normalization layers by 50 passes in training mode.

    As in the authors' code: the parameters stay, the layers' own moving averages are run.
    """
    if not problem.buffers:
        return params
    state = {name: value.clone() for name, value in params.items()}
    batches = fit.batches(seed)
    with torch.no_grad(), preserved_random_state(seed):
        for _ in range(_RECALIBRATION_PASSES):
            problem.train_forward(state, move(next(batches).inputs, problem.device))
    return state


def named(setting: Any) -> str:
    """Name a setting so that two of different effect have different names, in every process.

    A function is its code, defaults and closure, and what it reads of its module as far as that is
    numbers, texts, tensors or functions; a tensor is its bytes; any other object is its class, with
    its methods, and what pickle would keep of it. What torch, numpy and the standard library define
    goes by its place, and Python's global generator by its name.

    Raises
    ------
    TypeError
        If another process could not know it again: a lock, a running generator, an open file.
    """
    return _named(setting, {}, count())


def _named(setting: Any, seen: dict[int, int], numbers: Iterator[int]) -> str:
    """Its kind and its parts; what is met again within itself, or is long, by its number."""
    if id(setting) in seen:
        return f"#{seen[id(setting)]}"
    if type(setting) not in _PLAIN:
        seen[id(setting)] = next(numbers)
    parts = _parts(setting, lambda part: _named(part, seen, numbers))
    if not isinstance(setting, (FunctionType, type)):  # these live on, and their ids are theirs
        seen.pop(id(setting), None)
    return f"{type(setting).__name__}({', '.join(parts)})"


@singledispatch
def _parts(setting: Any, name: Callable[[Any], str]) -> list[str]:
    """Any object: its class, and its state as pickle takes it."""
    if setting is random.random.__self__:  # it is seeded anew for every batch
        return ["random"]
    try:
        reduce = copyreg.dispatch_table.get(type(setting), lambda known: known.__reduce_ex__(2))
        found = reduce(setting)
    except Exception as error:
        message = (
            f"a {type(setting).__module__}.{type(setting).__qualname__} stands in the settings of "
            f"a run with a folder ({error}), expected what another process can know again: "
            "functions, numbers, tensors, and objects that pickle can keep; make it inside the "
            "function that uses it, or run without a folder"
        )
        raise TypeError(message) from error
    if isinstance(found, str):  # as it is called in its module; a cache wraps a function
        wrapped = getattr(setting, "__wrapped__", None)
        return [f"{getattr(setting, '__module__', '')}.{found}", name(wrapped)]
    maker, *rest = found
    return [name(maker), *(name(list(p) if isinstance(p, Iterator) else p) for p in rest)]


def _plain(setting: Any, name: Callable[[Any], str]) -> list[str]:
    return [repr(setting)] if type(setting) in _PLAIN else _parts.dispatch(object)(setting, name)


_PLAIN = (int, float, complex, bool, str, NoneType, EllipsisType)
for _kind in _PLAIN:
    _parts.register(_kind, _plain)


@_parts.register(list)
@_parts.register(tuple)
@_parts.register(dict)
@_parts.register(set)
@_parts.register(frozenset)
def _(setting: Any, name: Callable[[Any], str]) -> list[str]:
    kind = type(setting)
    if kind not in (list, tuple, dict, set, frozenset):
        return _parts.dispatch(object)(setting, name)
    parts = [name(part) for part in (setting.items() if kind is dict else setting)]
    return sorted(parts) if kind in (set, frozenset) else parts


@_parts.register(bytes)
def _(setting: bytes, name: Callable[[Any], str]) -> list[str]:  # noqa: ARG001
    return [blake2b(setting, digest_size=12).hexdigest()]


@_parts.register(Tensor)
def _(setting: Tensor, name: Callable[[Any], str]) -> list[str]:
    if setting.layout is not torch.strided:
        return _parts.dispatch(object)(setting, name)
    values = setting.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    found = name(values.view(torch.uint8).numpy().tobytes())
    return [str(setting.dtype), str(tuple(setting.shape)), found]


@_parts.register(ref)
def _(setting: ref[Any], name: Callable[[Any], str]) -> list[str]:
    return [name(setting())]


@_parts.register(MethodType)
def _(setting: MethodType, name: Callable[[Any], str]) -> list[str]:
    return [name(setting.__self__), name(setting.__func__)]


@_parts.register(ModuleType)
def _(setting: ModuleType, name: Callable[[Any], str]) -> list[str]:  # noqa: ARG001
    return [setting.__name__]


@_parts.register(CodeType)
def _(setting: CodeType, name: Callable[[Any], str]) -> list[str]:
    counts = f"{setting.co_argcount} {setting.co_kwonlyargcount}"
    return [setting.co_code.hex(), str(setting.co_names), counts, *map(name, setting.co_consts)]


@_parts.register(CellType)
def _(setting: CellType, name: Callable[[Any], str]) -> list[str]:
    try:
        return [name(setting.cell_contents)]
    except ValueError:  # nothing is in it yet
        return []


@_parts.register(FunctionType)
def _(setting: FunctionType, name: Callable[[Any], str]) -> list[str]:
    if _is_known(setting):
        return [f"{setting.__module__}.{setting.__qualname__}"]
    around = {n: setting.__globals__[n] for n in _read(setting.__code__) & {*setting.__globals__}}
    state = (setting.__code__, setting.__defaults__, setting.__kwdefaults__, setting.__closure__)
    return [setting.__qualname__, *map(name, state), *_simple(around, name), name(vars(setting))]


@_parts.register(type)
def _(setting: type, name: Callable[[Any], str]) -> list[str]:
    parts = [f"{setting.__module__}.{setting.__qualname__}"]
    for kind in setting.__mro__:
        if not _is_known(kind):
            own = {n: v for n, v in vars(kind).items() if n == "__call__" or n[:2] != "__"}
            parts += [kind.__qualname__, *_simple(own, name)]
    return parts


def _is_known(thing: FunctionType | type) -> bool:
    """Whether a library of which nobody changes the code defines it, under a name."""
    top = str(thing.__module__).split(".")[0]
    known = top in sys.stdlib_module_names or top in ("torch", "numpy")
    return known and "<" not in thing.__qualname__


def _read(code: CodeType) -> set[str]:
    """Names that a function and those inside it look up."""
    inner = [_read(part) for part in code.co_consts if isinstance(part, CodeType)]
    return {*code.co_names}.union(*inner)


def _simple(things: dict[str, Any], name: Callable[[Any], str]) -> list[str]:
    """What of the names in a module or a class is simple enough to say what it does."""
    kept = (*_PLAIN, bytes, Tensor, np.ndarray, FunctionType, partial)
    bare = {n: _bare(value) for n, value in sorted(things.items())}
    return [f"{n}={name(value)}" for n, value in bare.items() if isinstance(value, kept)]


def _bare(thing: Any) -> Any:
    """The function of a method that is made static, of the class, or a property."""
    thing = thing.fget if isinstance(thing, property) else thing
    return thing.__func__ if isinstance(thing, (staticmethod, classmethod)) else thing

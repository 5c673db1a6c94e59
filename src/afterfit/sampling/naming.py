"""Names of settings, by which a run knows members that an earlier process has made."""

import copyreg
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial, singledispatch
from hashlib import blake2b
from itertools import count
from types import (
    CellType,
    CodeType,
    EllipsisType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor


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
    registry = vars(setting).get("registry")
    if isinstance(registry, MappingProxyType):  # of singledispatch, whose cache changes with use
        chosen = {f"{kind.__module__}.{kind.__qualname__}": f for kind, f in registry.items()}
        return [setting.__qualname__, name(sorted(chosen.items()))]
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

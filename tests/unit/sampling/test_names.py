"""Names of settings: the same in every process, and different where the effect is."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from afterfit.influence import GEX
from afterfit.problem import TrainingStream
from afterfit.sampling import GeometricEnsemble, cosine
from afterfit.sampling.naming import named
from tests.cases import make_case

QUICK = GEX(members=2, steps=2, learning_rate=0.3, batch_size=3)


class Falling:
    """A schedule that is an instance, and one that is a method of it."""

    def __init__(self, power: Any) -> None:
        self.power = power

    def __call__(self, step: int, steps: int) -> float:
        return (1 - step / steps) ** self.power

    def halved(self, step: int, steps: int) -> float:
        return self(step, steps) / 2


@dataclass(frozen=True)
class Noise:
    """An augmentation as a frozen dataclass."""

    scale: float = 0.1

    def __call__(self, inputs: Tensor, generator: Generator) -> Tensor:
        return inputs + self.scale * torch.randn(inputs.shape, generator=generator).to(inputs)


class Slotted:
    __slots__ = ("power",)

    def __init__(self, power: float) -> None:
        self.power = power


def kept(power: float) -> Callable[..., float]:
    return lambda step, steps, *, last=power: (1 - step / steps) ** last


def held(value: Any) -> Callable[..., Any]:
    return lambda step, steps: value


def defaulting(value: Any) -> Callable[..., Any]:
    def schedule(step: int, steps: int, shape: Any = value) -> Any:
        return shape(step, steps)

    return schedule


def reading(body: str, scale: str = "0.5") -> Callable[..., float]:
    """A function of a module that defines a number, and another function."""
    module: dict[str, Any] = {"__name__": "of_a_user"}
    inner = f"scale = {scale}\ndef inner(t): return {body}\n"
    exec(inner + "def f(t, s): return scale * inner(t)", module)
    return module["f"]


def calling(body: str) -> Any:
    module: dict[str, Any] = {"__name__": "of_a_user"}
    exec(f"class Curve:\n def __call__(self, t, s): return {body}", module)
    return module["Curve"]()


def changed_inside(tensor: Tensor) -> Tensor:
    other = tensor.clone()
    other.view(-1)[tensor.numel() // 2] += 1
    return other


def table(values: Tensor) -> nn.Module:
    return nn.Sequential(nn.Embedding.from_pretrained(values[:, None]))


LARGE = torch.arange(5000.0)
ALIKE = {
    "instance": lambda: Falling(2),
    "dataclass": lambda: Noise(0.2),
    "slots": lambda: Slotted(0.2),
    "bound method": lambda: Falling(2).halved,
    "method put on by hand": lambda: MethodType(Falling.halved, Falling(3)),
    "default that is a function": lambda: defaulting(kept(2)),
    "default that is an instance": lambda: defaulting(Falling(2)),
    "keyword-only default": lambda: kept(2),
    "bound argument that is an instance": lambda: partial(held, Falling(2)),
    "large tensor": lambda: held(LARGE.clone()),
    "sparse tensor": lambda: held(LARGE.to_sparse()),
    "array": lambda: held(np.arange(5000.0)),
    "network": lambda: held(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))),
    "set": lambda: held({"a", "b", "c", "d"}),
    "function of torch": lambda: held([torch.relu, torch.nn.functional.gelu, np.sin, nn.ReLU]),
    "kinds of torch": lambda: held([torch.float32, torch.device("cpu"), torch.Size([2, 3])]),
    "cached": lambda: held(lru_cache(kept(2))),
    "generator": lambda: held(Generator().manual_seed(3)),
    "drawing": lambda: held(random.gauss),
    "path and pattern": lambda: held([Path("a"), re.compile("b")]),
    "class": lambda: held(Falling),
}  # fmt: skip
OTHER: list[tuple[str, Any, Any]] = [
    ("state", Falling(2), Falling(3)),
    ("state of a dataclass", Noise(0.1), Noise(0.2)),
    ("slots", Slotted(1), Slotted(2)),
    ("whose method", Falling(2).halved, Falling(3).halved),
    ("which method", Falling(2).halved, Falling(2).__call__),
    ("keyword-only default", kept(2), kept(3)),
    ("default", defaulting(kept(2)), defaulting(kept(3))),
    ("bound argument", partial(held, Falling(2)), partial(held, Falling(3))),
    ("nested bound argument", partial(cosine, [LARGE]), partial(cosine, [changed_inside(LARGE)])),
    ("large tensor", held(LARGE), held(changed_inside(LARGE))),
    ("close numbers", held(torch.tensor(1.0)), held(torch.tensor(1.0 + 1e-7))),
    ("sparse", held(LARGE.to_sparse()), held(changed_inside(LARGE).to_sparse())),
    ("requires a gradient", held(nn.Parameter(LARGE)), held(nn.Parameter(changed_inside(LARGE)))),
    ("complex", held(torch.tensor(1j)), held(torch.tensor(-1j))),
    ("half", held(LARGE.bfloat16()), held(2 * LARGE.bfloat16())),
    ("precision", held(torch.ones(2)), held(torch.ones(2, dtype=torch.float64))),
    ("shape", held(torch.ones(2, 3)), held(torch.ones(3, 2))),
    ("large array", held(np.arange(5000)), held(np.arange(5000) + (np.arange(5000) == 2500))),
    ("weights", held(table(LARGE)), held(table(changed_inside(LARGE)))),
    ("number of its module", reading("t"), reading("t", "0.6")),
    ("function of its module", reading("t"), reading("t * t")),
    ("code of its class", calling("t"), calling("t * t")),
    ("kind of number", held(1), held(1.0)),
    ("order", held([1, 2]), held([2, 1])),
    ("kind of sequence", held([1, 2]), held((1, 2))),
]


@pytest.mark.parametrize("what", list(ALIKE))
def test_settings_made_twice_alike_have_one_name_without_an_address(what: str):
    with torch.random.fork_rng(devices=[]):
        first, second = ALIKE[what](), ALIKE[what]()
        assert named(first) == named(second)
    assert " at 0x" not in named(first)
    assert named(first) == named(first)


@pytest.mark.parametrize(("what", "one", "other"), OTHER, ids=[row[0] for row in OTHER])
def test_settings_of_different_effect_have_different_names(what: str, one: Any, other: Any):
    assert named(one) != named(other)


ELSEWHERE = """
import random
from functools import lru_cache, partial
import numpy as np
import torch
from torch import nn
from afterfit.sampling import GeometricEnsemble
from afterfit.sampling.naming import named

class Falling:
    def __call__(self, step, steps):
        return len({"a", "b", "c"}) * self.power if step in {"x", "y", "z"} else 1.0

def held(value):
    return lambda step, steps, *, last=value: (value, last)

one = Falling()
one.power = {"p", "q", "r"}
held_things = [
    one, one.__call__, lru_cache(held), partial(held, one), random.gauss, np.sin, torch.relu,
    torch.arange(5000.0), np.arange(5000.0), nn.BatchNorm1d(3), torch.float32, held(one), Falling,
]
print([named(held(thing)) for thing in held_things], GeometricEnsemble(schedule=one).key())
"""


def test_names_are_the_same_in_another_process():
    """Addresses, and the order of a set of texts, change with the process."""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            capture_output=True,
            check=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert " at 0x" not in first


def test_what_holds_itself_has_a_name():
    def falling(step: int, steps: int) -> float:
        return 1.0 if step == 0 else 0.9 * falling(step - 1, steps)

    loop: list[Any] = [1]
    loop.append(loop)
    node = Falling(2)
    node.power = node
    for thing in (falling, loop, node):
        assert named(thing) == named(thing)


def test_a_run_with_an_instance_and_a_method_is_resumed(tmp_path: Path):
    case = make_case("linear", "categorical")

    def method() -> GEX:
        sampler = partial(GeometricEnsemble, schedule=Falling(2).halved)
        return replace(QUICK, sampler=sampler, augment=Noise(0.2))

    first = method().fit(case.problem, case.data, folder=tmp_path)
    again = method().fit(case.problem, case.data, folder=tmp_path)
    assert torch.equal(first.table.columns, again.table.columns)
    other = replace(method(), augment=Noise(0.3))
    with pytest.raises(ValueError, match="belongs to another run"):
        other.fit(case.problem, case.data, folder=tmp_path)


@pytest.mark.parametrize("thing", [Lock(), (i for i in range(3)), memoryview(b"a")])
def test_what_cannot_be_named_is_refused_only_where_a_folder_is_used(thing: Any, tmp_path: Path):
    case = make_case("linear", "categorical")

    def schedule(step: int, steps: int) -> float:
        return 1.0 if thing is not None else 0.0

    method = replace(QUICK, sampler=partial(GeometricEnsemble, schedule=schedule))
    assert method.fit(case.problem, case.data).self_scores().shape == (7,)
    with pytest.raises(TypeError, match=r"stands in the settings .* or run without a folder"):
        method.fit(case.problem, case.data, folder=tmp_path)
    assert not any(tmp_path.iterdir())


def test_targets_that_stand_in_are_part_of_the_run(tmp_path: Path):
    case = make_case("linear", "categorical")
    targets = case.data.targets()
    streams = [TrainingStream(case.data, 3, targets=y) for y in (targets, targets.flip(0))]
    QUICK.fit(case.problem, case.data, fit=streams[0], folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        QUICK.fit(case.problem, case.data, fit=streams[1], folder=tmp_path)

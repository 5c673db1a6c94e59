"""A problem holds its network once, and networks do not wait for one another."""

import pickle
from threading import Event, Thread
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from afterfit.problem import Categorical, Problem
from afterfit.problem.problem import _Turns


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 50), nn.BatchNorm1d(50), nn.Linear(50, 2))


class Held(nn.Module):
    """Notes where its weight stands at each call, also in copies."""

    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        Held.seen.append(self.layer.weight.untyped_storage().data_ptr())
        return self.layer(x)


def test_parameters_and_both_networks_are_one_storage_apart_from_the_users():
    module = Held()
    problem, x = Problem.from_module(module, Categorical()), torch.ones(2, 3)
    here = problem.params["layer.weight"].untyped_storage().data_ptr()
    assert here != module.layer.weight.untyped_storage().data_ptr()
    problem.forward({}, x)
    problem.train_forward({}, x)
    assert Held.seen == [here, here]


def test_training_writes_neither_to_the_problem_nor_to_the_module():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    problem, x = Problem.from_module(module, Categorical()), torch.randn(8, 3)
    at_first = problem.forward(problem.params, x)
    problem.train_forward(problem.params, x)
    assert_close(problem.forward(problem.params, x), at_first, rtol=0, atol=0)
    for name, value in {**problem.params, **problem.buffers}.items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(problem.params["0.weight"], before["0.weight"])


class Waiting(nn.Module):
    """Says that it has begun, and waits until it may end."""

    begun, free = Event(), Event()

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        Waiting.begun.set()
        assert Waiting.free.wait(20)
        return self.layer(x)


def test_a_network_does_not_wait_for_another():
    slow = Problem.from_module(Waiting(), Categorical())
    fast = Problem.from_module(network(), Categorical())
    done, x = Event(), torch.ones(2, 3)

    def call() -> None:
        fast.forward(fast.params, x)
        done.set()

    threads = [Thread(target=slow.forward, args=(slow.params, x)), Thread(target=call)]
    try:
        threads[0].start()
        assert Waiting.begun.wait(20)
        threads[1].start()
        assert done.wait(20)
    finally:
        Waiting.free.set()
    for thread in threads:
        thread.join()


def test_a_lock_starts_anew_where_it_arrives():
    held = _Turns()
    with held:
        arrived = pickle.loads(pickle.dumps(held))
        with arrived:
            pass

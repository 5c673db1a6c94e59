import random

import numpy as np
import pytest
import torch
from torch import Generator

from afterfit.problem.randomness import preserved_random_state


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


@pytest.mark.usefixtures("random_state_is_kept")
def test_draws_depend_on_the_seed_alone_and_leave_no_trace():
    draws = []
    for seed in (3, 3, 4):
        with preserved_random_state(seed):
            draws.append(draw())
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


@pytest.mark.usefixtures("random_state_is_kept")
def test_the_state_comes_back_after_an_error():
    own = Generator().manual_seed(2)
    state = own.get_state()

    def fail() -> None:
        with preserved_random_state(0, [own]):
            draw()
            torch.rand(3, generator=own)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(own.get_state(), state)


def test_generators_of_the_user_are_seeded_and_put_back():
    own = Generator().manual_seed(2)
    state, draws = own.get_state(), []
    for _ in range(2):
        with preserved_random_state(5, [own]):
            draws.append(torch.rand(3, generator=own))
        assert torch.equal(own.get_state(), state)
    assert torch.equal(*draws)


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_integer_is_a_seed(seed: int):
    with preserved_random_state(seed):
        first = draw()
    with preserved_random_state(seed):
        assert draw() == first

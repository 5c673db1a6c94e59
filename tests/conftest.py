"""Fixtures of all tests."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Generator

torch.set_num_threads(1)  # the tests are small, and must not fight over the cores

with warnings.catch_warnings():  # at its first call torch loads rules of its own, with a warning
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.func.jvp(torch.exp, (torch.ones(()),), (torch.ones(()),))


@pytest.fixture
def generator() -> Generator:
    """Source of random numbers that starts the same in every test."""
    return Generator().manual_seed(0)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Fail where the block moved the global random state of torch or numpy.

    Python's own is looked at in a process apart: the run-time checks of types draw from it.
    """
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    after = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])


@pytest.fixture
def random_state_is_kept() -> Iterator[None]:
    """Fail where the test moved the global random state of torch or numpy."""
    with kept_random_state():
        yield

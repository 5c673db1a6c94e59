"""Randomness that leaves no trace: seeded inside, the user's random state restored outside."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator


@contextmanager
def preserved_random_state(seed: int, also: Sequence[Generator] = ()) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and put them back afterwards.

    Only for code that is not ours (a user's transform, dropout): our own draws take a generator.

    Parameters
    ----------
    also
        Generators of the user (a loader's own) that are seeded and put back as well.
    """
    states = [generator.get_state() for generator in also]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        for generator in (torch.default_generator, *also):
            generator.manual_seed(seed % 2**63)
        if devices:
            torch.cuda.manual_seed_all(seed % 2**63)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            for generator, state in zip(also, states, strict=True):
                generator.set_state(state)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002

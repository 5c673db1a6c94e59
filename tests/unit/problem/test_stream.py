import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
)

from afterfit.problem import Batch, Batches, TrainingStream

POSITIONS = torch.arange(7, dtype=torch.float64)
TENSORS = Batches((POSITIONS[:, None], POSITIONS * 10))


class Augmented(Dataset):
    """Inputs that begin with their position, then random numbers from every global source."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> tuple[Tensor, float]:
        noise = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return torch.tensor([float(i), *noise], dtype=torch.float64), 10.0 * i


def shuffling(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=3, shuffle=True, **settings)


def own_generator() -> DataLoader[Any]:
    return shuffling(generator=Generator().manual_seed(1))


def in_batch_sampler() -> DataLoader[Any]:
    sampler = RandomSampler(Augmented(), generator=Generator().manual_seed(1))
    return DataLoader(Augmented(), batch_sampler=BatchSampler(sampler, 3, drop_last=False))


SOURCES: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TENSORS,
    "items": lambda: Batches(Augmented()),
    "loader": shuffling,
    "loader with a generator": own_generator,
    "loader with a batch sampler": in_batch_sampler,
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())


def take(stream: TrainingStream, num: int, seed: int = 0) -> list[Batch]:
    return list(islice(stream.batches(seed), num))


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


@every_source
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(make: Callable[[], Any]):
    stream = TrainingStream(make(), batch_size=3)
    assert same(take(stream, 9), take(stream, 9))
    assert same(take(stream, 9), take(TrainingStream(make(), batch_size=3), 9))
    assert not same(take(stream, 9), take(stream, 9, seed=1))


@every_source
@pytest.mark.usefixtures("random_state_is_kept")
def test_the_random_state_of_the_user_is_kept_and_does_not_matter(make: Callable[[], Any]):
    stream = TrainingStream(make(), batch_size=3)
    before = take(stream, 5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        assert same(take(stream, 5), before)


@every_source
def test_positions_are_those_of_the_samples(make: Callable[[], Any]):
    for batch in take(TrainingStream(make(), batch_size=3), 12):
        assert torch.equal(batch.inputs[:, 0], batch.index.double())
        assert torch.equal(batch.targets, 10 * batch.index.double())


@every_source
def test_streams_that_run_side_by_side_do_not_disturb_each_other(make: Callable[[], Any]):
    stream = TrainingStream(make(), batch_size=3)
    pairs = list(islice(zip(stream.batches(0), stream.batches(1), strict=False), 7))
    assert same([first for first, _ in pairs], take(stream, 7, seed=0))
    assert same([second for _, second in pairs], take(stream, 7, seed=1))


@pytest.mark.parametrize("make", [shuffling, own_generator, in_batch_sampler])
def test_a_loader_gives_every_sample_once_an_epoch(make: Callable[[], Any]):
    batches = take(TrainingStream(make()), 6)
    for epoch in (batches[:3], batches[3:]):
        assert [len(batch.index) for batch in epoch] == [3, 3, 1]
        assert sorted(torch.cat([batch.index for batch in epoch]).tolist()) == list(range(7))
    assert not torch.equal(batches[0].index, batches[3].index)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_give_every_sample_once_an_epoch_where_the_batch_size_divides(batch_size: int):
    stream = TrainingStream(TENSORS, batch_size)
    steps = 7 // stream.samples_per_step
    batches = take(stream, 2 * steps)
    for epoch in (batches[:steps], batches[steps:]):
        assert sorted(torch.cat([batch.index for batch in epoch]).tolist()) == list(range(7))


def test_batches_leave_out_the_last_incomplete_batch_and_another_one_each_epoch():
    batches = take(TrainingStream(TENSORS, batch_size=3), 400)
    assert {len(batch.index) for batch in batches} == {3}
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len({*first.index.tolist(), *second.index.tolist()}) == 6
    counts = Counter(torch.cat([batch.index for batch in batches]).tolist())
    expected, variance = 200 * 6 / 7, 200 * 6 / 7 * 1 / 7
    assert all(abs(counts[i] - expected) < 5 * variance**0.5 for i in range(7))


def test_a_loader_that_drops_its_last_batch_still_does():
    batches = take(TrainingStream(shuffling(drop_last=True)), 4)
    assert [len(batch.index) for batch in batches] == [3, 3, 3, 3]


def test_a_loader_with_an_order_of_its_own_keeps_it():
    stream = TrainingStream(DataLoader(Augmented(), batch_size=4))
    assert [batch.index.tolist() for batch in take(stream, 3)] == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [0, 1, 2, 3],
    ]


def test_a_loader_over_a_part_names_positions_in_the_whole():
    loader = DataLoader(Augmented(), batch_size=2, sampler=SubsetRandomSampler([5, 6]))
    stream = TrainingStream(loader)
    assert stream.num_samples == 7
    assert all(sorted(batch.index.tolist()) == [5, 6] for batch in take(stream, 3))


def test_a_loader_is_left_as_it_was():
    generator = Generator().manual_seed(1)
    loader = shuffling(generator=generator)
    before = generator.get_state()
    take(TrainingStream(loader), 5)
    assert torch.equal(generator.get_state(), before)


def test_random_transforms_differ_from_step_to_step():
    for make in (SOURCES["items"], SOURCES["loader"]):
        batches = take(TrainingStream(make(), batch_size=7), 6)
        noise = torch.cat([batch.inputs[:, 1:] for batch in batches])
        assert all(len(column.unique()) == len(noise) for column in noise.T)


def jitter(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, dtype=inputs.dtype, generator=generator)


def careless_jitter(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, dtype=inputs.dtype)


@every_source
@pytest.mark.usefixtures("random_state_is_kept")
@pytest.mark.parametrize("augment", [jitter, careless_jitter])
def test_augmentation_is_reproducible_and_anew_in_each_step(make: Callable[[], Any], augment):
    stream = TrainingStream(make(), batch_size=3, augment=augment)
    batches = take(stream, 9)
    assert same(batches, take(stream, 9))
    assert not same(batches, take(stream, 9, seed=1))
    noise = torch.cat([batch.inputs[:, 0] - batch.index for batch in batches])
    assert 0 < noise.min() < noise.max() < 1
    assert len(noise.unique()) == len(noise)


def test_augmentation_leaves_the_data_alone():
    def erase(inputs: Tensor, generator: Generator) -> Tensor:
        return inputs.zero_()

    take(TrainingStream(TENSORS, batch_size=3, augment=erase), 4)
    take(TrainingStream(DataLoader(list(zip(POSITIONS, POSITIONS, strict=True))), augment=erase), 4)
    assert torch.equal(TENSORS.fetch(torch.arange(7)).inputs[:, 0], POSITIONS)
    assert POSITIONS.tolist() == list(range(7))


def test_a_stream_knows_its_sizes():
    assert TrainingStream(TENSORS).num_samples == 7
    assert TrainingStream(TENSORS).samples_per_step == 7
    assert TrainingStream(TENSORS, batch_size=3).samples_per_step == 3
    assert TrainingStream(shuffling()).num_samples == 7
    assert TrainingStream(shuffling()).samples_per_step == 3


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (DataLoader(Endless()), "reads an IterableDataset"),
        (DataLoader(Augmented(), batch_size=None), "batch_size=None"),
    ],
)
def test_a_loader_that_cannot_name_its_samples_is_refused(loader: DataLoader[Any], said: str):
    with pytest.raises(ValueError, match=said):
        TrainingStream(loader)


def test_a_loader_without_a_batch_is_refused_and_not_waited_for():
    loader = DataLoader(Augmented(), batch_size=8, drop_last=True)
    with pytest.raises(ValueError, match="makes no batch; with drop_last=True"):
        next(TrainingStream(loader).batches(0))

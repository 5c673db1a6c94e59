"""Positions come with the samples, whatever reads them."""

from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from afterfit.problem import with_positions

X = torch.arange(14, dtype=torch.float64).view(7, 2)
Y = torch.arange(7) * 10


class Dicts(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": X[i], "labels": int(Y[i])}


class Together(Dicts):
    """Reads batches at once, as data sets of the hub do."""

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        return [{**self[i], "together": True} for i in positions]


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0], Y[0]


def test_items_keep_their_kind():
    position, x, y = with_positions(TensorDataset(X, Y))[3]
    assert (position, y) == (3, 30)
    assert torch.equal(x, X[3])
    assert with_positions(Dicts())[2]["position"] == 2
    assert with_positions([[1, 2], [3, 4]])[1] == (1, 3, 4)
    assert with_positions("abc")[1] == (1, "b")
    assert with_positions("abc")[-1] == (2, "c")
    with pytest.raises(IndexError):
        with_positions("abc")[3]
    assert list(with_positions("abc")) == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_row_of_a_batch_stands_beside_its_position(workers, weighted):
    weights = [1.0, 5.0, 0.0, 1.0, 1.0, 1.0, 9.0]
    sampler = WeightedRandomSampler(weights, 40) if weighted else None
    data = with_positions(TensorDataset(X, Y))
    loader = DataLoader(data, 3, shuffle=not weighted, sampler=sampler, num_workers=workers)

    seen = []
    for index, x, y in loader:
        assert torch.equal(x, X[index])
        assert torch.equal(y, Y[index])
        seen += index.tolist()

    assert len(seen) == (40 if weighted else 7)
    assert set(seen) <= set(range(7)) - ({2} if weighted else set())


def test_the_shares_of_two_processes_cover_the_data():
    data = with_positions(TensorDataset(X, Y))
    found = []
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank)
        for index, x, _ in DataLoader(data, 2, sampler=sampler):
            assert torch.equal(x, X[index])
            found += index.tolist()

    assert len(found) == 8  # one sample is drawn twice, to share evenly
    assert set(found) == set(range(7))


def test_dicts_are_read_together_where_the_data_set_can():
    for data, together in ((Dicts(), False), (Together(), True)):
        (batch,) = DataLoader(with_positions(data), 7)
        assert batch["position"].tolist() == list(range(7))
        assert torch.equal(batch["labels"], Y)
        assert ("together" in batch) == together


def test_positions_are_those_of_what_is_read():
    (batch,) = DataLoader(with_positions(Subset(TensorDataset(X, Y), [4, 5])), 2)

    assert batch[0].tolist() == [0, 1]
    assert batch[2].tolist() == [40, 50]


def test_data_without_positions_is_refused():
    for wrong in (Stream(), {"train": Dicts()}, iter([1])):
        with pytest.raises(ValueError, match="expected a map-style data set"):
            with_positions(wrong)
    with pytest.raises(ValueError, match="rename that column"):
        with_positions(with_positions(Dicts()))[0]

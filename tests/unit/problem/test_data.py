from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from afterfit.problem import Batches

X = torch.arange(14, dtype=torch.float64).view(7, 2)
Y = torch.arange(7) * 10


class Pairs(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i], int(Y[i])


class Dicts(Dataset):
    """Items as those of the hub's data sets."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": X[i], self.key: int(Y[i])}


class Columns:
    """Not a Dataset by its type, but read by position and with a length: that is enough."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.int64]:
        return X[i].numpy(), Y[i].numpy()


class Doubling(TensorDataset):
    """A data set of tensors that transforms them."""

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        x, y = TensorDataset.__getitem__(self, i)
        return 2 * x, y


class Fixed(Sampler[int]):
    def __init__(self, order: list[int]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class Restless(Fixed):
    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.order)).tolist())


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(X[0], 0)])


class CountedStream(Stream):
    def __len__(self) -> int:
        return 1


def read(data: Batches) -> tuple[Tensor, Tensor, Tensor]:
    index, inputs, targets = zip(*data, strict=True)
    return torch.cat(index), torch.cat(inputs), torch.cat(targets)


SOURCES = {
    "tuple": (X, Y),
    "list": [X, Y],
    "TensorDataset": TensorDataset(X, Y),
    "list of pairs": list(zip(X, Y.tolist(), strict=True)),
    "tuple of pairs": tuple(zip(X, Y, strict=True)),
    "Dataset": Pairs(),
    "by position": Columns(),
    "DataLoader": DataLoader(Pairs(), batch_size=4),
    "batch sampler": DataLoader(Pairs(), batch_sampler=BatchSampler(range(7), 4, drop_last=False)),
    "Batches": Batches((X, Y), batch_size=5),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_every_source_gives_the_same_batches_in_order_again_and_again(source: Any):
    data = Batches(source, batch_size=3)
    assert data.num_samples == 7
    assert len(data) == 3
    assert data.ids == list(range(7))
    for _ in range(2):
        index, inputs, targets = read(data)
        assert index.tolist() == list(range(7))
        assert torch.equal(inputs, X)
        assert torch.equal(targets, Y)
    assert [len(batch.index) for batch in data] == [3, 3, 1]
    assert torch.equal(data.targets(), Y)


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
@pytest.mark.parametrize("wrap", [dict, UserDict], ids=["dict", "mapping"])
def test_batches_that_are_dicts_are_split_at_their_targets(key: str, wrap: type):
    def collate(items: list[dict[str, Any]]) -> Any:
        columns = {name: [item[name] for item in items] for name in items[0]}
        return wrap({"x": torch.stack(columns["x"]), key: torch.tensor(columns[key])})

    loader = DataLoader(Dicts(key), batch_size=2, collate_fn=collate)
    for data in (Batches(Dicts(key), batch_size=2), Batches(loader)):
        assert torch.equal(data.targets(), Y)
        assert torch.equal(torch.cat([batch.inputs["x"] for batch in data]), X)
        assert all(set(batch.inputs) == {"x"} for batch in data)


def test_a_dict_without_targets_is_refused():
    with pytest.raises(ValueError, match=r"keys \['answer', 'x'\], expected one of \['labels'"):
        next(iter(Batches(Dicts("answer"))))


def test_several_inputs_come_as_a_tuple():
    rows = list(zip(X, X + 1, Y, strict=True))
    for source in ((X, X + 1, Y), TensorDataset(X, X + 1, Y), rows):
        batch = Batches(source, batch_size=7).fetch(torch.tensor([2, 0]))
        assert isinstance(batch.inputs, tuple)
        assert torch.equal(batch.inputs[0], X[[2, 0]])
        assert torch.equal(batch.inputs[1], X[[2, 0]] + 1)
        assert torch.equal(batch.targets, Y[[2, 0]])


def test_a_data_set_of_tensors_that_transforms_them_is_asked_for_its_items():
    assert torch.equal(read(Batches(Doubling(X, Y)))[1], 2 * X)


def test_a_loader_gives_its_batch_size_and_its_collation():
    loader = DataLoader(
        Pairs(), batch_size=4, collate_fn=lambda items: (len(items), [y for _, y in items])
    )
    data = Batches(loader)
    assert data.batch_size == 4
    assert [batch.inputs for batch in data] == [4, 3]
    assert data.targets().tolist() == Y.tolist()
    assert Batches(loader, batch_size=7).batch_size == 7
    assert Batches((X, Y)).batch_size == 256


def test_a_sampler_with_a_fixed_order_is_followed_and_named_in_the_ids():
    order = [5, 0, 3]
    data = Batches(DataLoader(Pairs(), batch_size=2, sampler=Fixed(order)))
    index, inputs, targets = read(data)
    assert data.num_samples == 3
    assert data.ids == order
    assert index.tolist() == [0, 1, 2]
    assert torch.equal(inputs, X[order])
    assert torch.equal(targets, Y[order])
    assert data.targets().tolist() == [50, 0, 30]


def test_positions_can_be_fetched_in_any_order():
    batch = Batches(DataLoader(Pairs(), sampler=Fixed([6, 5, 4]))).fetch(torch.tensor([2, 0, 2]))
    assert batch.index.tolist() == [2, 0, 2]
    assert batch.targets.tolist() == [40, 60, 40]


@pytest.mark.parametrize("source", [(X, Y), Pairs()], ids=["tensors", "items"])
def test_a_subset_holds_its_samples_with_their_ids(source: Any):
    data = Batches(source, batch_size=2, ids=list("abcdefg"))
    assert data.targets() is data.targets()
    part = data.subset(torch.tensor([6, 1, 3]))
    assert part.ids == ["g", "b", "d"]
    assert part.num_samples == 3
    assert part.batch_size == 2
    assert torch.equal(read(part)[1], X[[6, 1, 3]])
    assert part.targets().tolist() == [60, 10, 30]
    (last,) = part.subset(torch.tensor([2]))
    assert part.subset(torch.tensor([2])).ids == ["d"]
    assert last.targets.tolist() == [30]
    assert data.num_samples == 7


def test_a_subset_may_be_a_mask():
    data = Batches((X, Y)).subset(Y >= 50)
    assert data.ids == [5, 6]
    assert data.targets().tolist() == [50, 60]


@pytest.mark.parametrize("index", [torch.tensor([], dtype=torch.int64), torch.zeros(7).bool()])
def test_an_empty_subset_is_refused(index: Tensor):
    with pytest.raises(ValueError, match="subset is empty"):
        Batches((X, Y)).subset(index)


def test_the_fingerprint_knows_the_data_and_not_how_it_is_read():
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    same = [(X, Y), TensorDataset(X, Y), Pairs(), DataLoader(Pairs(), batch_size=2)]
    others = [(X + 1, Y), (X, Y + 1), (X[order], Y[order]), (X.float(), Y), (X.view(7, 2, 1), Y)]
    names = {Batches(data, batch_size=size).fingerprint() for data in same for size in (1, 3, 50)}
    assert len(names) == 1
    assert len(names | {Batches(data).fingerprint() for data in others}) == 6
    assert len(names | {Batches((X, Y)).subset(order).fingerprint()}) == 2
    assert Batches(Dicts("y")).fingerprint() == Batches(Dicts("labels")).fingerprint()


def test_batches_of_batches_keep_order_and_ids():
    data = Batches(Batches((X, Y), ids=list("abcdefg")).subset(torch.tensor([4, 2])), batch_size=1)
    assert data.ids == ["e", "c"]
    assert data.batch_size == 1
    assert data.targets().tolist() == [40, 20]
    assert Batches(data, ids=["p", "q"]).ids == ["p", "q"]


SHUFFLING = {
    "shuffle": {"shuffle": True},
    "RandomSampler": {"sampler": RandomSampler(Pairs())},
    "SubsetRandomSampler": {"sampler": SubsetRandomSampler([0, 1])},
    "WeightedRandomSampler": {"sampler": WeightedRandomSampler([1.0] * 7, 7)},
    "in a batch sampler": {
        "batch_sampler": BatchSampler(RandomSampler(Pairs()), 2, drop_last=False)
    },
}


@pytest.mark.usefixtures("random_state_is_kept")
@pytest.mark.parametrize("settings", SHUFFLING.values(), ids=SHUFFLING.keys())
def test_a_loader_that_shuffles_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=r"the DataLoader shuffles .*build it with shuffle=False"):
        Batches(DataLoader(Pairs(), **settings))


@pytest.mark.usefixtures("random_state_is_kept")
def test_a_sampler_of_ones_own_that_shuffles_is_refused():
    with pytest.raises(ValueError, match=r"\(Restless\) gives another order each time"):
        Batches(DataLoader(Pairs(), sampler=Restless(list(range(7)))))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 3, "drop_last": True},
        {"batch_sampler": BatchSampler(range(7), 3, drop_last=True)},
    ],
    ids=["loader", "batch sampler"],
)
def test_a_loader_that_drops_samples_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="drop_last=True, so some samples would get no score"):
        Batches(DataLoader(Pairs(), **settings))


def test_a_loader_that_makes_no_batches_is_refused():
    with pytest.raises(ValueError, match="batch_size=None, expected one that makes the batches"):
        Batches(DataLoader(Pairs(), batch_size=None))


@pytest.mark.parametrize(
    "source",
    [
        ((x, y) for x, y in zip(X, Y, strict=True)),
        iter([(X[0], 1)]),
        Stream(),
        CountedStream(),
        {(1, 2)},
        3,
        None,
    ],
    ids=["generator", "iterator", "stream", "counted stream", "set", "number", "nothing"],
)
def test_data_that_cannot_be_read_by_position_is_refused(source: Any):
    with pytest.raises(ValueError, match=r"read only once or has no length, expected tensors"):
        Batches(source)


@pytest.mark.parametrize("stream", [Stream(), CountedStream()])
def test_a_loader_over_a_stream_is_refused(stream: Any):
    with pytest.raises(ValueError, match="reads an IterableDataset, expected a map-style"):
        Batches(DataLoader(stream))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "data is empty"),
        ((X[:0], Y[:0]), "data is empty"),
        (TensorDataset(X[:0], Y[:0]), "data is empty"),
        (DataLoader(Pairs(), sampler=Fixed([])), "data is empty"),
        ((X, Y[:3]), r"lengths \[7, 3\], expected at least two of one length"),
        ((X,), r"lengths \[7\], expected at least two"),
        (TensorDataset(X), r"lengths \[7\], expected at least two"),
        ((X.numpy(), Y.numpy()), r"\['ndarray', 'ndarray'\], expected tensors.*torch\.as_tensor"),
        (({"x": X}, Y), r"\['dict', 'Tensor'\], expected tensors"),
        (
            {"x": X, "labels": Y},
            r"a dict with keys \['x', 'labels'\], expected samples by position",
        ),
    ],
)
def test_data_that_is_empty_or_crooked_is_refused(source: Any, said: str):
    with pytest.raises(ValueError, match=said):
        Batches(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (range(3), r"a batch is a Tensor, expected a tuple \(inputs, targets\)"),
        ([(X[0],)], r"a batch is a list, expected a tuple"),
        (
            [(X[0], "cat"), (X[1], "dog")],
            r"targets of a batch are \('cat', 'dog'\), expected numbers",
        ),
    ],
    ids=["one column", "no target", "names"],
)
def test_items_without_numbers_as_targets_are_refused(source: Any, said: str):
    with pytest.raises(ValueError, match=said):
        next(iter(Batches(source)))


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_size_must_be_positive(batch_size: int):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}, expected at least 1"):
        Batches((X, Y), batch_size=batch_size)


def test_as_many_ids_as_samples_are_needed():
    with pytest.raises(ValueError, match="2 ids for 7 samples"):
        Batches((X, Y), ids=["a", "b"])


def test_a_collation_that_loses_samples_is_refused():
    loader = DataLoader(Pairs(), batch_size=3, collate_fn=lambda _: (X[:1], Y[:1]))
    with pytest.raises(ValueError, match="3 samples were asked for and 1 targets came back"):
        next(iter(Batches(loader)))


@pytest.mark.usefixtures("random_state_is_kept")
def test_reading_leaves_the_random_state_alone():
    for source in SOURCES.values():
        read(Batches(source))


class Flipped(torch.utils.data.Dataset):
    """Random flips, as an augmenting transform makes them."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        row = torch.arange(4.0) + index
        return (row.flip(0) if torch.rand(()) < 0.5 else row), index % 2


def test_a_random_transform_is_refused_and_the_users_luck_is_kept():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="has a random transform"):
        Batches(Flipped()).require_repeatable()
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_values_come_back_the_same():
    rows = [(torch.tensor([float("nan"), 1.0]), 0), (torch.tensor([2.0, 3.0]), 1)]
    data = Batches(rows)
    data.require_repeatable()
    assert data.num_samples == 2


def test_a_part_is_drawn_in_order_and_by_the_seed():
    data = Batches((torch.arange(30.0)[:, None], torch.zeros(30).long()))
    part = data.drawn(7, seed=1)
    assert part.ids == sorted(part.ids)
    assert len(set(part.ids)) == 7
    assert data.drawn(7, seed=1).ids == part.ids
    assert data.drawn(7, seed=2).ids != part.ids
    assert data.drawn(99, seed=1) is data
    with pytest.raises(ValueError, match="0 samples were asked for"):
        data.drawn(0, seed=1)

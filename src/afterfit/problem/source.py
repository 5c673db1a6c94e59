"""Where samples come from: tensors, data sets and loaders, told apart once and read by position."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    TensorDataset,
    default_collate,
)
from torch.utils.data.sampler import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from afterfit.problem.randomness import preserved_random_state
from afterfit.typing import Inputs

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_COLUMN = (Tensor, np.ndarray)
_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def split_batch(collated: Any) -> tuple[Inputs, Tensor]:
    """Take a collated batch apart into inputs and targets."""
    if isinstance(collated, Mapping):
        names = [key for key in _TARGET_KEYS if key in collated]
        if not names:
            message = (
                f"a batch is a dict with keys {sorted(collated)}, expected one of "
                f"{list(_TARGET_KEYS)} for the targets; rename the column"
            )
            raise ValueError(message)
        rest = {key: value for key, value in collated.items() if key != names[0]}
        return rest, _as_targets(collated[names[0]])
    if isinstance(collated, (tuple, list)) and len(collated) >= 2:
        *inputs, targets = collated
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), _as_targets(targets)
    message = (
        f"a batch is a {type(collated).__name__}, expected a tuple (inputs, targets) or a dict "
        "with the key 'labels'"
    )
    raise ValueError(message)


def _as_targets(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        message = (
            f"the targets of a batch are {values!r:.60}, expected numbers; encode names of classes "
            "as 0, 1, 2 …"
        )
        raise ValueError(message) from error


@final
@dataclass(frozen=True)
class TensorSource:
    """A data set that stands in tensors; rows are gathered, never collated one by one."""

    columns: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def rows(self, index: Tensor) -> Any:
        return tuple(column[index.to(column.device)] for column in self.columns)


@final
@dataclass(frozen=True)
class ItemSource:
    """A map-style data set whose items are collated into batches."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, index: Tensor) -> Any:
        return self.collate([self.dataset[i] for i in index.tolist()])


def require_batched_map_style(loader: DataLoader[Any]) -> None:
    """Refuse a loader whose samples cannot be read by position, or that makes no batches.

    Raises
    ------
    ValueError
        If it reads an iterable data set, or has ``batch_size=None``.
    """
    if isinstance(loader.dataset, IterableDataset):
        message = (
            "the DataLoader reads an IterableDataset, expected a map-style data set: samples "
            "are read again and by position; collect it into a list of (input, target) pairs"
        )
        raise ValueError(message)
    if loader.batch_sampler is None:
        message = (
            "the DataLoader has batch_size=None, expected one that makes the batches; give it a "
            "batch_size, or pass the data set itself"
        )
        raise ValueError(message)


def read_order(loader: DataLoader[Any]) -> list[list[int]]:
    """Positions of one epoch's batches, as the loader's samplers give them."""
    batches: Any = loader.batch_sampler
    return [[int(i) for i in batch] for batch in batches]


def _fixed_order(loader: DataLoader[Any]) -> list[int]:
    """Order of a loader's samples, read twice to see that it stays."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, _SHUFFLING):
        message = (
            f"the DataLoader shuffles (its sampler is a {type(sampler).__name__}), expected a "
            "fixed order, since scores are aligned with samples by position; build it with "
            "shuffle=False, or pass the data set itself"
        )
        raise ValueError(message)
    if getattr(loader.batch_sampler, "drop_last", False):
        message = (
            "the DataLoader has drop_last=True, so some samples would get no score; build it with "
            "drop_last=False, or pass the data set itself"
        )
        raise ValueError(message)
    with preserved_random_state(0):
        first, second = read_order(loader), read_order(loader)
    if first != second:
        message = (
            f"the DataLoader's sampler ({type(sampler).__name__}) gives another order each time, "
            "expected a fixed order; pass the data set itself"
        )
        raise ValueError(message)
    return [position for batch in first for position in batch]


def _require_tensors(columns: Sequence[Any]) -> None:
    kinds = [type(column).__name__ for column in columns]
    if not all(isinstance(column, Tensor) for column in columns):
        message = (
            f"the columns are {kinds}, expected tensors (inputs, …, targets): wrap arrays in "
            "torch.as_tensor, and pass inputs that are dicts as a data set of dicts with 'labels'"
        )
        raise ValueError(message)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or len(columns) < 2:
        message = (
            f"tensors of lengths {lengths}, expected at least two of one length: (inputs, …, "
            "targets)"
        )
        raise ValueError(message)


def as_source(data: Any) -> tuple[TensorSource | ItemSource, list[int] | None, int | None]:
    """Rows, their order where a loader fixes one, and the loader's batch size."""
    if isinstance(data, DataLoader):
        require_batched_map_style(data)
        return ItemSource(data.dataset, data.collate_fn), _fixed_order(data), data.batch_size
    columns = data.tensors if type(data) is TensorDataset else data  # a subclass may transform
    if isinstance(columns, (tuple, list)) and any(isinstance(c, _COLUMN) for c in columns):
        _require_tensors(columns)
        return TensorSource(tuple(columns)), None, None
    if isinstance(data, Mapping):
        message = (
            f"the data is a {type(data).__name__} with keys {list(data)[:8]}, expected samples by "
            "position: pass one of its splits, tensors (inputs, targets), or a list of dicts"
        )
        raise ValueError(message)
    readable = all(callable(getattr(data, name, None)) for name in ("__getitem__", "__len__"))
    if isinstance(data, IterableDataset) or not readable:
        message = (
            f"the data is a {type(data).__name__} that can be read only once or has no length, "
            "expected tensors (inputs, targets), a map-style Dataset, or a DataLoader in fixed "
            "order; collect it into a list of (input, target) pairs"
        )
        raise ValueError(message)
    return ItemSource(data, default_collate), None, None

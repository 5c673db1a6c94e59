"""Data that can be read again in the same order, and data as training reads it.

:class:`Batches` is what every score is aligned with: a fixed order, a known length, an identifier
for each sample. :class:`TrainingStream` is the other way of reading the same samples: shuffled,
augmented, epoch after epoch, always with the position of each sample, so that losses seen in
training can be credited to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves
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
_HASHED_INPUTS = 64
_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


class Batch(NamedTuple):
    """Samples read together: their positions in the data, what the network takes, the targets."""

    index: Int[Tensor, " B"]  # pyright: ignore[reportIncompatibleMethodOverride]
    inputs: Inputs
    targets: Tensor


def _split(collated: Any) -> tuple[Inputs, Tensor]:
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
class _Tensors:
    """A data set that stands in tensors; rows are gathered, never collated one by one."""

    columns: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def rows(self, index: Tensor) -> Any:
        return tuple(column[index.to(column.device)] for column in self.columns)


@final
@dataclass(frozen=True)
class _Items:
    """A map-style data set whose items are collated into batches."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, index: Tensor) -> Any:
        return self.collate([self.dataset[i] for i in index.tolist()])


def _require_batched_map_style(loader: DataLoader[Any]) -> None:
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


def _read_order(loader: DataLoader[Any]) -> list[list[int]]:
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
        first, second = _read_order(loader), _read_order(loader)
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


def _as_source(data: Any) -> tuple[_Tensors | _Items, list[int] | None, int | None]:
    """Rows, their order where a loader fixes one, and the loader's batch size."""
    if isinstance(data, DataLoader):
        _require_batched_map_style(data)
        return _Items(data.dataset, data.collate_fn), _fixed_order(data), data.batch_size
    columns = data.tensors if type(data) is TensorDataset else data  # a subclass may transform
    if isinstance(columns, (tuple, list)) and any(isinstance(c, _COLUMN) for c in columns):
        _require_tensors(columns)
        return _Tensors(tuple(columns)), None, None
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
    return _Items(data, default_collate), None, None


@final
class Batches:
    """Samples in a fixed order, read in batches as often as needed.

    Parameters
    ----------
    data
        Tensors ``(inputs, targets)`` (or ``(input_1, input_2, …, targets)``), a map-style data set
        whose items are tuples or dicts (targets under ``labels``, ``label``, ``targets``,
        ``target`` or ``y``), or a ``DataLoader`` that does not shuffle.
    batch_size
        Samples read together; a score never depends on it.
    ids
        What to call the samples, N names; by default their positions in the data set.

    Raises
    ------
    ValueError
        If the order is not fixed, the length is unknown, or the data is empty.
    """

    def __init__(
        self, data: Any, batch_size: int | None = None, ids: Sequence[Any] | None = None
    ) -> None:
        if isinstance(data, Batches):
            source, order, found = data._source, data._order.tolist(), data.batch_size
            ids = data.ids if ids is None else ids
        else:
            source, order, found = _as_source(data)
        self._source = source
        self._order = torch.arange(len(source)) if order is None else torch.tensor(order).long()
        self.batch_size = (found or 256) if batch_size is None else batch_size
        if self.batch_size < 1:
            message = f"batch_size is {self.batch_size}, expected at least 1"
            raise ValueError(message)
        if not len(self._order):
            message = "the data is empty, expected at least one sample"
            raise ValueError(message)
        self.ids: list[Any] = self._order.tolist() if ids is None else list(ids)
        if len(self.ids) != len(self._order):
            message = f"{len(self.ids)} ids for {len(self._order)} samples, expected as many"
            raise ValueError(message)
        self._targets: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self._order)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Read all samples in order."""
        for index in torch.arange(self.num_samples).split(self.batch_size):
            yield self.fetch(index)

    def fetch(self, index: Int[Tensor, " B"]) -> Batch:
        """Read the samples at these positions."""
        inputs, targets = _split(self._source.rows(self._order[index]))
        if len(targets) != len(index):
            message = f"{len(index)} samples were asked for and {len(targets)} targets came back"
            raise ValueError(message)
        return Batch(index, inputs, targets)

    def targets(self) -> Tensor:
        """All targets in order, read once and kept."""
        if self._targets is None:
            if isinstance(self._source, _Tensors):
                self._targets = self._source.columns[-1][self._order]
            else:
                self._targets = torch.cat([batch.targets.cpu() for batch in self])
        return self._targets

    def fingerprint(self) -> str:
        """Hash of all targets and of the first inputs, by which artifacts know their data."""
        digest = blake2b(digest_size=12)
        first = self.fetch(torch.arange(min(self.num_samples, _HASHED_INPUTS)))
        for leaf in (self.targets(), *tree_leaves(first.inputs)):
            if isinstance(leaf, Tensor):
                row = leaf.detach().cpu().contiguous().view(-1)
                digest.update(str((leaf.dtype, tuple(leaf.shape))).encode())
                digest.update(row.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def subset(self, index: Int[Tensor, " K"] | Bool[Tensor, " N"]) -> "Batches":
        """Only the samples at these positions, in the order given, with their ids."""
        positions = torch.arange(self.num_samples)[index.cpu()]
        if not len(positions):
            message = "the subset is empty, expected at least one sample"
            raise ValueError(message)
        chosen = object.__new__(Batches)
        chosen._source = self._source
        chosen._order = self._order[positions]
        chosen.batch_size = self.batch_size
        chosen.ids = [self.ids[i] for i in positions.tolist()]
        chosen._targets = None
        return chosen


Augment = Callable[[Inputs, Generator], Inputs]
"""The user's augmentation of a batch; all its randomness comes from the generator."""


@final
@dataclass(frozen=True)
class TrainingStream:
    """The training set as training reads it: shuffled, augmented, without end.

    Every epoch reads every sample once, apart from the last incomplete batch of :class:`Batches`,
    which is left out so that all steps weigh the same; the order is drawn anew each epoch, so no
    sample is left out for long. A ``DataLoader`` keeps or drops its last batch by ``drop_last``.

    Parameters
    ----------
    data
        :class:`Batches`, whose order is drawn anew each epoch; or the user's own (shuffling,
        augmenting) ``DataLoader`` over a map-style data set, whose batch sampler, batch size and
        collation are kept.
    batch_size
        Samples of one step; for a ``DataLoader`` its own.
    augment
        Applied to the inputs of each batch.

    Raises
    ------
    ValueError
        If a ``DataLoader`` reads an ``IterableDataset``, or makes no batches.
    """

    data: "Batches | DataLoader[Any]"
    batch_size: int = 128
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, DataLoader):
            _require_batched_map_style(self.data)

    @property
    def num_samples(self) -> int:
        """Number of samples N of the data set."""
        if isinstance(self.data, DataLoader):
            return len(self.data.dataset)  # pyright: ignore[reportArgumentType]
        return self.data.num_samples

    @property
    def samples_per_step(self) -> int:
        """Number of samples of one step."""
        if isinstance(self.data, DataLoader):
            return self.data.batch_size or self.batch_size
        return min(self.batch_size, self.data.num_samples)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Read batches without end; the same seed gives the same batches.

        The user's random state is kept: whatever the data set, its transforms, the loader or
        ``augment`` draw from torch's, numpy's or Python's global generators, or from the loader's
        own, is drawn from generators seeded here.
        """
        generator = Generator().manual_seed(seed)
        epoch = 0
        while True:
            yield from self._epoch(generator, seed * 1_000_003 + epoch)
            epoch += 1

    def _epoch(self, generator: Generator, seed: int) -> Iterator[Batch]:
        if isinstance(self.data, DataLoader):
            batches = _loader_epoch(self.data, seed)
        else:
            batches = self._shuffled_epoch(self.data, generator, seed)
        for step, (index, inputs, targets) in enumerate(batches):
            if self.augment is not None:
                with preserved_random_state(seed * 8_191 + step):
                    inputs = self.augment(inputs, generator)
            yield Batch(index, inputs, targets)

    def _shuffled_epoch(self, data: Batches, generator: Generator, seed: int) -> Iterator[Batch]:
        order = torch.randperm(data.num_samples, generator=generator)
        usable = max(self.samples_per_step, len(order) - len(order) % self.samples_per_step)
        for step, index in enumerate(order[:usable].split(self.samples_per_step)):
            with preserved_random_state(seed * 8_191 + step):
                batch = data.fetch(index)
            yield batch


def _loader_epoch(loader: DataLoader[Any], seed: int) -> Iterator[Batch]:
    """One epoch of the user's loader with the position of each sample."""
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    found = {id(g): g for g in (getattr(sampler, "generator", None) for sampler in samplers)}
    own = [generator for generator in found.values() if isinstance(generator, Generator)]
    with preserved_random_state(seed, own):
        positions = _read_order(loader)
    if not positions:
        message = (
            "the DataLoader makes no batch; with drop_last=True the batch size must be at most the "
            "number of samples"
        )
        raise ValueError(message)
    source = _Items(loader.dataset, loader.collate_fn)
    for step, batch in enumerate(positions):
        index = torch.tensor(batch)
        with preserved_random_state(seed * 8_191 + step):
            inputs, targets = _split(source.rows(index))
        yield Batch(index, inputs, targets)

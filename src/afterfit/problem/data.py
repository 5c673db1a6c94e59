"""Data that can be read again in the same order, and data as training reads it.

:class:`Batches` is what every score is aligned with: a fixed order, a known length, an identifier
for each sample. :class:`TrainingStream` is the other way of reading the same samples: shuffled,
augmented, epoch after epoch, always with the position of each sample, so that losses seen in
training can be credited to it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from afterfit.problem.randomness import preserved_random_state
from afterfit.problem.source import (
    ItemSource,
    TensorSource,
    as_source,
    read_order,
    require_batched_map_style,
    split_batch,
)
from afterfit.typing import Inputs

_HASHED_INPUTS = 64
_READ_TWICE = 8  # samples by which a random transform shows itself


class Batch(NamedTuple):
    """Samples read together: their positions in the data, what the network takes, the targets."""

    # hides the method of tuples that looks for a value
    index: Int[Tensor, " B"]  # pyright: ignore[reportIncompatibleMethodOverride]
    inputs: Inputs
    targets: Tensor


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
            source, order, found = as_source(data)
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
        self._repeatable = isinstance(source, TensorSource)

    def require_repeatable(self) -> None:
        """Read the first samples twice, with different luck: they must come back the same.

        Raises
        ------
        ValueError
            If they do not: the data set has a random transform, and its scores would mean nothing.
        """
        if self._repeatable:
            return
        first = torch.arange(min(self.num_samples, _READ_TWICE))
        reads = []
        for seed in (0, 1):
            with preserved_random_state(seed):
                reads.append(tree_leaves(self.fetch(first).inputs))
        if not all(_same(one, other) for one, other in zip(*reads, strict=True)):
            message = (
                "the inputs of the first samples came back different when they were read again, "
                "expected the same: the data set has a random transform; pass it here without "
                "augmentation, and the augmented one as `fit`"
            )
            raise ValueError(message)
        self._repeatable = True

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
        inputs, targets = split_batch(self._source.rows(self._order[index]))
        if len(targets) != len(index):
            message = f"{len(index)} samples were asked for and {len(targets)} targets came back"
            raise ValueError(message)
        return Batch(index, inputs, targets)

    def fetch_seeded(self, index: Int[Tensor, " B"], seed: int) -> Batch:
        """Read samples whose transforms draw from generators that start at the seed."""
        if isinstance(self._source, TensorSource):
            return self.fetch(index)
        with preserved_random_state(seed):
            return self.fetch(index)

    def targets(self) -> Tensor:
        """All targets in order, read once and kept."""
        if self._targets is None:
            if isinstance(self._source, TensorSource):
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

    def drawn(self, num: int, seed: int) -> "Batches":
        """So many samples, drawn at random, in their order; all if there are fewer.

        Raises
        ------
        ValueError
            If the number is below 1.
        """
        if num < 1:
            message = f"{num} samples were asked for, expected at least 1"
            raise ValueError(message)
        if num >= self.num_samples:
            return self
        order = torch.randperm(self.num_samples, generator=Generator().manual_seed(seed))
        return self.subset(order[:num].sort().values)

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
        chosen._repeatable = self._repeatable
        return chosen


def _same(one: Any, other: Any) -> bool:
    """Whether two leaves hold the same values, NaN in the same places."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


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
    targets
        Targets by position that stand in for those of the data, (N, ...).

    Raises
    ------
    ValueError
        If a ``DataLoader`` reads an ``IterableDataset``, or makes no batches.
    """

    data: "Batches | DataLoader[Any]"
    batch_size: int = 128
    augment: Augment | None = None
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, DataLoader):
            require_batched_map_style(self.data)

    @classmethod
    def over(
        cls,
        train: "Batches",
        fit: "TrainingStream | DataLoader[Any] | None",
        batch_size: int,
        augment: Augment | None,
    ) -> "TrainingStream":
        """Take what the user trains on: ``fit``, or ``train`` with these settings."""
        if isinstance(fit, TrainingStream):
            return fit
        return cls(train if fit is None else fit, batch_size, augment)

    def require_samples_of(self, train: "Batches", otherwise: str = "") -> None:
        """Raise ``ValueError`` unless it reads as many samples as are scored."""
        if self.num_samples != train.num_samples:
            message = (
                f"the members train on {self.num_samples} samples, expected {train.num_samples}, "
                f"those that are scored and in the same order{otherwise}"
            )
            raise ValueError(message)

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
            read = targets if self.targets is None else self.targets[index]
            yield Batch(index, inputs, read)

    def _shuffled_epoch(self, data: Batches, generator: Generator, seed: int) -> Iterator[Batch]:
        order = torch.randperm(data.num_samples, generator=generator)
        usable = max(self.samples_per_step, len(order) - len(order) % self.samples_per_step)
        for step, index in enumerate(order[:usable].split(self.samples_per_step)):
            yield data.fetch_seeded(index, seed * 8_191 + step)


def _loader_epoch(loader: DataLoader[Any], seed: int) -> Iterator[Batch]:
    """One epoch of the user's loader with the position of each sample."""
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    found = {id(g): g for g in (getattr(sampler, "generator", None) for sampler in samplers)}
    own = [generator for generator in found.values() if isinstance(generator, Generator)]
    with preserved_random_state(seed, own):
        positions = read_order(loader)
    if not positions:
        message = (
            "the DataLoader makes no batch; with drop_last=True the batch size must be at most the "
            "number of samples"
        )
        raise ValueError(message)
    source = ItemSource(loader.dataset, loader.collate_fn)
    for step, batch in enumerate(positions):
        index = torch.tensor(batch)
        with preserved_random_state(seed * 8_191 + step):
            inputs, targets = split_batch(source.rows(index))
        yield Batch(index, inputs, targets)

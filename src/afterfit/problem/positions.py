"""Samples that know their position, so that what training sees can be credited to them."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch.utils.data import Dataset, IterableDataset

POSITION = "position"
"""Key of the position in items that are dicts."""


@final
class WithPositions(Dataset[Any]):
    """A map-style data set whose items begin with their position: :func:`with_positions`."""

    def __init__(self, dataset: Any) -> None:
        readable = all(callable(getattr(dataset, n, None)) for n in ("__getitem__", "__len__"))
        if isinstance(dataset, IterableDataset | Mapping) or not readable:
            message = (
                f"the data set is a {type(dataset).__name__}, expected a map-style data set with a "
                "length: samples are told apart by position; collect it into a list"
            )
            raise ValueError(message)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        position = range(len(self))[position]  # counts from the end where it is negative
        return _with_position(position, self.dataset[position])

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """Read a batch at once where the data set can, as a ``DataLoader`` asks for."""
        places = range(len(self))
        found = [places[position] for position in positions]
        together = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[i] for i in found] if together is None else together(found)
        return [_with_position(i, item) for i, item in zip(found, items, strict=True)]


def _with_position(position: int, item: Any) -> Any:
    if isinstance(item, Mapping):
        if POSITION in item:
            message = (
                f"the items have a key {POSITION!r} already, expected none: rename that column"
            )
            raise ValueError(message)
        return {**item, POSITION: position}
    return (position, *item) if isinstance(item, tuple | list) else (position, item)


def with_positions(dataset: Any) -> WithPositions:
    """Put the position of each sample into its item, whatever sampler draws it.

    An item that is a tuple becomes ``(position, *item)``, a dict gets the key ``"position"``, and
    any other item becomes ``(position, item)``. Positions are those in ``dataset``: wrap what the
    loader reads, not what a ``Subset`` of it was made from.

    Raises
    ------
    ValueError
        If the data set has no positions (an ``IterableDataset``), or dicts with that key already.

    Examples
    --------
    >>> from afterfit.problem import with_positions
    >>> with_positions([("cat", 0), ("dog", 1)])[1]
    (1, 'dog', 1)
    """
    return WithPositions(dataset)

"""Map over samples or columns where a network can be mapped, which is found out once."""

import re
import warnings
from collections.abc import Callable
from typing import TypeVar, final

import torch

T = TypeVar("T")

_LIMITS = re.compile(
    r"vmap|batching rule|functorch|setup_context|doesn't match the broadcast shape"
    r"|must match the size of tensor",
    re.IGNORECASE,
)
"""What torch says where an operation cannot be mapped: it has no rule, a wrong one (``prelu``), or
writes in place."""


@final
class Mappable:
    """Whether what is computed can be mapped: true until it was tried and failed.

    A network that cannot be mapped would fail at every batch, and cost a run of it each time. Where
    the mapped way fails for a reason that is none of torch's known limits, and the other way works,
    the reason is shown as a warning: nothing is swallowed.
    """

    def __init__(self) -> None:
        self._possible = True
        self._reason: RuntimeError | None = None

    def attempt(self, mapped: Callable[[], T]) -> T | None:
        """Compute it mapped; None where that cannot be done, now or before."""
        if not self._possible:
            return None
        try:
            return mapped()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an error of the network comes again the other way
            self._possible, self._reason = False, error
            return None

    def worked_alone(self) -> None:
        """Say why the mapped way failed, once the other way has not.

        Warns
        -----
        RuntimeWarning
            If it failed for a reason other than that an operation cannot be mapped.
        """
        reason, self._reason = self._reason, None
        if reason is not None and not _LIMITS.search(str(reason)):
            message = (
                f"derivatives work one at a time and fail where they are mapped over many "
                f"({type(reason).__name__}: {reason}), expected both: results are right, and slow; "
                "free memory if that is what is short, else report the layer that fails"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def either(self, mapped: Callable[[], T], alone: Callable[[], T]) -> T:
        """Compute it mapped where that can be done, and otherwise one at a time."""
        found = self.attempt(mapped)
        if found is not None:
            return found
        found = alone()
        self.worked_alone()
        return found

"""A stochastic number together with its error."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from random draws.

    Attributes
    ----------
    value
        The estimate.
    stderr
        Its standard error, in the units of `value`.
    num_probes
        How many independent draws stand behind it.

    Examples
    --------
    >>> print(Estimate(value=0.91234, stderr=0.00218, num_probes=100))
    0.9123 ± 0.0022 (100 probes)
    """

    value: float
    stderr: float
    num_probes: int

    def __str__(self) -> str:
        digits = _decimals(self.stderr)
        return f"{self.value:{digits}} ± {self.stderr:{digits}} ({self.num_probes} probes)"


def _decimals(stderr: float) -> str:
    """Format that keeps two significant digits of the standard error."""
    if not math.isfinite(stderr) or stderr <= 0:
        return ".4g"
    decimals = 1 - math.floor(math.log10(stderr))
    return f".{decimals}f" if 0 <= decimals <= 8 else ".4g"

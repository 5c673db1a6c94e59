"""A sharpness together with what it cannot be faked by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from afterfit.linalg import Estimate
from afterfit.sharpness.architecture import ChangeKind


def _changes(*names: ChangeKind) -> frozenset[ChangeKind]:
    return frozenset(names)


DIAGONAL = _changes("layer", "node", "normalization", "affine", "query-key", "sign")
"""Rescalings of single parameters by constants, negative ones included."""

RESCALINGS = DIAGONAL | _changes("permutation")
"""What connectivity, ``θ = θ̂ ⊙ (1 + c)``, is invariant to."""

LINEAR = RESCALINGS | _changes("mixing")
"""Rescalings, and linear combinations of units."""

LAYERWISE = _changes("layer", "normalization", "query-key", "sign", "permutation")
"""What the relative flatness of the last layer is invariant to, where its weight is not tied."""

ORTHOGONAL = _changes("sign", "permutation")
"""What Euclidean distance in parameters is invariant to."""


@final
@dataclass(frozen=True)
class Sharpness:
    """One number for a trained network on given data.

    Attributes
    ----------
    name
        Of the measure.
    total
        Summed over samples, the convention of bounds and posteriors.
    num_samples
        Number of samples N.
    invariant_to
        Kinds of changes, function preserved, under which the number stays; the others can make it
        anything. :func:`~afterfit.sharpness.audit` checks the claim on a given network.
    stderr
        Standard error of `total`; 0 where it is exact.
    num_probes
        Random draws behind it; 0 where it is exact.
    by_parameter
        What each parameter tensor contributes to `total`, where the measure is a sum over them.
    """

    name: str
    total: float
    num_samples: int
    invariant_to: frozenset[ChangeKind]
    stderr: float = 0.0
    num_probes: int = 0
    by_parameter: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Per sample, the convention of reports: it does not grow with the data."""
        return self.total / self.num_samples

    @property
    def estimate(self) -> Estimate:
        """Total and its standard error."""
        return Estimate(self.total, self.stderr, self.num_probes)

    @property
    def shares(self) -> dict[str, float]:
        """Contribution of each parameter tensor over the total."""
        return {name: part / self.total for name, part in self.by_parameter.items()}

    def __str__(self) -> str:
        error = f" ± {self.stderr / self.num_samples:.2g}" if self.stderr else ""
        kinds = ", ".join(sorted(self.invariant_to)) or "nothing"
        return f"{self.name}: {self.mean:.5g}{error} per sample, invariant to {kinds}"

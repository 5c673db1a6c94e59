"""What is said of a target: its mean, its variance, and how uncertain it is."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True)
class Pushed:
    """What a link says of the targets of B samples.

    Attributes
    ----------
    mean
        Expected target (B, C): probabilities, mean or rate.
    stderr
        Monte Carlo standard error of ``mean``; 0 for a closed form.
    variance
        Variance of each target (B, C), the network's uncertainty included.
    uncertainty
        Of a sample: entropy of its target in nats (classes, switches), or the sum of its variances
        (numbers, counts), (B,).
    epistemic
        The part of it that more data would take away: the mutual information of target and
        parameters, or the variance of the mean, (B,). NaN where the link does not say.
    """

    mean: Float[Tensor, "B C"]
    stderr: Float[Tensor, "B C"]
    variance: Float[Tensor, "B C"]
    uncertainty: Float[Tensor, " B"]
    epistemic: Float[Tensor, " B"]

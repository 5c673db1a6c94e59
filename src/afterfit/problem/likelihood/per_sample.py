"""The user's own loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from afterfit.problem.likelihood.base import Likelihood


@final
@dataclass(frozen=True)
class PerSample(Likelihood):
    """The user's own loss: ``function(outputs, y)`` gives one number for each sample.

    It is enough for everything that compares losses (GEX, the loss baselines) and for gradients.
    What needs a probability model (curvature, drawn targets, suggested labels, the automatic
    learning rate) raises ``TypeError`` and says which likelihoods have one.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def loss(self, outputs: Tensor, y: Tensor) -> Float[Tensor, " B"]:
        losses = self.function(outputs, y)
        if losses.shape != outputs.shape[:1]:
            message = (
                f"PerSample: the loss has shape {tuple(losses.shape)}, expected "
                f"({len(outputs)},), one number for each sample; pass reduction='none' and sum "
                "over the outputs of a sample, not over the batch"
            )
            raise ValueError(message)
        return losses

    def suggested(
        self,
        mean: Tensor,  # noqa: ARG002
        given: Tensor,
        is_issue: Bool[Tensor, " N"],  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Nothing: a loss alone does not say what the outputs mean."""
        return given, torch.full((len(given),), torch.nan)

"""How the coordinates of a problem reach the parameters of its network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from afterfit.typing import Inputs, Params

Forward = Callable[[Params, Inputs], Tensor]


@final
@dataclass(frozen=True)
class Coordinates:
    """The network behind a problem, for computations that look into its layers.

    ``problem.forward(params, inputs) == network(weights(params), inputs)``, and the derivative of
    ``weights`` is a constant diagonal. So a derivative in the coordinates is the derivative in the
    parameters of the layers, entry by entry times `scale`.

    Attributes
    ----------
    network
        The network as a function of its own parameters, by their names in the module.
    weights
        The parameters of the network at given coordinates, for every name of ``problem.params``.
    scale
        Derivative of the parameters in the coordinates; a name that is missing has ones.
    """

    network: Forward
    weights: Callable[[Params], dict[str, Tensor]]
    scale: Params

    def moved(
        self, inner: Callable[[Params], Params], scale: Params | None = None
    ) -> "Coordinates":
        """Put another change of coordinates in front, whose derivative is `scale`."""
        outer = self.weights
        factors = dict(self.scale)
        for name, factor in (scale or {}).items():
            factors[name] = factor * factors[name] if name in factors else factor
        return replace(self, weights=lambda params: outer(inner(params)), scale=factors)

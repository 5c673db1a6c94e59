"""What a method for edges answers: what an edit does through the parameters, and directly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from afterfit.graph.edits import Edits
from afterfit.graph.inverse import Inverse
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target
from afterfit.linalg import Solution


@final
@dataclass(frozen=True)
class Query:
    """Targets, ready to be asked for.

    Attributes
    ----------
    targets
        K targets.
    gradients
        Their gradients in the parameters (P, K).
    solved
        ``(H + damping I)⁻¹`` times the gradients.
    damping
        Added to the eigenvalues of the mean curvature.
    inverse
        The solver.
    """

    targets: Sequence[Target]
    gradients: Float[Tensor, "P K"]
    solved: Solution
    damping: float | int
    inverse: Inverse


@runtime_checkable
class EdgeMethod(Protocol):
    """A way to find what edits do to targets."""

    def shift(self, problem: GraphProblem, edits: Edits, query: Query) -> Float[Tensor, "E K"]:
        """Change of each target through the parameters: the network trained on the edited graph."""
        ...

    def propagation(
        self, problem: GraphProblem, edits: Edits, targets: Sequence[Target]
    ) -> Float[Tensor, "E K"]:
        """Change of each target through the messages: the same network on the edited graph."""
        ...

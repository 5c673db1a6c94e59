"""What a user hands over: a trained network, its training data, and how to show a sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from afterfit.problem.data import Batches, TrainingStream
from afterfit.problem.likelihood import Categorical, Likelihood
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class Trained:
    """A trained network with its data: what a factory file returns to the command line.

    Attributes
    ----------
    module
        The trained network.
    train
        Its training data as :class:`~afterfit.problem.Batches` takes them, not augmented.
    likelihood
        What it was trained for.
    fit
        What it trained on, where that was augmented: the shuffling loader, or a
        :class:`~afterfit.problem.TrainingStream`.
    test
        Held-out data.
    classes
        Names of the classes, in the order of the outputs.
    show
        What a reviewer sees of the sample at a position: an array of pixels, a text, a row of
        numbers, or a dict of named values. By default the input itself.
    wrong
        Which labels are truly wrong, (N,), where that is known: only for measuring.
    epochs
        How many epochs the network was trained for; the analysis costs no more than that.
    """

    module: nn.Module
    train: Any
    likelihood: Likelihood | Callable[[Tensor, Tensor], Tensor] = Categorical()
    fit: Any = None
    test: Any = None
    classes: Sequence[str] = ()
    show: Callable[[int], Any] | None = None
    wrong: Tensor | None = None
    epochs: float | int | None = None

    def problem(self) -> Problem:
        """Copy the network into a problem."""
        return Problem.from_module(self.module, self.likelihood)

    def batches(self) -> Batches:
        """Training data in a fixed order."""
        return self.train if isinstance(self.train, Batches) else Batches(self.train)

    def stream(self) -> TrainingStream | None:
        """Training data as they were trained on, or None where they were not augmented."""
        if self.fit is None or isinstance(self.fit, TrainingStream):
            return self.fit
        return TrainingStream(self.fit)

    def held_out(self) -> Batches | None:
        """Held-out data in a fixed order, or None where there are none."""
        if self.test is None or isinstance(self.test, Batches):
            return self.test
        return Batches(self.test)

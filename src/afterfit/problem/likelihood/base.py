"""What a likelihood is asked: its loss always, and whatever else it knows.

A likelihood of your own is one class that inherits :class:`Likelihood` and defines ``loss``. Every
other method that it defines opens what is built on it; what it does not define raises one
``TypeError`` that says what is missing and what to write.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor


class Outcomes(NamedTuple):
    """What could have been observed of a sample: D draws, each with C outcomes.

    ``residual`` is ``p - y``.
    """

    logits: Float[Tensor, "B D C"]
    given: Float[Tensor, "B D C"]
    residual: Float[Tensor, "B R"]

    def opposition(self) -> Float[Tensor, "B D"]:
        """Largest other logit minus the given one, of each draw."""
        chosen = self.given.argmax(-1, keepdim=True)
        others = self.logits.scatter(-1, chosen, -torch.inf).amax(-1)
        return others - self.logits.gather(-1, chosen)[..., 0]


class Visit(NamedTuple):
    """What one visit of each sample in training shows."""

    loss: Float[Tensor, " B"]
    margin: Float[Tensor, " B"]
    gradient_norm: Float[Tensor, " B"]


class Likelihood(ABC):
    """How the outputs of a network give a probability to a target.

    ``loss`` is required. The other methods either refuse, until a class defines them, or say what
    follows from the loss alone; :meth:`says` tells which of them a class defines. It is the one
    abstract class here whose methods with a body are overridden, so that a likelihood is one file.
    """

    reported: ClassVar[tuple[str, ...]] = ()
    """Scores on held-out data beside the loss, names of ``afterfit.workflows.calibrate``:
    ``("brier", "ece", "accuracy")`` for classes, ``("rmse", "crps", "coverage90")`` for numbers."""

    def says(self, method: str) -> bool:
        """Whether the class defines this method, beyond what every likelihood has."""
        return getattr(type(self), method) is not getattr(Likelihood, method)

    @property
    def names_classes(self) -> bool:
        """Whether it gives a probability to each label, so that a doubt above 0 prefers another."""
        return self.says("outcomes")

    # The loss, and whether targets fit it -----------------------------------------------------

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor) -> Float[Tensor, " B"]:
        """Negative log-likelihood of each sample in nats."""

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Raise ``ValueError`` where the targets do not fit the outputs."""
        if len(outputs) != len(y):
            message = (
                f"{type(self).__name__}: {len(outputs)} outputs for {len(y)} targets, expected as "
                "many"
            )
            raise ValueError(message)

    # The model: what curvature, sampling and posteriors need ------------------------------------

    def mean(self, outputs: Tensor) -> Tensor:  # noqa: ARG002
        """Expected target: class probabilities, success probabilities, mean or rate."""
        _refuse(self, "the expected target", "mean(outputs)")

    def hessian(self, outputs: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """Product of the Hessian of the loss in the outputs with ``v``, sample by sample."""
        _refuse(self, "the Hessian of the loss in the outputs", "hessian(outputs, v)")

    def root(self, outputs: Tensor) -> Float[Tensor, "B C R"]:  # noqa: ARG002
        """A root of that Hessian: ``root @ root.mT`` equals it."""
        _refuse(self, "a root of the Hessian of the loss in the outputs", "root(outputs)")

    def sample(self, outputs: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Draw targets from the model; the generator may be on another device than the outputs."""
        _refuse(self, "how targets are drawn", "sample(outputs, generator)")

    def null_outputs(self, y: Tensor) -> Tensor:  # noqa: ARG002
        """Outputs of the best predictor that ignores its input, one row for each target."""
        _refuse(self, "the best predictor that ignores its input", "null_outputs(y)")

    def exact_outputs(self, y: Tensor) -> Tensor | None:  # noqa: ARG002
        """Outputs that predict every target; None where they pay nothing."""
        return None

    # Predictions with uncertainty -----------------------------------------------------------------

    def variance(self, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:  # noqa: ARG002
        """Variance of the target where its mean is known: ``p (1 - p)`` for classes."""
        _refuse(self, "the variance of a target", "variance(mean)")

    def uncertainty(
        self,
        mean: Float[Tensor, "*S C"],  # noqa: ARG002
        variance: Float[Tensor, "*S C"],
    ) -> Float[Tensor, "*S"]:
        """Uncertainty of a sample's target: the sum of its variances, or its entropy in nats."""
        return variance.sum(-1)

    def moments(
        self,
        mean: Float[Tensor, "B C"],  # noqa: ARG002
        variance: Float[Tensor, "B C"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        """Exact mean and variance of :meth:`mean` where the outputs are normal with these."""
        message = (
            f"Moments: the likelihood is {type(self).__name__}, expected Gaussian or Poisson, or a "
            "class that defines moments(mean, variance); use MonteCarlo(), which takes any"
        )
        raise TypeError(message)

    def predictive_losses(
        self,
        mean: Float[Tensor, "N C"],  # noqa: ARG002
        variance: Float[Tensor, "N C"],  # noqa: ARG002
        y: Tensor,  # noqa: ARG002
    ) -> Float[Tensor, " N"]:
        """Negative log-probability of targets in nats, with the predicted mean and variance.

        The outputs of one sample are taken as independent.
        """
        _refuse(self, "a predictive distribution", "predictive_losses(mean, variance, y)")

    def tempered(self, outputs: Tensor, temperature: float) -> tuple["Likelihood", Tensor]:
        """Likelihood and outputs at a temperature: by default, the outputs are divided by it."""
        return self, outputs / temperature

    # Labels: which are doubted, and what they might have been ----------------------------------

    def outcomes(self, outputs: Tensor, y: Tensor) -> Outcomes:  # noqa: ARG002
        """Outcomes of the targets under these outputs, where each label has a probability."""
        message = (
            f"this score needs the probability of each label, and {type(self).__name__} has none; "
            "use Categorical or Bernoulli, define outcomes(outputs, y) in a class that inherits "
            "Likelihood, or score by loss_scores or gradient_norm_scores"
        )
        raise TypeError(message)

    def doubts(self, mean: Tensor, y: Tensor) -> Float[Tensor, "N D"]:  # noqa: ARG002
        """How much the expected target speaks against the given one, a column for each output.

        Classes: one column, the logarithm of the probability of the best other class over that of
        the given one, in nats. Yes-or-no outputs: the same for each of them. Numbers and counts:
        half of the squared residual, over the variance.
        """
        _refuse(self, "how much a prediction doubts a target", "doubts(mean, y)")

    def mistaken(self, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Draw a wrong target for each sample, as a person might have given it.

        Classes: one of the others, by the probability that the trained network gives it, since
        wrong labels tend to be plausible ones. Several yes-or-no outputs: one of them is turned
        around. Numbers and counts: the target of another sample.
        """
        _refuse(self, "what another target could be", "mistaken(outputs, y, generator)")

    def sums_labels(self, mean: Tensor) -> bool:  # noqa: ARG002
        """Whether a loss is the sum over several labels, which hides the one that is wrong."""
        return False

    def alike(self, y: Tensor) -> Int[Tensor, " N"] | None:  # noqa: ARG002
        """Number of the class of each sample, from 0; None where there are no classes."""
        return None

    def suggested(
        self,
        mean: Float[Tensor, "N C"],
        given: Tensor,
        is_issue: Bool[Tensor, " N"],  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Suggest a target for each sample, and how sure the ensemble is of it.

        Numbers (regression, counts): the mean prediction; NaN for the confidence.
        """
        target = mean.reshape(given.shape) if mean.numel() == given.numel() else mean
        return target, torch.full((len(mean),), torch.nan)

    def visit(self, outputs: Tensor, y: Tensor) -> Visit:
        """Loss, margin of the given label and norm of the gradient in the outputs.

        Without labels the margin is 0.
        """
        with torch.enable_grad():
            leaf = outputs.clone().requires_grad_()
            loss = self.loss(leaf, y)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return Visit(loss.detach(), torch.zeros_like(norm), norm)


_MODEL = ("mean", "hessian", "root", "sample", "null_outputs")


def _refuse(likelihood: Likelihood, what: str, signature: str) -> NoReturn:
    """Raise the one error of what a likelihood does not know."""
    alone = not any(likelihood.says(method) for method in _MODEL)
    known = "knows a loss and nothing else, so not" if alone else "does not know"
    message = (
        f"{type(likelihood).__name__} {known} {what}; use Categorical, Bernoulli, Gaussian or "
        f"Poisson where one fits, or define {signature} in a class that inherits Likelihood"
    )
    raise TypeError(message)

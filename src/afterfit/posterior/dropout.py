"""Monte Carlo dropout: dropout stays on while everything else is as in use."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from afterfit.problem.data import Batches
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem, move
from afterfit.problem.randomness import preserved_random_state

_DROPOUTS: tuple[Callable[..., Tensor], ...] = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
)


@final
class _KeepDropout(TorchFunctionMode):
    """Turns on every dropout layer that a network in use calls without effect."""

    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)
        self.rates: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, a dropout with its effect."""
        kwargs = dict(kwargs or {})
        if func not in _DROPOUTS:
            return func(*args, **kwargs)
        names = ("input", "p", "training", "inplace")
        settings = {**dict(zip(names, args, strict=False)), **kwargs}
        settings.update(training=True, inplace=False)
        self.rates.append(float(settings.get("p", 0.5)))
        return func(**settings)


def has_dropout(problem: Problem, data: Batches) -> bool:
    """Whether the network calls a dropout layer with a rate above 0, seen on one sample.

    The dropout of attention weights inside torch's fused attention is not seen.
    """
    inputs = move(data.fetch(torch.arange(1)).inputs, problem.device)
    with torch.inference_mode(), preserved_random_state(0), _KeepDropout() as watch:
        problem.forward(problem.params, inputs)
    return any(rate > 0 for rate in watch.rates)


def dropout_outputs(
    problem: Problem, data: Batches, num: int, seed: int = 0
) -> Float[Tensor, "M N C"]:
    """Outputs of ``num`` passes with dropout on, normalization by its stored statistics.

    For :func:`~afterfit.posterior.predict_by_outputs`. The user's random state is kept.

    References
    ----------
    Gal and Ghahramani 2016, "Dropout as a Bayesian approximation: representing model uncertainty in
    deep learning", ICML.
    """
    rows = []
    for member in range(num):
        with preserved_random_state(seed * 1_000_003 + member), _KeepDropout():
            rows.append(outputs(problem, data))
    return torch.stack(rows)

"""Targets: whether they fit the outputs, and which are alike."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

_NUM_GROUPS = 10


def as_rows(y: Tensor) -> Float[Tensor, "N C"]:
    """Targets as floats, one row a sample; floating targets keep their precision."""
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    return y.to(dtype).reshape(len(y), -1)


def wrong_shape(name: str, y: Tensor, expected: str, hint: str) -> str:
    """Error message of targets of another shape."""
    return f"{name}: y has shape {tuple(y.shape)}, expected {expected}: {hint}"


def require_flat(name: str, outputs: Tensor) -> None:
    """Raise ``ValueError`` unless there is one row of outputs for each sample."""
    if outputs.ndim != 2:
        message = (
            f"{name}: the network returned outputs of shape {tuple(outputs.shape)}, expected "
            "(batch, outputs); reshape them in the module's forward"
        )
        raise ValueError(message)


def require_each(name: str, outputs: Tensor, y: Tensor, noun: str) -> None:
    """Raise ``ValueError`` unless there is one finite target for each output."""
    require_flat(name, outputs)
    fits = y.shape == outputs.shape or (outputs.shape[1] == 1 and y.shape == outputs.shape[:1])
    if not fits:
        message = wrong_shape(
            name, y, str(tuple(outputs.shape)), f"it takes one {noun} for each output"
        )
        raise ValueError(message)
    if not bool(torch.isfinite(y).all()):
        message = f"{name}: y holds NaN or infinite values; drop or impute those rows first"
        raise ValueError(message)


def of_another_sample(y: Tensor, generator: Generator) -> Tensor:
    """Targets of samples that are drawn with replacement."""
    return y.cpu()[torch.randint(len(y), (len(y),), generator=generator)]


def tenths(y: Tensor) -> Int[Tensor, " N"] | None:
    """A tenth of the samples by the middle rank of each value, from 0; None of several columns.

    Equal targets stay together, also where two make all.
    """
    rows = y.detach().cpu().reshape(len(y), -1)
    if rows.shape[1] != 1:
        return None
    _, value, counts = rows[:, 0].unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - counts.double() / 2
    return (_NUM_GROUPS * middle / len(y)).long()[value]


def precise(device: torch.device) -> torch.dtype:
    """The longest floating numbers that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64

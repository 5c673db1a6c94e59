"""Functions of torch written out in others, so that their layers show and all derivatives exist.

``torch.lstm`` and its kin hide their matrix products and cannot be mapped over samples; the
functions behind ``nn.EmbeddingBag`` and weight normalization have no forward-mode derivative.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Step = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, ...]]
"""From the part of the gates that the input makes, the state, and the other weights: a new state.

The first tensor of a state is the output.
"""


@final
@dataclass(frozen=True)
class Opened:
    """A function that does the same by other functions, and whether it can for given arguments."""

    run: Callable[..., Any]
    fits: Callable[..., bool]


# Recurrent layers -------------------------------------------------------------------------------


def _lstm_step(
    gates: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    hidden, cell = state
    recurrent, bias, projection = _sorted(weights)
    i, f, g, o = (gates + functional.linear(hidden, recurrent, bias)).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return (hidden if projection is None else functional.linear(hidden, projection)), cell


def _gru_step(
    gates: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    recurrent, bias, _ = _sorted(weights)
    from_hidden = functional.linear(state[0], recurrent, bias).chunk(3, -1)
    (r, z, n), (hidden_r, hidden_z, hidden_n) = gates.chunk(3, -1), from_hidden
    kept = (z + hidden_z).sigmoid()
    new = (n + (r + hidden_r).sigmoid() * hidden_n).tanh()
    return ((1 - kept) * new + kept * state[0],)


def _plain_step(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(
        gates: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        recurrent, bias, _ = _sorted(weights)
        return (activation(gates + functional.linear(state[0], recurrent, bias)),)

    return step


def _sorted(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Recurrent weight, bias, and projection, of those but the weight and bias of the input."""
    recurrent, *rest = weights
    bias = next((w for w in rest if w.ndim == 1), None)
    return recurrent, bias, next((w for w in rest if w.ndim == 2), None)


def _layers(step: Step) -> Callable[..., tuple[Tensor, ...]]:
    """The signature of ``torch.lstm`` and its kin, for all layers and directions."""

    def run(
        input: Tensor,  # noqa: A002
        states: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,  # noqa: ARG001
        train: bool,  # noqa: ARG001
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        hidden = input.transpose(0, 1) if batch_first else input
        start = (states,) if isinstance(states, Tensor) else tuple(states)
        ways = 2 if bidirectional else 1
        each = len(weights) // (num_layers * ways)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(num_layers):
            sides = []
            for way in range(ways):
                at = layer * ways + way
                own = list(weights[at * each : (at + 1) * each])
                bias = own.pop(2) if has_biases else None
                gates = functional.linear(hidden, own.pop(0), bias)
                state, outputs = tuple(part[at] for part in start), []
                for row in gates.unbind(0) if way == 0 else gates.flip(0).unbind(0):
                    state = step(row, state, own)
                    outputs.append(state[0])
                sides.append(torch.stack(outputs if way == 0 else outputs[::-1]))
                last.append(state)
            hidden = sides[0] if ways == 1 else torch.cat(sides, dim=-1)
        ends = tuple(torch.stack(part) for part in zip(*last, strict=True))
        return (hidden.transpose(0, 1) if batch_first else hidden, *ends)

    return run


def _in_full(*arguments: Any, **_: Any) -> bool:
    """Whether sequences are padded and not packed, and no dropout is at work between layers."""
    if len(arguments) != 9:
        return False
    states, dropout, train = arguments[1], arguments[5], arguments[6]
    packed = isinstance(states, Tensor) and states.ndim == 1
    return not packed and not (train and dropout > 0)


def _cell(step: Step) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The signature of ``torch.lstm_cell`` and its kin."""

    def run(
        input: Tensor,  # noqa: A002
        states: Tensor | Sequence[Tensor],
        from_input: Tensor,
        recurrent: Tensor,
        input_bias: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        start = (states,) if isinstance(states, Tensor) else tuple(states)
        gates = functional.linear(input, from_input, input_bias)
        found = step(gates, start, [recurrent] if bias is None else [recurrent, bias])
        return found[0] if isinstance(states, Tensor) else found

    return run


# Bags and weight normalization ------------------------------------------------------------------


def embedding_bag(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | int | None = None,  # noqa: ARG001
    norm_type: float | int = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,  # noqa: ARG001
    mode: str = "mean",
    sparse: bool = False,  # noqa: ARG001
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``functional.embedding_bag`` by look-ups of single rows."""
    if offsets is not None:
        starts = offsets.tolist()
        ends = starts[1:] + ([] if include_last_offset else [len(input)])
        weights = torch.ones_like(input) if per_sample_weights is None else per_sample_weights
        bags = [
            embedding_bag(
                input[None, a:b],
                weight,
                mode=mode,
                per_sample_weights=None if per_sample_weights is None else weights[None, a:b],
                padding_idx=padding_idx,
            )
            for a, b in zip(starts[: len(ends)], ends, strict=True)
        ]
        return torch.cat(bags)
    rows = functional.embedding(input, weight, padding_idx)
    kept = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        kept = input != padding_idx % len(weight)
    if mode == "max":
        if not input.shape[1]:
            return rows.sum(1)
        lowest = rows.masked_fill(~kept[..., None], -torch.inf).max(1).values
        return lowest.masked_fill(~kept.any(1)[:, None], 0.0)
    share = kept.to(rows) if per_sample_weights is None else kept * per_sample_weights
    total = (rows * share[..., None]).sum(1)
    return total if mode == "sum" else total / kept.sum(1).clamp_min(1)[:, None]


def _leaves_its_table(*arguments: Any, **keywords: Any) -> bool:
    """Whether a bag neither changes its table nor counts how often rows are asked for."""
    max_norm = arguments[3] if len(arguments) > 3 else keywords.get("max_norm")
    by_count = arguments[5] if len(arguments) > 5 else keywords.get("scale_grad_by_freq")
    return max_norm is None and not by_count


def weight_norm(direction: Tensor, size: Tensor, dim: int = 0) -> Tensor:
    """``size direction / ‖direction‖`` with a norm for each entry of an axis, or one for all."""
    axes = [axis for axis in range(direction.ndim) if axis != dim]
    return direction * (size / direction.square().sum(axes, keepdim=True).sqrt())


def _always(*_: Any, **__: Any) -> bool:
    return True


def _unhidden(function: Any) -> Any:
    """Copy of a function of torch that does not hide what it calls from a mode."""
    inside = {**function.__globals__, "has_torch_function": lambda _: False}
    copied = FunctionType(function.__code__, inside, function.__name__)
    copied.__defaults__, copied.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copied


_BAG = Opened(embedding_bag, _leaves_its_table)

OPENED: Mapping[Any, Opened] = {
    functional.multi_head_attention_forward: Opened(
        _unhidden(functional.multi_head_attention_forward), _always
    ),
    functional.embedding_bag: _BAG,
    torch.lstm: Opened(_layers(_lstm_step), _in_full),
    torch.gru: Opened(_layers(_gru_step), _in_full),
    torch.rnn_tanh: Opened(_layers(_plain_step(torch.tanh)), _in_full),
    torch.rnn_relu: Opened(_layers(_plain_step(torch.relu)), _in_full),
    torch.lstm_cell: Opened(_cell(_lstm_step), _always),
    torch.gru_cell: Opened(_cell(_gru_step), _always),
    torch.rnn_tanh_cell: Opened(_cell(_plain_step(torch.tanh)), _always),
    torch.rnn_relu_cell: Opened(_cell(_plain_step(torch.relu)), _always),
}
"""Functions whose layers show when they are opened."""

_WITHOUT_FORWARD_MODE: Mapping[Any, Opened] = {
    functional.embedding_bag: _BAG,
    torch._weight_norm: Opened(weight_norm, _always),  # pyright: ignore[reportPrivateImportUsage]
}


@final
class ForwardMode(TorchFunctionMode):
    """Runs functions that have no forward-mode derivative by others that have one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, or what stands for it."""
        opened = _WITHOUT_FORWARD_MODE.get(func)
        if opened is not None and opened.fits(*args, **(kwargs or {})):
            return opened.run(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

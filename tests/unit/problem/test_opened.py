"""Functions that are written out in others give what torch gives."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from afterfit.problem.opened import OPENED, ForwardMode

LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True),
    "lstm-projected": lambda: nn.LSTM(3, 4, proj_size=2, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, 2, bidirectional=True, bias=False, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, bidirectional=True, batch_first=True),
    "relu": lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
}
BAGS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"mode": "sum"},
    "max": {"mode": "max"},
    "padding": {"mode": "mean", "padding_idx": 2},
    "padding-max": {"mode": "max", "padding_idx": -3},
}


class Opening(torch.overrides.TorchFunctionMode):
    """Opens every function that it can."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in OPENED and OPENED[func].fits(*args, **kwargs):
            return OPENED[func].run(*args, **kwargs)
        return func(*args, **kwargs)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers_are_the_same_opened(name: str):
    layer, x = LAYERS[name]().double(), drawn(2, 5, 3)
    expected, states = layer(x)
    with Opening():
        found, ends = layer(x)
    assert_close(found, expected)
    assert_close(ends, states)


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_the_same_opened(make):
    cell, x = make(3, 4).double(), drawn(2, 3)
    expected = cell(x)
    with Opening():
        assert_close(cell(x), expected)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_packed_sequences_stay_as_they_are(make):
    layer = make(3, 4, batch_first=True).double()
    packed = pack_padded_sequence(drawn(2, 5, 3), torch.tensor([5, 2]), batch_first=True)
    expected, _ = layer(packed)
    with Opening():
        found, _ = layer(packed)
    assert_close(found.data, expected.data)


@pytest.mark.parametrize("settings", BAGS.values(), ids=BAGS)
def test_bags_are_the_same_by_single_rows(settings):
    table = drawn(5, 3)
    index = torch.tensor([[0, 2, 1], [2, 2, 2], [4, 2, 4]])
    ragged, offsets = index.flatten(), torch.tensor([0, 4, 4])
    for arguments in ((index, table), (ragged, table, offsets)):
        expected = functional.embedding_bag(*arguments, **settings)
        with Opening():
            assert_close(functional.embedding_bag(*arguments, **settings), expected)


def test_weighted_bags_and_those_that_change_their_table():
    table, index, share = drawn(5, 3), torch.tensor([[0, 2, 1]]), drawn(1, 3)
    expected = functional.embedding_bag(index, table, mode="sum", per_sample_weights=share)
    with Opening():
        found = functional.embedding_bag(index, table, mode="sum", per_sample_weights=share)
        assert_close(found, expected)
        functional.embedding_bag(index, table, max_norm=0.1)
    assert float(table[0].norm()) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_normalization_is_the_same(dim: int):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3).double(), dim=dim)
    expected = layer.weight.detach()
    with ForwardMode():
        assert_close(layer.weight.detach(), expected)

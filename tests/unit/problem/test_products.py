"""The typed door: Jacobians row by row, and products from both sides, against plain derivatives."""

import torch
from torch import Tensor
from torch.testing import assert_close

from afterfit.problem._autodiff import batched_jacobians, jacobian, over_columns, sandwich

AT = {
    "w": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64),
    "b": torch.tensor([0.3, -1.0], dtype=torch.float64),
}
X = torch.tensor([0.7, -0.2], dtype=torch.float64)


def function(params: dict[str, Tensor], x: Tensor = X) -> Tensor:
    return torch.tanh(params["w"] @ x) * params["b"]


def by_hand(x: Tensor = X) -> Tensor:
    """Rows of the Jacobian in (w, b), written out."""
    inner = torch.tanh(AT["w"] @ x)
    slope = (1 - inner.square()) * AT["b"]
    w = torch.zeros(2, 2, 2, dtype=torch.float64)
    w[0, 0], w[1, 1] = slope[0] * x, slope[1] * x
    return torch.cat([w.flatten(1), torch.diag(inner)], dim=1)


def joined(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([parts["w"].flatten(-2), parts["b"]], dim=-1)


def test_jacobian_row_by_row():
    assert_close(joined(jacobian(function, AT)), by_hand())


def test_jacobians_of_several_inputs_at_once():
    inputs = torch.stack([X, 2 * X, -X])
    found = joined(batched_jacobians(function, AT, (inputs,)))
    assert_close(found, torch.stack([by_hand(x) for x in inputs]))


def test_an_unused_parameter_has_a_zero_row():
    at = {**AT, "unused": torch.ones(3, dtype=torch.float64)}
    assert_close(jacobian(function, at)["unused"], torch.zeros(2, 3, dtype=torch.float64))


def test_the_sandwich_is_the_product_from_both_sides_with_the_middle_at_the_value():
    vector = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.1, -0.4], dtype=torch.float64)

    def middle(value: Tensor, tangent: Tensor) -> Tensor:
        return value.exp() * tangent

    def product(flat: Tensor) -> Tensor:
        along = {"w": flat[:4].view(2, 2), "b": flat[4:]}
        return joined(sandwich(function, AT, along, middle))

    rows = by_hand()
    dense = rows.mT @ torch.diag(function(AT).exp()) @ rows
    assert_close(product(vector), dense @ vector)
    columns = torch.stack([vector, 3 * vector, vector.flip(0)], dim=1)
    assert_close(over_columns(product)(columns), dense @ columns)

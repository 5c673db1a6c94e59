import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from afterfit.problem import Gaussian, Problem
from afterfit.problem._autodiff import (
    batched_gradients,
    differentiable_attention,
    gradient,
    hessian_product,
    jvp,
)
from tests import truth

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def cubic(at: dict[str, Tensor], scale: Tensor | float = 1.0) -> Tensor:
    return (scale * at["a"].pow(3)).sum() + at["b"].square().sum()


AT = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
ALONG = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([[2.0]])}


def test_derivatives_of_a_polynomial():
    value, change = jvp(cubic, AT, ALONG)
    assert value.item() == 1 + 8 + 9
    assert change.item() == 3 - 12 + 12
    assert_close(
        gradient(cubic, AT, 2.0), {"a": torch.tensor([6.0, 24]), "b": torch.tensor([[6.0]])}
    )
    assert_close(
        hessian_product(cubic, AT, ALONG),
        {"a": torch.tensor([6.0, -12]), "b": torch.tensor([[4.0]])},
    )


def test_batched_gradients_are_those_of_each_row():
    rows = batched_gradients(cubic, AT, (torch.tensor([0.0, 1.0, 2.0]),))
    assert_close(rows["a"], torch.tensor([[0.0, 0], [3, 12], [6, 24]]))
    assert_close(rows["b"], torch.full((3, 1, 1), 6.0))


def test_random_numbers_inside_a_mapped_gradient_are_refused():
    def noisy(at: dict[str, Tensor], scale: Tensor) -> Tensor:
        return (functional.dropout(at["a"]) * scale).sum()

    with pytest.raises(RuntimeError, match="random"):
        batched_gradients(noisy, {"a": torch.ones(2)}, (torch.ones(3),))


def test_the_settings_of_attention_come_back():
    def state() -> tuple[bool, bool]:
        return torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()

    before = state()
    assert before == (True, True)
    with differentiable_attention():
        assert state() == (False, False)
    assert state() == before
    with pytest.raises(ZeroDivisionError), differentiable_attention():
        raise ZeroDivisionError
    assert state() == before


class SelfAttention(nn.Module):
    """Attention alone, with a mask and the fused kernel."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        padded = x[..., 0] > 1.5
        mixed, _ = self.attention(x, x, x, key_padding_mask=padded, need_weights=False)
        return mixed.mean(1)


class FusedAttention(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        q = nn.Linear.forward(self, x)
        return functional.scaled_dot_product_attention(q, q, x, is_causal=True).mean(1)


@pytest.mark.parametrize("build", [SelfAttention, lambda: FusedAttention(4, 4)])
def test_attention_can_be_differentiated_twice_and_forward(build, generator):
    module = build().double()
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator).clamp(max=2)
    problem = Problem.from_module(module, Gaussian())
    vector = torch.randn(problem.num_params, dtype=torch.float64, generator=generator)
    direction = truth.along(problem, vector)

    def total(at: dict[str, Tensor]) -> Tensor:
        return problem.forward(at, x).tanh().sum()

    leaves = truth.leaves(problem)
    with truth.plain_attention():
        first = truth.derivative(total(leaves), leaves)
        second = truth.derivative(first @ vector, leaves)
    assert_close(truth.flat(gradient(total, problem.params)), first.detach(), **EXACT)
    assert_close(jvp(total, problem.params, direction)[1], first.detach() @ vector, **EXACT)
    product = truth.flat(hessian_product(total, problem.params, direction))
    assert_close(product, second.detach(), **EXACT)

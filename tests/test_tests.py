"""Laws are code too: each is run on an object that is broken on purpose, and must fail."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from afterfit.influence.base import Influence
from afterfit.problem import Batches, Problem
from tests import truth
from tests.cases import Case, make_case, make_module
from tests.conftest import kept_random_state
from tests.laws import test_influence_laws as influence_laws
from tests.laws import test_problem_laws as problem_laws

MLP, NORM, CONVEX = (make_case(name, "gaussian") for name in ("mlp", "batch-norm", "linear"))


def fails(law: Callable[..., None], *arguments: Any) -> None:
    """Require that a law does not hold; that it breaks for another reason is no excuse."""
    with pytest.raises(AssertionError):
        law(*arguments)


def generator() -> Generator:
    return Generator().manual_seed(0)


# Laws of problems ------------------------------------------------------------------------------


def with_forward(case: Case, forward: Callable[[Any, Any], Tensor]) -> Case:
    return replace(case, problem=replace(case.problem, forward=forward))


def mixing(case: Case) -> Case:
    """Samples of one batch see each other, as with batch statistics."""

    def forward(params: Any, inputs: Any) -> Tensor:
        found = case.problem.forward(params, inputs)
        return found - found.mean(0)

    return with_forward(case, forward)


def dropping(case: Case) -> Case:
    """Dropout stays on."""
    return with_forward(case, case.problem.train_forward)


def test_the_law_of_loops_sees_samples_that_mix_and_means(monkeypatch):
    law = problem_laws.test_outputs_losses_and_gradients_equal_the_loop_over_samples
    fails(law, mixing(MLP))
    with monkeypatch.context() as patch:
        patch.setattr(truth, "losses", lambda problem, data: problem_laws.losses(problem, data) * 2)
        fails(law, MLP)
    with monkeypatch.context() as patch:
        patch.setattr(problem_laws, "gradients", scaled_gradients(problem_laws.gradients))
        fails(law, MLP)


def scaled_gradients(gradients: Callable[..., Any]) -> Callable[..., Any]:
    """Means over the batch in place of sums."""

    def broken(*arguments: Any) -> Any:
        return ((index, rows / len(index)) for index, rows in gradients(*arguments))

    return broken


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_law_of_batch_sizes_sees_samples_that_mix(batch_size: int):
    law = problem_laws.test_outputs_losses_and_gradients_do_not_depend_on_the_batch_size
    fails(law, mixing(MLP), batch_size)


def test_the_law_of_permutations_sees_samples_that_mix():
    fails(problem_laws.test_permuting_the_data_permutes_the_rows, mixing(MLP))


def test_the_law_of_dropout_sees_dropout():
    with torch.random.fork_rng(devices=[]):
        fails(problem_laws.test_dropout_is_off_so_that_two_calls_agree, dropping(MLP))


def test_the_law_of_eval_mode_sees_other_statistics():
    def forward(params: Any, inputs: Any) -> Tensor:
        forgotten = {"1.running_mean": torch.zeros(4, dtype=torch.float64)}
        return NORM.problem.forward({**params, **forgotten}, inputs)

    law = problem_laws.test_outputs_are_those_of_the_users_module_in_eval_mode
    fails(law, with_forward(NORM, forward))


def jvp_of(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    real = problem_laws.jvp

    def broken(*arguments: Any) -> tuple[Tensor, Tensor]:
        value, tangent = real(*arguments)
        return value, change(tangent)

    return broken


def reversed_flat(params: Any) -> Tensor:
    return torch.cat([value.flatten() for value in reversed(list(params.values()))])


def frozen(problem: Problem) -> Problem:
    """A linearization whose slope is zero."""
    return replace(problem, forward=lambda _, inputs: problem.forward(problem.params, inputs))


@pytest.mark.parametrize(
    ("law", "name", "broken"),
    [
        ("test_the_total_gradient_is_the_sum_of_the_rows", "total_gradient", lambda p, d:
            truth.gradients(p, d).mean(0)),
        ("test_gradients_keep_to_the_memory_budget_and_do_not_depend_on_it", "gradients",
            lambda p, d, _: iter([(torch.arange(7), truth.gradients(p, d))])),
        ("test_the_linearized_network_is_exact_at_the_point", "linearize", frozen),
        ("test_restricting_keeps_the_columns_of_the_kept_parameters", "restrict", lambda p, _: p),
        ("test_results_can_be_used_outside_inference_mode", "outputs", lambda p, d:
            torch.inference_mode()(truth.outputs)(p, d)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_laws_of_problems_fail_where_a_function_is_broken(monkeypatch, law, name, broken):
    monkeypatch.setattr(problem_laws, name, broken)
    fails(getattr(problem_laws, law), MLP)


@pytest.mark.parametrize(
    ("law", "name", "broken"),
    [
        ("test_losses_at_other_parameters_are_those_of_a_problem_standing_there", "losses",
            lambda p, d, _: truth.losses(p, d)),
        ("test_jvp_is_the_jacobian_times_the_direction", "jvp", jvp_of(lambda t: -t)),
        ("test_hessian_product_is_the_hessian_times_the_direction", "hessian_product",
            lambda function, at, _: torch.func.grad(function)(dict(at))),
        ("test_the_linearized_network_has_the_same_derivative_everywhere", "linearize",
            lambda p: p),
        ("test_the_linearized_network_moves_by_the_jacobian", "linearize", lambda p: p),
        ("test_the_linearized_network_moves_by_the_jacobian", "linearize", frozen),
        ("test_a_flat_vector_comes_back_from_its_parts", "flatten", reversed_flat),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_laws_of_drawn_directions_fail_where_a_function_is_broken(monkeypatch, law, name, broken):
    monkeypatch.setattr(problem_laws, name, broken)
    fails(getattr(problem_laws, law), MLP, generator())


def test_the_law_of_commuting_sees_a_linearization_that_moves_what_is_held(monkeypatch):
    law = problem_laws.test_restricting_and_linearizing_commute

    def elsewhere(problem: Problem) -> Problem:
        shift = len(problem.params)
        return replace(problem, forward=lambda p, x: problem.forward(p, x) + shift)

    monkeypatch.setattr(problem_laws, "linearize", elsewhere)
    fails(law, MLP, generator())


def test_the_law_of_precision_sees_a_loss_in_double(monkeypatch):
    real = problem_laws.losses
    monkeypatch.setattr(problem_laws, "losses", lambda *arguments: real(*arguments).double())
    fails(problem_laws.test_single_precision_is_kept, MLP)


# The oracles -----------------------------------------------------------------------------------


def test_the_laws_of_the_oracles_see_a_wrong_sign_and_a_wrong_scale(monkeypatch):
    real = truth.ridge_leave_one_out
    with monkeypatch.context() as patch:
        patch.setattr(truth, "ridge_leave_one_out", lambda *arguments: -real(*arguments))
        fails(problem_laws.test_truth_influence_predicts_leaving_one_out_of_ridge, generator())
    ggn, draws = truth.ggn, truth.laplace_draws
    with monkeypatch.context() as patch:
        patch.setattr(truth, "ggn", lambda *arguments: 2 * ggn(*arguments))
        fails(problem_laws.test_truth_hessian_is_the_ggn_where_the_network_is_linear, CONVEX)
    with monkeypatch.context() as patch:
        patch.setattr(truth, "laplace_draws", lambda m, p, n, g: draws(m, 1.2 * p, n, g))
        fails(problem_laws.test_truth_laplace_draws_have_the_mean_and_the_covariance, generator())


# Laws of influence -----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Told(Influence):
    """Influence that says what it is told."""

    matrix: Tensor
    own: Tensor

    def scores(self, query: Batches) -> Tensor:
        return self.matrix

    def self_scores(self) -> Tensor:
        return self.own


DATA = CONVEX.data
ROOT = torch.randn(7, 3, dtype=torch.float64, generator=generator())
MATRIX = ROOT @ ROOT.T
GOOD = Told(MATRIX, MATRIX.diagonal())


@pytest.mark.parametrize(
    "wrong", [-MATRIX, MATRIX / 7, MATRIX.flip(0), MATRIX[:, :6], MATRIX + 1e-6, MATRIX.float()]
)
def test_the_law_of_oracles_sees_wrong_scores(wrong: Tensor):
    influence_laws.require_scores(GOOD, DATA, MATRIX)
    fails(influence_laws.require_scores, Told(wrong, GOOD.own), DATA, MATRIX)


@pytest.mark.parametrize(
    "wrong",
    [
        Told(MATRIX, MATRIX.diagonal() / 7),
        Told(MATRIX, MATRIX.diagonal().sqrt()),
        Told(-MATRIX, -MATRIX.diagonal()),
        Told(MATRIX + torch.eye(7).roll(1, 0), MATRIX.diagonal()),
        Told(MATRIX, MATRIX.diagonal()[:, None]),
    ],
    ids=["over N", "root", "negative", "lopsided", "column"],
)
def test_the_law_of_the_diagonal_sees_a_self_influence_that_is_something_else(wrong: Told):
    influence_laws.require_diagonal(GOOD, DATA)
    fails(influence_laws.require_diagonal, wrong, DATA)


def test_the_law_of_permutations_sees_columns_that_stay():
    order = influence_laws.ORDER
    good = Told(MATRIX[:, order], GOOD.own[order])
    influence_laws.require_permutation(GOOD, good, DATA, order)
    wrongs = GOOD, replace(good, own=GOOD.own), replace(good, matrix=MATRIX[order])
    for wrong in wrongs:
        fails(influence_laws.require_permutation, GOOD, wrong, DATA, order)


def test_the_law_of_batch_sizes_sees_a_small_difference():
    influence_laws.require_same_scores(GOOD, GOOD, DATA)
    for wrong in (replace(GOOD, matrix=MATRIX + 1e-6), replace(GOOD, own=GOOD.own * (1 + 1e-6))):
        fails(influence_laws.require_same_scores, GOOD, wrong, DATA)


@pytest.mark.parametrize(
    "broken", [torch.neg, torch.abs, lambda t: t.flip(1), lambda t: t.flip(0), lambda t: t + 3]
)
def test_the_law_of_leaving_one_out_sees_a_wrong_sign_and_a_wrong_order(broken: Any):
    exact = torch.randn(9, 20, generator=generator())
    influence_laws.require_leave_one_out(exact * 1.1, exact, 0.8)
    fails(influence_laws.require_leave_one_out, broken(exact), exact, 0.8)


def test_the_law_of_unbiased_estimates_sees_a_bias():
    draws = 1 + 0.5 * torch.randn(400, 5, generator=generator())
    influence_laws.require_unbiased(draws, torch.ones(5))
    for wrong in (draws / 0.7, draws + 0.2, draws.median(0).values.expand(400, 5) + 1):
        fails(influence_laws.require_unbiased, wrong, torch.ones(5))


@torch.no_grad()
def nudge(module: nn.Module) -> None:
    next(module.parameters()).view(-1)[0] += 1e-12


@torch.no_grad()
def move_statistics(module: nn.Module) -> None:
    next(module.buffers()).view(-1)[0] += 1e-12


def swap_storage(module: nn.Module) -> None:
    parameter = next(module.parameters())
    parameter.data = parameter.data.clone()


def leave_gradient(module: nn.Module) -> None:
    parameter = next(module.parameters())
    parameter.grad = torch.zeros_like(parameter)


DISTURBANCES: dict[str, Callable[[nn.Module], Any]] = {
    "a weight": nudge,
    "a statistic": move_statistics,
    "the storage": swap_storage,
    "a gradient": leave_gradient,
    "the mode": lambda module: list(module.modules())[-1].eval(),
    "what is trained": lambda module: next(module.parameters()).requires_grad_(False),
    "a hook": lambda module: list(module.modules())[-1].register_forward_hook(lambda *_: None),
    "an attribute": lambda module: setattr(module, "_seen", 1),
    "a buffer": lambda module: module.register_buffer("extra", torch.zeros(1)),
    "the random state": lambda _: torch.rand(1),
}


@pytest.mark.parametrize("what", DISTURBANCES)
def test_the_law_of_the_users_module_sees_a_disturbance(what: str):
    module = make_module("batch-norm", "gaussian")
    influence_laws.require_untouched(module, lambda: module.state_dict())
    with torch.random.fork_rng(devices=[]):
        fails(influence_laws.require_untouched, module, lambda: DISTURBANCES[what](module))


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(1)])  # noqa: NPY002
def test_the_fixture_of_the_random_state_sees_a_draw(draw: Callable[[], Any]):
    def block() -> None:
        with kept_random_state():
            draw()

    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        fails(block)
    np.random.set_state(state)  # noqa: NPY002
    with kept_random_state():
        pass

"""Laws of problems: what holds for every network, likelihood and way of reading the data."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.problem import Batches, Problem, gradients, linearize, losses, outputs, restrict
from afterfit.problem._autodiff import hessian_product, jvp
from afterfit.problem.persample import flatten, total_gradient, unflatten
from afterfit.typing import Params
from tests import truth
from tests.cases import CASES, Case, make_data, make_module, name_of, parts_of, select

every_case = pytest.mark.parametrize("case", CASES, ids=name_of)
every_network = pytest.mark.parametrize("case", select("gaussian"), ids=name_of)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def rows(problem: Problem, data: Batches, memory_budget: int = 2**30) -> Tensor:
    index, parts = zip(*gradients(problem, data, memory_budget), strict=True)
    assert torch.cat(index).tolist() == list(range(data.num_samples))
    return torch.cat(parts)


def draw(problem: Problem, generator: Generator) -> Tensor:
    return torch.randn(problem.num_params, dtype=problem.dtype, generator=generator)


def moved(problem: Problem, generator: Generator) -> dict[str, Tensor]:
    step = truth.along(problem, 0.3 * draw(problem, generator))
    return {name: value + step[name] for name, value in problem.params.items()}


@every_case
def test_outputs_losses_and_gradients_equal_the_loop_over_samples(case: Case):
    problem, data = case.problem, case.data
    assert_close(outputs(problem, data), truth.outputs(problem, data), **EXACT)
    assert_close(losses(problem, data), truth.losses(problem, data), **EXACT)
    assert_close(rows(problem, data), truth.gradients(problem, data), **EXACT)


@every_network
@pytest.mark.parametrize("batch_size", [1, 2, 7, 50])
def test_outputs_losses_and_gradients_do_not_depend_on_the_batch_size(case: Case, batch_size: int):
    problem, other = case.problem, Batches(case.data, batch_size)
    assert_close(outputs(problem, other), outputs(problem, case.data), **EXACT)
    assert_close(losses(problem, other), losses(problem, case.data), **EXACT)
    assert_close(rows(problem, other), rows(problem, case.data), **EXACT)


@every_network
def test_gradients_keep_to_the_memory_budget_and_do_not_depend_on_it(case: Case):
    budget = 4 * 2 * 8 * case.problem.num_params  # two rows of float64, four times over
    chunks = [len(index) for index, _ in gradients(case.problem, case.data, budget)]
    assert chunks == [2, 2, 2, 1]
    assert_close(rows(case.problem, case.data, budget), rows(case.problem, case.data), **EXACT)
    assert_close(rows(case.problem, case.data, 1), rows(case.problem, case.data), **EXACT)


@every_network
def test_permuting_the_data_permutes_the_rows(case: Case):
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    permuted = case.data.subset(order)
    assert_close(losses(case.problem, permuted), losses(case.problem, case.data)[order], **EXACT)
    assert_close(rows(case.problem, permuted), rows(case.problem, case.data)[order], **EXACT)


@every_case
def test_the_total_gradient_is_the_sum_of_the_rows(case: Case):
    expected = truth.gradients(case.problem, case.data).sum(0)
    assert_close(total_gradient(case.problem, case.data), expected, **EXACT)


@every_case
def test_losses_at_other_parameters_are_those_of_a_problem_standing_there(
    case: Case, generator: Generator
):
    there = moved(case.problem, generator)
    expected = truth.losses(replace(case.problem, params=there), case.data)
    assert_close(losses(case.problem, case.data, there), expected, **EXACT)


@every_case
def test_jvp_is_the_jacobian_times_the_direction(case: Case, generator: Generator):
    problem, v = case.problem, draw(case.problem, generator)
    _, inputs, _ = case.data.fetch(torch.arange(case.data.num_samples))
    direction = truth.along(problem, v)
    value, change = jvp(lambda at: problem.forward(at, inputs), problem.params, direction)
    assert_close(value, truth.outputs(problem, case.data), **EXACT)
    assert_close(change, truth.jacobian(problem, case.data) @ v, **EXACT)


@pytest.mark.parametrize("case", select("categorical", "attention"), ids=name_of)
def test_hessian_product_is_the_hessian_times_the_direction(case: Case, generator: Generator):
    problem, v = case.problem, draw(case.problem, generator)
    _, inputs, y = case.data.fetch(torch.arange(case.data.num_samples))

    def total(at: Params) -> Tensor:
        return problem.likelihood.loss(problem.forward(at, inputs), y).sum()

    product = hessian_product(total, problem.params, truth.along(problem, v))
    assert_close(truth.flat(product), truth.hessian(problem, case.data) @ v, **EXACT)


@every_network
def test_the_linearized_network_is_exact_at_the_point(case: Case):
    linear = linearize(case.problem)
    assert_close(outputs(linear, case.data), truth.outputs(case.problem, case.data), **EXACT)
    assert_close(rows(linear, case.data), truth.gradients(case.problem, case.data), **EXACT)


@every_network
def test_the_linearized_network_has_the_same_derivative_everywhere(
    case: Case, generator: Generator
):
    linear, jacobian = linearize(case.problem), truth.jacobian(case.problem, case.data)
    elsewhere = replace(linear, params=moved(case.problem, generator))
    assert_close(truth.jacobian(linear, case.data), jacobian, **EXACT)
    assert_close(truth.jacobian(elsewhere, case.data), jacobian, **EXACT)


@every_network
def test_the_linearized_network_moves_by_the_jacobian(case: Case, generator: Generator):
    there = moved(case.problem, generator)
    step = truth.flat(there) - truth.flat(dict(case.problem.params))
    base, jacobian = truth.outputs(case.problem, case.data), truth.jacobian(case.problem, case.data)
    assert_close(
        outputs(linearize(case.problem), case.data, there), base + jacobian @ step, **EXACT
    )


@every_network
def test_linearizing_twice_changes_nothing(case: Case, generator: Generator):
    once, there = linearize(case.problem), moved(case.problem, generator)
    assert_close(
        outputs(linearize(once), case.data, there), outputs(once, case.data, there), **EXACT
    )


@every_network
def test_restricting_keeps_the_columns_of_the_kept_parameters(case: Case):
    kept = restrict(case.problem, "*bias")
    marks = [torch.full_like(p, n.endswith("bias")) for n, p in case.problem.params.items()]
    columns = truth.flat(marks).bool()
    assert 0 < kept.num_params < case.problem.num_params
    assert_close(losses(kept, case.data), truth.losses(case.problem, case.data), **EXACT)
    expected = truth.gradients(case.problem, case.data)[:, columns]
    assert_close(rows(kept, case.data), expected, **EXACT)


@every_network
def test_restricting_and_linearizing_commute(case: Case, generator: Generator):
    first, second = (
        linearize(restrict(case.problem, "*bias")),
        restrict(linearize(case.problem), "*bias"),
    )
    there = moved(first, generator)
    assert_close(outputs(first, case.data, there), outputs(second, case.data, there), **EXACT)


@every_network
def test_outputs_are_those_of_the_users_module_in_eval_mode(case: Case):
    module = make_module(*parts_of(case)).eval()
    _, inputs, _ = case.data.fetch(torch.arange(case.data.num_samples))
    found = module(**inputs)["logits"] if isinstance(inputs, dict) else module(inputs)
    assert_close(outputs(case.problem, case.data), found.detach(), **EXACT)


@pytest.mark.parametrize("case", select("gaussian")[:-1], ids=name_of)
def test_single_precision_is_kept(case: Case):
    single = Problem.from_module(make_module(*parts_of(case)).float(), case.problem.likelihood)
    _, inputs, targets = case.data.fetch(torch.arange(case.data.num_samples))
    data = Batches((inputs.float() if inputs.is_floating_point() else inputs, targets))
    results = losses(single, data), outputs(single, data), rows(single, data)
    assert {found.dtype for found in results} == {torch.float32}
    assert total_gradient(single, data).dtype == torch.float32
    expected = losses(case.problem, case.data).float()
    assert_close(results[0], expected, rtol=1e-5, atol=1e-5)


@every_network
def test_a_flat_vector_comes_back_from_its_parts(case: Case, generator: Generator):
    vector = draw(case.problem, generator)
    parts = unflatten(vector, case.problem.params)
    assert {n: p.shape for n, p in parts.items()} == {
        n: p.shape for n, p in case.problem.params.items()
    }
    assert torch.equal(flatten(parts), vector)
    assert torch.equal(flatten(parts), truth.flat(truth.along(case.problem, vector)))


@every_network
def test_results_can_be_used_outside_inference_mode(case: Case):
    for found in (outputs(case.problem, case.data), losses(case.problem, case.data)):
        assert not found.is_inference()
        found.requires_grad_().sum().backward()


@pytest.mark.usefixtures("random_state_is_kept")
@every_network
def test_dropout_is_off_so_that_two_calls_agree(case: Case):
    assert torch.equal(losses(case.problem, case.data), losses(case.problem, case.data))


# The oracles themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("case", select("linear"), ids=name_of)
def test_truth_hessian_is_the_ggn_where_the_network_is_linear(case: Case):
    assert_close(
        truth.hessian(case.problem, case.data), truth.ggn(case.problem, case.data), **EXACT
    )


def test_truth_influence_predicts_leaving_one_out_of_ridge(generator: Generator):
    train, query, penalty = make_ridge(60, generator), make_ridge(5, generator), 0.5
    exact = truth.ridge_leave_one_out(*train, *query, penalty)
    weights = truth.ridge(*train, penalty)
    residual, query_residual = train[1] - train[0] @ weights, query[1] - query[0] @ weights
    hessian = train[0].T @ train[0] + penalty * torch.eye(3).double()
    train_gradients, query_gradients = (
        -residual[:, None] * train[0],
        -query_residual[:, None] * query[0],
    )
    linear = query_gradients @ torch.linalg.solve(hessian, train_gradients.T)
    assert torch.corrcoef(torch.stack([exact.flatten(), linear.flatten()]))[0, 1] > 0.99


def make_ridge(num: int, generator: Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(num, 3, dtype=torch.float64, generator=generator)
    return x, x.sum(1) + torch.randn(num, dtype=torch.float64, generator=generator)


def test_truth_influence_is_symmetric_and_positive_on_its_own_data():
    (case,) = (c for c in CASES if c.name == "linear-gaussian")
    matrix = truth.influence(case.problem, case.data, case.data, damping=0.1)
    assert_close(matrix, matrix.T, **EXACT)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    assert_close(
        matrix, truth.influence(case.problem, case.data, case.data, 0.1, truth.ggn), **EXACT
    )


def test_truth_laplace_draws_have_the_mean_and_the_covariance(generator: Generator):
    root = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    precision, mean = root @ root.T + torch.eye(3).double(), torch.tensor([1.0, -2, 0]).double()
    draws = truth.laplace_draws(mean, precision, 20_000, generator)
    covariance = torch.linalg.inv(precision)
    error = (draws.mean(0) - mean).abs() / (covariance.diagonal() / 20_000).sqrt()
    assert error.max() < 5
    found = torch.cov(draws.T)
    spread = covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()
    assert ((found - covariance).abs() / (spread / 20_000).sqrt()).max() < 5


def test_every_case_has_an_odd_last_batch_and_can_be_made_again():
    for case in CASES:
        sizes = [len(batch.index) for batch in case.data]
        assert sizes == [3, 3, 1] == [len(batch.index) for batch in case.data]
        assert torch.equal(case.data.targets(), make_data(*parts_of(case)).targets())

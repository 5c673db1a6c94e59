"""Laws of influence: what holds for every method that reads gradients, whatever the network.

Methods and their oracles are the rows of :mod:`tests.methods`. The laws are functions ``require_…``
of what they hold for, so that ``tests/test_tests.py`` can see each of them fail.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import hessian
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.base import BlockInfluence, Influence, InfluenceMethod
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.projected import RandomProjection
from afterfit.influence.simple import (
    el2n_scores,
    entropy_scores,
    gradient_norm_scores,
    loss_scores,
    margin_scores,
    self_confidence_scores,
)
from afterfit.influence.tracin import GradientDot
from afterfit.linalg import Dense, Diagonal
from afterfit.problem import Batches, Gaussian, Problem
from tests import truth
from tests.cases import Case, make_case, make_data, make_module, name_of, parts_of
from tests.methods import DAMPING, METHODS, SMALL, dot_truth

CLOSE = {"rtol": 1e-7, "atol": 1e-8}
QUERY = torch.tensor([5, 0, 2, 2])
ORDER = torch.tensor([3, 0, 6, 2, 5, 1, 4])
BASELINES = (
    loss_scores,
    margin_scores,
    entropy_scores,
    self_confidence_scores,
    el2n_scores,
    gradient_norm_scores,
)

every_method = pytest.mark.parametrize("method", METHODS)
every_case = pytest.mark.parametrize("case", SMALL, ids=name_of)
some_cases = pytest.mark.parametrize("case", [SMALL[0], SMALL[3]], ids=name_of)


@cache
def fitted(method: str, name: str) -> Influence:
    """Fit once for all laws: the cases are fixed."""
    (case,) = (case for case in SMALL if case.name == name)
    return METHODS[method].make(case.problem).fit(case.problem, case.data)


# The laws --------------------------------------------------------------------------------------


def require_scores(influence: Influence, query: Batches, expected: Tensor) -> None:
    """Rows are queries, columns are training samples, entries are those of the oracle."""
    assert_close(influence.scores(query), expected, **CLOSE)


def require_diagonal(influence: Influence, train: Batches) -> None:
    """Self-influence is the diagonal of the cross-influence, symmetric and not negative."""
    scores = influence.scores(train)
    assert_close(influence.self_scores(), scores.diagonal(), **CLOSE)
    assert_close(scores, scores.T, **CLOSE)
    assert bool((influence.self_scores() >= 0).all())


def require_permutation(one: Influence, permuted: Influence, query: Batches, order: Tensor) -> None:
    """Another order of the training set is another order of the columns."""
    assert_close(permuted.scores(query), one.scores(query)[:, order], **CLOSE)
    assert_close(permuted.self_scores(), one.self_scores()[order], **CLOSE)


def require_same_scores(one: Influence, other: Influence, query: Batches) -> None:
    """How the work is cut into pieces does not matter."""
    assert_close(other.scores(query), one.scores(query), **CLOSE)
    assert_close(other.self_scores(), one.self_scores(), **CLOSE)


def require_leave_one_out(predicted: Tensor, exact: Tensor, correlation: float) -> None:
    """Scores go with the rise of the loss when the sample is removed, and have its sign."""
    found = torch.corrcoef(torch.stack([predicted.flatten(), exact.flatten()]))[0, 1]
    assert found > correlation
    large = exact.abs() > exact.abs().median()
    assert bool((predicted.sign() == exact.sign())[large].double().mean() > correlation)


def require_unbiased(draws: Tensor, expected: Tensor) -> None:
    """The mean of independent draws (first axis) is within 5 of its own standard errors."""
    stderr = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() < 5 * stderr).all())


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that a library could disturb."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    gradients = {f"{n}.grad": p.grad for n, p in tensors.items() if p.grad is not None}
    return {
        "values": {n: value.detach().clone() for n, value in {**tensors, **gradients}.items()},
        "places": {name: value.data_ptr() for name, value in tensors.items()},
        "asked": {name: value.requires_grad for name, value in tensors.items()},
        "modes": [part.training for part in module.modules()],
        "hooks": [
            sorted(hooks)
            for part in module.modules()
            for kind, hooks in sorted(vars(part).items())
            if kind.endswith("_hooks")
        ],
        "attributes": [sorted(vars(part)) for part in module.modules()],
    }


def require_untouched(module: nn.Module, call: Callable[[], Any]) -> None:
    """A call leaves the user's module and the random state of torch bitwise as they were."""
    before, drawn = snapshot(module), torch.get_rng_state()
    call()
    after = snapshot(module)
    assert_close(after.pop("values"), before.pop("values"), rtol=0, atol=0, equal_nan=True)
    assert after == before
    assert torch.equal(torch.get_rng_state(), drawn)


# Held by every method --------------------------------------------------------------------------


@every_case
@every_method
def test_scores_equal_the_dense_oracle(method: str, case: Case):
    query = case.data.subset(QUERY)
    expected = METHODS[method].scores(case.problem, case.data, query)
    require_scores(fitted(method, case.name), query, expected)


@every_case
@every_method
def test_self_influence_is_the_diagonal_of_cross_influence(method: str, case: Case):
    require_diagonal(fitted(method, case.name), case.data)


@some_cases
@every_method
def test_permuting_the_training_set_permutes_the_columns(method: str, case: Case):
    query, permuted = case.data.subset(QUERY), case.data.subset(ORDER)
    influence = METHODS[method].make(case.problem).fit(case.problem, permuted)
    require_permutation(fitted(method, case.name), influence, query, ORDER)


@some_cases
@pytest.mark.parametrize("batch_size", [1, 7])
@every_method
def test_the_batch_size_does_not_change_scores(method: str, batch_size: int, case: Case):
    data, query = (make_data(*parts_of(case), batch_size), Batches(case.data.subset(QUERY), 1))
    influence = METHODS[method].make(case.problem).fit(case.problem, data)
    require_same_scores(fitted(method, case.name), influence, query)


@some_cases
@pytest.mark.parametrize("memory_budget", [1, 3000])
@every_method
def test_the_memory_budget_does_not_change_scores(method: str, memory_budget: int, case: Case):
    thrifty = replace(METHODS[method].make(case.problem), memory_budget=memory_budget)
    influence = thrifty.fit(case.problem, case.data)
    require_same_scores(fitted(method, case.name), influence, case.data.subset(QUERY))


@every_method
def test_a_method_names_its_source_and_follows_the_protocol(method: str):
    made = METHODS[method].make(SMALL[0].problem)
    assert isinstance(made, InfluenceMethod)
    assert isinstance(made.fit(SMALL[0].problem, SMALL[0].data), BlockInfluence)
    assert any(year in made.reference for year in ("2017", "2019", "2020", "2022"))


@pytest.mark.usefixtures("random_state_is_kept")
@pytest.mark.parametrize("network", ["mlp", "batch-norm", "token-bag"])
@every_method
def test_the_users_module_is_never_touched(method: str, network: str):
    module, data = make_module(network, "categorical"), make_data(network, "categorical")
    list(module.modules())[-1].eval()
    module.register_forward_hook(lambda *_: pytest.fail("the user's hook was run"))
    next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
    problem = Problem.from_module(module, make_case(network, "categorical").problem.likelihood)
    found: dict[str, Any] = {}

    require_untouched(module, lambda: found.update(made=METHODS[method].make(problem)))
    require_untouched(module, lambda: found.update(fitted=found["made"].fit(problem, data)))
    require_untouched(module, lambda: found["fitted"].scores(data.subset(QUERY)))
    require_untouched(module, lambda: found["fitted"].self_scores())


@pytest.mark.usefixtures("random_state_is_kept")
@pytest.mark.parametrize("network", ["mlp", "batch-norm"])
@pytest.mark.parametrize("score", BASELINES, ids=lambda score: score.__name__)
def test_baselines_never_touch_the_users_module(score: Callable[..., Tensor], network: str):
    module, data = make_module(network, "categorical"), make_data(network, "categorical")
    problem = Problem.from_module(module, make_case(network, "categorical").problem.likelihood)
    require_untouched(module, lambda: score(problem, data))


def test_the_random_state_of_python_is_kept():
    """In a process of its own, since the run-time checks of types draw from it."""
    script = """
import random
import torch
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.projected import RandomProjection
from afterfit.influence.tracin import GradientDot, TracIn
from afterfit.problem import Batches, Categorical, Problem

data = Batches((torch.randn(9, 3), torch.arange(9) % 2))
problem = Problem.from_module(torch.nn.Linear(3, 2), Categorical())
arnoldi = ArnoldiInfluence(num_iterations=8, num_pairs=2)
others = InfluenceFunction(0.1), RandomProjection(), GradientDot(), TracIn([problem.params])
before = random.getstate()
for method in (arnoldi, *others):
    influence = method.fit(problem, data)
    influence.scores(data), influence.self_scores()
assert random.getstate() == before
"""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **paths}, check=True)


# Refused by every method -----------------------------------------------------------------------


@every_method
def test_a_sample_that_is_not_a_number_is_named(method: str):
    x = torch.randn(5, 3, dtype=torch.float64, generator=Generator().manual_seed(0))
    problem, y = make_case("mlp", "categorical").problem, torch.tensor([0, 1, 2, 0, 1])
    made = METHODS[method].make(problem)
    broken = Batches((x.index_fill(0, torch.tensor([3]), torch.nan), y), ids=list("abcde"))

    influence = made.fit(problem, Batches((x, y)))
    with pytest.raises(ValueError, match=r"sample d .*NaN"):
        influence.scores(broken)
    with pytest.raises((ValueError, FloatingPointError), match="NaN"):
        made.fit(problem, broken).self_scores()


@pytest.mark.parametrize(
    "y", [torch.zeros(5, 3), torch.full((5,), 3), torch.full((5,), -1)], ids=["hot", "high", "low"]
)
@every_method
def test_targets_that_do_not_fit_are_refused(method: str, y: Tensor):
    problem = make_case("mlp", "categorical").problem
    made, x = METHODS[method].make(problem), torch.zeros(5, 3, dtype=torch.float64)

    with pytest.raises(ValueError, match="expected"):
        made.fit(problem, Batches((x, y))).self_scores()
    with pytest.raises(ValueError, match="expected"):
        made.fit(problem, Batches((x + torch.arange(5)[:, None], torch.arange(5) % 3))).scores(
            Batches((x, y))
        )


# Leave-one-out of ridge regression, in closed form ---------------------------------------------

NUM, PENALTY = 200, 10.0
RIDGE: Mapping[str, tuple[InfluenceMethod, float]] = {
    "ggn": (InfluenceFunction(damping=PENALTY / NUM), 0.99),
    "hessian": (InfluenceFunction(damping=PENALTY / NUM, curvature=hessian), 0.99),
    "arnoldi": (ArnoldiInfluence(num_iterations=4, num_pairs=4, damping=PENALTY / NUM), 0.99),
    "gradient-dot": (GradientDot(), 0.8),
    "random-projection": (RandomProjection(4000), 0.8),
}


def regression(num: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    x = torch.randn(num, 4, dtype=torch.float64, generator=generator)
    noise = torch.randn(num, dtype=torch.float64, generator=generator)
    return x, x @ torch.tensor([1.0, -2, 0.5, 0]).double() + 0.5 * noise


def ridge_problem(x: Tensor, y: Tensor) -> Problem:
    problem = Problem.from_module(nn.Linear(4, 1, bias=False).double(), Gaussian())
    return replace(problem, params={"weight": truth.ridge(x, y, PENALTY)[None]})


@pytest.mark.parametrize("name", RIDGE)
def test_scores_have_the_sign_and_the_order_of_leaving_one_out(name: str):
    method, correlation = RIDGE[name]
    train, query = regression(NUM, 11), regression(30, 13)
    influence = method.fit(ridge_problem(*train), Batches(train))
    exact = truth.ridge_leave_one_out(*train, *query, PENALTY)
    require_leave_one_out(influence.scores(Batches(query)) / NUM, exact, correlation)


@pytest.mark.parametrize("name", ["ggn", "hessian", "arnoldi"])
def test_scores_over_n_are_in_the_nats_of_leaving_one_out(name: str):
    train, query = regression(NUM, 11), regression(30, 13)
    influence = RIDGE[name][0].fit(ridge_problem(*train), Batches(train))
    exact = truth.ridge_leave_one_out(*train, *query, PENALTY)
    predicted = influence.scores(Batches(query)) / NUM
    assert (predicted - exact).norm() < 0.1 * exact.norm()


# What holds for one method ---------------------------------------------------------------------


def test_random_projections_are_unbiased_over_seeds():
    case, query = SMALL[0], SMALL[0].data.subset(QUERY)
    draws = [
        RandomProjection(9, seed).fit(case.problem, case.data).scores(query) for seed in range(100)
    ]
    require_unbiased(torch.stack(draws), dot_truth(case.problem, case.data, query))


def test_the_influence_function_without_curvature_is_the_dot_product():
    case = SMALL[1]

    def flat(problem: Problem, train: Batches) -> Diagonal:
        return Diagonal(torch.zeros(problem.num_params, dtype=torch.float64))

    influence = InfluenceFunction(damping=2.0, curvature=flat).fit(case.problem, case.data)
    require_scores(influence, case.data, dot_truth(case.problem, case.data, case.data) / 2)


def test_scaling_curvature_and_damping_together_scales_the_influence():
    case = SMALL[3]

    def twice(problem: Problem, train: Batches) -> Dense:
        return Dense(2 * truth.ggn(problem, train), is_symmetric=True, is_psd=True)

    one = InfluenceFunction(damping=DAMPING).fit(case.problem, case.data)
    other = InfluenceFunction(damping=2 * DAMPING, curvature=twice).fit(case.problem, case.data)
    require_scores(other, case.data, one.scores(case.data) / 2)

"""Influence with averaged gradients: exact where it must be, and against enumeration of halves."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Generator

from afterfit.curvature import CG, ekfac
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.hybrid import HybridInfluence, half_moves
from afterfit.problem.persample import flatten, unflatten
from tests import truth
from tests.cases import make_case

DAMPING = 0.3
PARENT = InfluenceFunction(DAMPING)
MLP = make_case("mlp", "categorical")


def averaged(problem, data, moves):
    """Gradients averaged over both ends of every move, in float64 and one point at a time."""
    at = flatten(problem.params)
    points = [at + sign * move for move in moves for sign in (1, -1)]
    moved = [replace(problem, params=unflatten(point, problem.params)) for point in points]
    return torch.stack([truth.gradients(one, data) for one in moved]).mean(0)


def solved(problem, train, rows):
    mean = truth.ggn(problem, train) / train.num_samples
    damped = mean + DAMPING * torch.eye(len(mean), dtype=mean.dtype)
    return torch.linalg.solve(damped, rows.T)


def dense_moves(problem, train, signs):
    weighted = signs.double() @ truth.gradients(problem, train) / train.num_samples
    return solved(problem, train, weighted).T


def test_on_a_quadratic_problem_it_is_the_influence_function_without_error():
    case = make_case("linear", "gaussian")

    found = HybridInfluence(PARENT, pairs=2, scale=3.0).fit(case.problem, case.data)
    scores = found.cross_influence(case.data)

    expected = truth.influence(case.problem, case.data, case.data, DAMPING)
    assert torch.allclose(scores.value, expected, atol=1e-10)
    assert float(scores.stderr.max()) < 1e-10
    assert torch.allclose(found.self_scores(), expected.diagonal(), atol=1e-10)


def test_it_equals_dense_gradients_at_dense_moves():
    train, query = MLP.data, MLP.data.subset(torch.arange(3))
    found = HybridInfluence(PARENT, pairs=4, scale=0.7, seed=3).fit(MLP.problem, train)

    generator = Generator().manual_seed(3)
    signs = 2.0 * torch.randint(2, (4, train.num_samples), generator=generator) - 1
    moves = 0.7 * dense_moves(MLP.problem, train, signs)

    def through(chosen):
        here, there = (averaged(MLP.problem, data, chosen) for data in (query, train))
        return here @ solved(MLP.problem, train, there)

    parent = truth.influence(MLP.problem, train, query, DAMPING, truth.ggn)
    whole, first, second = (through(m) - parent for m in (moves, moves[::2], moves[1::2]))
    trust = (first * second).sum(1) / ((first + second) / 2).square().sum(1)
    expected = parent + trust.clamp(0, 1)[:, None] * whole
    assert torch.allclose(found.moves, moves, atol=1e-9)
    assert torch.allclose(found.reliability(query), trust.clamp(0, 1), atol=1e-6)
    assert torch.allclose(found.scores(query), expected, atol=1e-9)
    assert torch.allclose(found.parent_scores(query), parent, atol=1e-9)


def test_its_error_tells_how_far_it_is_from_the_mean_over_all_halves():
    train = MLP.data.subset(torch.arange(5))
    patterns = torch.tensor([(1.0, *rest) for rest in product((1.0, -1.0), repeat=4)])
    here = averaged(MLP.problem, train, dense_moves(MLP.problem, train, patterns))
    exact = here @ solved(MLP.problem, train, here)

    found = HybridInfluence(PARENT, pairs=64, scale=1.0).fit(MLP.problem, train)
    scores = found.cross_influence(train)

    assert float(found.reliability(train).min()) > 0.9
    trusted = found.reliability(train)[:, None]
    parent = found.parent_scores(train)
    expected = parent + trusted * (exact - parent)
    assert bool(((scores.value - expected).abs() < 5 * scores.stderr + 1e-12).all())
    few = HybridInfluence(PARENT, pairs=4, scale=1.0).fit(MLP.problem, train).cross_influence(train)
    assert float(scores.stderr.norm()) < 0.6 * float(few.stderr.norm())


def test_turning_every_draw_around_changes_nothing():
    found = HybridInfluence(PARENT).fit(MLP.problem, MLP.data)

    turned = replace(found, moves=-found.moves)

    assert torch.allclose(found.scores(MLP.data), turned.scores(MLP.data), atol=1e-12)


def test_halves_that_contradict_each_other_leave_the_parent():
    found = HybridInfluence(PARENT, pairs=2).fit(MLP.problem, MLP.data)
    noise = (
        30 * torch.randn(2, MLP.problem.num_params, generator=Generator().manual_seed(0)).double()
    )
    wild = replace(found, moves=noise)

    trust, scores = wild.reliability(MLP.data), wild.scores(MLP.data)

    lost = trust == 0
    assert bool(lost.any())
    assert torch.equal(scores[lost], wild.parent_scores(MLP.data)[lost])
    assert float(trust.max()) <= 1


def test_a_draw_is_the_derivative_of_retraining_with_other_weights():
    case, generator = make_case("linear", "gaussian"), Generator().manual_seed(0)
    num, at = case.data.num_samples, flatten(case.problem.params)
    rows = truth.gradients(case.problem, case.data)
    singles = [case.data.subset(torch.tensor([n])) for n in range(num)]
    curvatures = torch.stack([truth.hessian(case.problem, one) for one in singles])

    def minimum(weights):  # of the weighted mean loss and a ridge about where the problem stands
        mean = (weights[:, None, None] * curvatures).mean(0)
        return at - torch.linalg.solve(mean + DAMPING * torch.eye(len(at)), weights @ rows / num)

    ones = torch.ones(num, dtype=torch.float64)
    signs = 2 * torch.randint(2, (num,), generator=generator).double() - 1
    trained = replace(case.problem, params=unflatten(minimum(ones), case.problem.params))
    inverse = PARENT.prepare(trained, case.data)

    found = half_moves(trained, case.data, inverse, signs[None])[0]

    step = 1e-5
    slope = (minimum(ones - step * signs) - minimum(ones + step * signs)) / (2 * step)
    assert torch.allclose(found, slope, rtol=1e-6, atol=1e-8)


def test_a_parent_that_iterates_gives_the_scores_of_one_that_factors():
    direct = HybridInfluence(PARENT, pairs=2).fit(MLP.problem, MLP.data)
    iterated = HybridInfluence(InfluenceFunction(DAMPING, solver=CG(1e-10)), pairs=2)

    found = iterated.fit(MLP.problem, MLP.data)

    assert torch.allclose(found.scores(MLP.data), direct.scores(MLP.data), atol=1e-7)
    assert torch.allclose(found.self_scores(), direct.self_scores(), atol=1e-7)


def test_the_parent_may_be_ekfac():
    parent = InfluenceFunction(DAMPING, curvature=ekfac)
    found = HybridInfluence(parent, pairs=2).fit(MLP.problem, MLP.data)

    expected = parent.fit(MLP.problem, MLP.data).scores(MLP.data)

    assert torch.allclose(found.parent_scores(MLP.data), expected)


def test_scores_do_not_depend_on_the_memory_budget():
    whole = HybridInfluence(PARENT, pairs=2).fit(MLP.problem, MLP.data)
    streamed = replace(whole, memory_budget=1)

    assert torch.allclose(whole.scores(MLP.data), streamed.scores(MLP.data), atol=1e-12)
    assert torch.allclose(whole.self_scores(), streamed.self_scores(), atol=1e-12)


def test_self_influence_is_not_negative_and_carries_its_error():
    found = HybridInfluence(PARENT, pairs=3, scale=5.0).fit(MLP.problem, MLP.data).self_influence()

    assert float(found.value.min()) >= 0
    assert found.stderr.shape == (MLP.data.num_samples,)
    assert bool(torch.isfinite(found.stderr).all())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"pairs": 1}, "expected at least 2"), ({"scale": 0.0}, "finite number above 0")],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        HybridInfluence(PARENT, **settings)

"""Members that nobody walks to: draws from a Gaussian, and the user's checkpoints."""

import pytest
import torch
from torch import Generator, Tensor

from afterfit.problem import Problem, Sampler, TrainingStream
from afterfit.sampling import Checkpoints, GaussianDraws, GeometricEnsemble
from tests import truth
from tests.cases import Case, make_case

NUM = 4000


def case() -> tuple[Case, TrainingStream]:
    found = make_case("batch-norm", "gaussian")
    return found, TrainingStream(found.data)


def root_of(problem: Problem) -> Tensor:
    generator = Generator().manual_seed(5)
    return torch.randn(problem.num_params, 3, dtype=torch.float64, generator=generator)


def drawn(sampler: GaussianDraws) -> Tensor:
    found, fit = case()
    problem = found.problem
    members = sampler.walk(problem, fit)
    return torch.stack([truth.flat([m.params[n] for n in problem.params]) for m in members])


def test_draws_have_the_mean_and_the_covariance():
    problem = case()[0].problem
    root = root_of(problem)
    moves = drawn(GaussianDraws(root, NUM)) - truth.flat(dict(problem.params))

    covariance = root @ root.T
    errors = (covariance.diagonal() / NUM).sqrt()
    assert (moves.mean(0).abs() / errors).max() < 5
    spread = covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()
    found = moves.T @ moves / NUM
    assert ((found - covariance).abs() / (spread / NUM).sqrt()).max() < 5
    assert torch.linalg.matrix_rank(moves) == 3


def test_draws_follow_the_seed_and_more_draws_begin_with_the_same_ones():
    root = root_of(case()[0].problem)
    first = drawn(GaussianDraws(root, 5))
    assert torch.equal(first, drawn(GaussianDraws(root, 9))[:5])
    assert not torch.allclose(first, drawn(GaussianDraws(root, 5, seed=1)))


def test_each_draw_is_a_chain_of_its_own_with_the_buffers_of_the_network():
    found, fit = case()
    members = list(GaussianDraws(root_of(found.problem), 3).walk(found.problem, fit))
    assert [(m.chain, m.stage, m.seen) for m in members] == [(i, 0, None) for i in range(3)]
    for member in members:
        assert member.params.keys() == {*found.problem.params, *found.problem.buffers}
        for name, value in found.problem.buffers.items():
            assert torch.equal(member.params[name], value)


def test_checkpoints_come_in_order_with_their_buffers_and_nothing_foreign():
    found, fit = case()
    known = {**found.problem.params, **found.problem.buffers}
    states = [{**{n: v + i for n, v in known.items()}, "epoch": torch.ones(1)} for i in range(3)]
    members = list(Checkpoints(states).walk(found.problem, fit))
    assert [(m.chain, m.stage) for m in members] == [(0, 0), (0, 1), (0, 2)]
    for i, member in enumerate(members):
        assert member.params.keys() == known.keys()
        assert all(torch.equal(member.params[n], v + i) for n, v in known.items())


def test_checkpoints_of_another_network_are_refused():
    found, fit = case()
    whole = {**found.problem.params, **found.problem.buffers}
    missing = {n: v for n, v in whole.items() if n != "3.bias"}
    reshaped = {**whole, "0.weight": torch.ones(9, 9)}
    for state, said in ((missing, "has nothing for '3.bias'"), (reshaped, r"has \(9, 9\) for '0")):
        with pytest.raises(ValueError, match=f"checkpoint 1 {said}"):
            list(Checkpoints([whole, state]).walk(found.problem, fit))


def test_all_of_them_are_samplers():
    samplers = (GaussianDraws(torch.ones(1, 1)), Checkpoints([]), GeometricEnsemble())
    assert all(isinstance(sampler, Sampler) for sampler in samplers)
    assert Checkpoints([{}, {}]).members == 2

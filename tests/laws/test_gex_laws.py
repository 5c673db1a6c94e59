"""Laws of influence over members: the kernel of losses, its limits, and GEX on every case.

Where a law is about a Gaussian over parameters, its members are not drawn: a few points with equal
weights have exactly its second moment, so that the law holds to rounding.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.influence import (
    GEX,
    CovarianceInfluence,
    LossCovariance,
    LossTable,
    covariance,
    loss_there,
    product_of_means,
    tangents,
    there_minus_here,
    uncentered_moment,
)
from afterfit.influence.covariance import (
    cross_influence,
    self_influence,
)
from afterfit.problem import Batches, Gaussian, Problem
from afterfit.sampling import Checkpoints, GaussianDraws
from tests import cases, truth
from tests.cases import CASES, Case, name_of, select

EXACT = {"rtol": 1e-9, "atol": 1e-10}
ORDER = torch.tensor([3, 0, 6, 2, 5, 1, 4])
QUERY = torch.tensor([5, 0, 2, 2])
MOVES, MOMENTS = (there_minus_here, loss_there), (uncentered_moment, covariance, product_of_means)
every_kernel = [
    pytest.mark.parametrize("move", MOVES),
    pytest.mark.parametrize("moment", MOMENTS),
]


def kernels(test: Callable[..., None]) -> Callable[..., None]:
    """Try a law with every move and every moment."""
    for mark in every_kernel:
        test = mark(test)
    return test


def drawn(num: int, size: int, seed: int) -> LossTable:
    generator = Generator().manual_seed(seed)
    trained = torch.rand(size, generator=generator, dtype=torch.float64)
    columns = torch.rand(size, num, generator=generator, dtype=torch.float64) * 3
    return LossTable(trained, columns, torch.arange(num))


# The kernel of a table ----------------------------------------------------------------------------

shapes = given(num=st.integers(2, 9), size=st.integers(1, 12), seed=st.integers(0, 2**31))
few = settings(max_examples=15, deadline=None, derandomize=True)


@kernels
@few
@shapes
def test_the_kernel_is_psd_of_rank_at_most_the_members(move, moment, num, size, seed):
    table = drawn(num, size, seed)
    kernel = cross_influence(table, table, move, moment)
    most = {uncentered_moment: num, covariance: num - 1, product_of_means: 1}[moment]
    assert_close(kernel, kernel.T, **EXACT)
    assert torch.linalg.eigvalsh(kernel).min() > -1e-12 * kernel.diagonal().max()
    assert torch.linalg.matrix_rank(kernel, rtol=1e-9, hermitian=True) <= most


@kernels
@few
@shapes
def test_self_influence_is_the_diagonal(move, moment, num, size, seed):
    table = drawn(num, size, seed)
    kernel = cross_influence(table, table, move, moment)
    assert_close(self_influence(table, move, moment), kernel.diagonal(), **EXACT)
    assert bool((self_influence(table, move, moment) >= 0).all())


@kernels
@few
@shapes
def test_permuting_samples_permutes_and_permuting_members_does_nothing(
    move, moment, num, size, seed
):
    table, generator = drawn(num, size, seed), Generator().manual_seed(seed)
    samples = torch.randperm(size, generator=generator)
    members = torch.randperm(num, generator=generator)
    kernel = cross_influence(table, table, move, moment)
    rows = table.rows(samples)
    assert_close(cross_influence(rows, rows, move, moment), kernel[samples][:, samples], **EXACT)
    shuffled = replace(table, columns=table.columns[:, members])
    assert_close(cross_influence(shuffled, shuffled, move, moment), kernel, **EXACT)


@few
@shapes
def test_the_second_moment_is_covariance_and_drift(num, size, seed):
    table = drawn(num, size, seed)
    parts = [cross_influence(table, table, there_minus_here, moment) for moment in MOMENTS]
    assert_close(parts[0], parts[1] * (num - 1) / num + parts[2], **EXACT)


# The influence function, in the limit -------------------------------------------------------------


def inverse_curvature(case: Case, damping: float) -> Tensor:
    mean = truth.ggn(case.problem, case.data) / case.data.num_samples
    return torch.linalg.inv(mean + damping * torch.eye(len(mean), dtype=mean.dtype))


def points(problem: Problem, matrix: Tensor) -> Checkpoints:
    """2P points θ ± √P L eᵢ: their second moment about θ is L Lᵀ, exactly."""
    steps = torch.linalg.cholesky(matrix).T * len(matrix) ** 0.5
    center = truth.flat(dict(problem.params))
    vectors = [center + sign * step for step in steps for sign in (1, -1)]
    return Checkpoints([truth.along(problem, vector) for vector in vectors])


def linear_influence(points: Any, case: Case) -> CovarianceInfluence:
    method = LossCovariance(points, observe=tangents, cross_moment=uncentered_moment)
    return method.fit(case.problem, case.data)


SMALL = [
    replace(case, data=Batches(case.data, 7))
    for case in select("categorical", "gaussian", "poisson", "multi-label")
    if case.problem.num_params < 50
]


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_tangents_with_the_moment_of_laplace_are_the_influence_function(case: Case):
    found = linear_influence(points(case.problem, inverse_curvature(case, 0.3)), case)
    query = case.data.subset(QUERY)
    exact = truth.influence(case.problem, case.data, query, 0.3, truth.ggn)
    assert_close(found.scores(query), exact, **EXACT)
    full = truth.influence(case.problem, case.data, case.data, 0.3, truth.ggn)
    assert_close(found.self_scores(), full.diagonal(), **EXACT)


@pytest.mark.parametrize("name", ["linear-categorical", "linear-poisson"])
def test_tangents_over_laplace_draws_come_close_to_it_as_the_errors_say(name: str):
    (case,) = (c for c in SMALL if c.name == name)
    root = torch.linalg.cholesky(inverse_curvature(case, 0.3))
    exact = truth.influence(case.problem, case.data, case.data, 0.3, truth.ggn)
    errors = []
    for num in (25, 400):
        scores = linear_influence(GaussianDraws(root, num), case).cross_influence(case.data)
        assert bool(((scores.value - exact).abs() < 5 * scores.stderr + 1e-12).all())
        errors.append(float(scores.stderr.mean()))
    assert 2.5 < errors[0] / errors[1] < 6  # four, were the errors known


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_at_low_temperature_secants_are_tangents(case: Case):
    """The difference over τ falls as τ: the points lie on both sides of the trained network."""
    matrix, differences = inverse_curvature(case, 0.3), []
    for tau in (1e-4, 1e-6):
        chosen = Checkpoints(points(case.problem, tau * matrix).states[:8])
        secants = LossCovariance(chosen, cross_moment=uncentered_moment).fit(
            case.problem, case.data
        )
        linear = linear_influence(chosen, case)
        gap = secants.scores(case.data) - linear.scores(case.data)
        differences.append(float(gap.abs().max()) / tau)
    assert differences[1] < 0.05 * differences[0]


def test_on_ridge_it_tells_what_leaving_one_out_does(generator: Generator):
    """Sign and size of the change of a query's loss, against training again without a sample."""
    penalty, num = 0.5, 60

    def sample(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 3, dtype=torch.float64, generator=generator)
        return x, x.sum(1) + torch.randn(size, dtype=torch.float64, generator=generator)

    train, query = sample(num), sample(8)
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(truth.ridge(*train, penalty)[None])
    problem = Problem.from_module(net, Gaussian())
    data, asked = (Batches((x, y[:, None])) for x, y in (train, query))
    case = Case("ridge", problem, data)
    matrix = num * torch.linalg.inv(
        truth.ggn(problem, data) + penalty * torch.eye(3, dtype=torch.float64)
    )

    found = linear_influence(points(problem, matrix), case).scores(asked) / num

    exact = truth.ridge_leave_one_out(*train, *query, penalty)
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.99
    large = exact.abs() > exact.abs().median()
    assert bool((found.sign() == exact.sign())[large].all())


# Members of a walk --------------------------------------------------------------------------------

QUICK = GEX(members=3, steps=2, learning_rate=0.05, batch_size=4)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_gex_scores_every_kind_of_network_and_loss(case: Case):
    found = QUICK.fit(case.problem, case.data)
    own, cross = found.self_influence(), found.cross_influence(case.data.subset(QUERY))
    assert own.value.shape == own.stderr.shape == (7,)
    assert cross.value.shape == cross.stderr.shape == (4, 7)
    for values in (own.value, own.stderr, cross.value, cross.stderr):
        assert bool(torch.isfinite(values).all())
    assert bool((own.value >= 0).all())
    assert float(own.value.max()) > 0


@pytest.mark.parametrize("case", select("categorical"), ids=name_of)
def test_scores_do_not_depend_on_batch_size_or_order(case: Case):
    chosen = points(case.problem, 0.01 * torch.eye(case.problem.num_params).double())
    method = LossCovariance(replace(chosen, states=chosen.states[:6]))
    found = method.fit(case.problem, case.data)
    query = case.data.subset(QUERY)
    for batch_size in (1, 2, 7):
        other = method.fit(case.problem, Batches(case.data, batch_size))
        asked = Batches(query, batch_size)
        assert_close(other.self_scores(), found.self_scores(), **EXACT)
        assert_close(other.scores(asked), found.scores(query), **EXACT)
    permuted = method.fit(case.problem, case.data.subset(ORDER))
    assert_close(permuted.self_scores(), found.self_scores()[ORDER], **EXACT)
    assert_close(permuted.scores(query), found.scores(query)[:, ORDER], **EXACT)


UNTOUCHED = """
import copy, random, sys, warnings
import numpy as np, torch
from afterfit import GEX, Problem, Unlearning, find_label_issues
from cases import LIKELIHOODS, NETWORKS, make_data, make_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

def state(module, optimizer):
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    kept = {n: (id(t), t._version, t.requires_grad, t.detach().clone(),
                None if getattr(t, "grad", None) is None else t.grad.clone())
            for n, t in tensors.items()}
    modes = [part.training for part in module.modules()]
    hooks = [sorted(getattr(part, kind)) for part in module.modules() for kind in HOOKS]
    slots = [v.clone() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return kept, modes, hooks, slots, copy.deepcopy(groups)

def same(a, b):
    if torch.is_tensor(a) and torch.is_tensor(b):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b

def randomness():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

for network in NETWORKS:
    module, data = make_module(network, "categorical"), make_data(network, "categorical")
    fired = []
    for part in module.modules():
        part.register_forward_hook(lambda *_: fired.append(1))
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    _, inputs, targets = data.fetch(torch.arange(7))
    found = module(**inputs)["logits"] if isinstance(inputs, dict) else module(inputs)
    torch.nn.functional.cross_entropy(found, targets).backward()
    optimizer.step()
    fired.clear()
    before, seeds = state(module, optimizer), randomness()
    problem = Problem.from_module(module, LIKELIHOODS["categorical"].likelihood)
    point = {n: v.clone() for n, v in {**problem.params, **problem.buffers}.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = GEX(members=2, steps=2, max_trials=2, batch_size=4)
        influence = method.fit(problem, data)
        influence.scores(data), influence.self_influence(), influence.mean_scores(data)
        find_label_issues(problem, data, method)
        many = data.subset(torch.arange(70) % 7)
        walks = Unlearning(rates=(0.01, 0.02, 0.04, 0.08), epochs=0.1)
        evidence = walks.fit(problem, many)
        assert evidence.influence is not None  # it has walked
        find_label_issues(problem, data, Unlearning())
    assert same(before, state(module, optimizer)), network
    assert same(seeds, randomness()), network
    assert same(point, {**problem.params, **problem.buffers}), network
    assert not fired, network
"""


def test_module_optimizer_and_random_state_of_the_user_stay_as_they_were():
    """In a process apart: the run-time checks of types draw from Python's own generator."""
    paths = os.pathsep.join([str(Path(cases.__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", UNTOUCHED], env=environment, check=True)

"""The covariance engine against closed forms, and GEX on data whose wrong labels are known."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Generator, nn

from afterfit.curvature import ggn
from afterfit.evaluate import auc, average_precision
from afterfit.influence import (
    GEX,
    LossCovariance,
    LossTable,
    covariance,
    loss_there,
    product_of_means,
    published_gex,
    tangents,
    there_minus_floored_here,
    there_minus_here,
    uncentered_moment,
)
from afterfit.influence.covariance import (
    cross_influence,
    reliability,
    self_influence,
    self_influence_with_stderr,
)
from afterfit.influence.simple import gradient_norm_scores
from afterfit.influence.tracin import gradient_norms
from afterfit.problem import Batches, Categorical, Gaussian, Problem, gradients, losses
from afterfit.sampling import GaussianDraws
from tests.listening import heard_by


def draws(num: int, seed: int = 0) -> LossTable:
    """A table of N = 5 samples whose true second moment is known from many columns."""
    generator = Generator().manual_seed(seed)
    base = torch.rand(5, generator=generator, dtype=torch.float64)
    root = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, num, generator=generator, dtype=torch.float64)
    return LossTable(base, base[:, None] + root @ noise + 0.3, torch.arange(num))


def ridge(num: int = 12) -> tuple[Problem, Batches]:
    generator = Generator().manual_seed(2)
    x = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]).double()
    y = y + 0.3 * torch.randn(num, 1, generator=generator, dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return Problem.from_module(net, Gaussian()), Batches((x, y), 5)


def noisy_digits(num: int = 400) -> tuple[Problem, Batches, torch.Tensor]:
    """A network that has memorized digits, a tenth of them with a wrong label."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    generator = Generator().manual_seed(0)
    x = torch.tensor(pixels[:num] / 16).float()
    clean = torch.tensor(target[:num])
    wrong = torch.rand(num, generator=generator) < 0.1
    y = torch.where(wrong, (clean + torch.randint(1, 10, (num,), generator=generator)) % 10, clean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Problem.from_module(net, Categorical()), Batches((x, y), 128), wrong


@pytest.fixture(scope="module")
def memorized():
    return noisy_digits()


def test_squared_loss_has_the_closed_form_of_its_moments():
    """Moves -r a + a²/2 of squared losses under a Gaussian: means of products by hand."""
    generator = Generator().manual_seed(3)
    r, s = torch.tensor([0.7, -1.1]).double(), torch.tensor([[1.0, 0.4], [0.4, 2.0]]).double()
    a = torch.linalg.cholesky(s) @ torch.randn(2, 400_000, generator=generator).double()
    table = LossTable(0.5 * r.square(), 0.5 * (r[:, None] - a).square(), torch.arange(400_000))
    c, ss = s[0, 1], s[0, 0] * s[1, 1]
    second = cross_influence(table, table, there_minus_here, uncentered_moment)
    centered = cross_influence(table, table, there_minus_here, covariance)
    moves = there_minus_here(table)
    error = (moves[0] * moves[1]).std() / 400_000**0.5
    assert abs(second[0, 1] - (r[0] * r[1] * c + (ss + 2 * c**2) / 4)) < 5 * error
    assert abs(centered[0, 1] - (r[0] * r[1] * c + c**2 / 2)) < 5 * error


def test_tangents_over_laplace_draws_converge_to_the_influence_function():
    problem, data = ridge()
    hessian = ggn(problem, data).to_dense().double()
    root = torch.linalg.cholesky(torch.linalg.inv(hessian))
    rows = torch.cat([g for _, g in gradients(problem, data)])
    exact = rows @ torch.linalg.solve(hessian, rows.T)
    for num in (25, 100):
        method = LossCovariance(
            GaussianDraws(root, num), observe=tangents, cross_moment=uncentered_moment
        )
        found = method.fit(problem, data).cross_influence(data)
        assert bool(((found.value - exact).abs() < 5 * found.stderr + 1e-12).all())
        assert float(found.stderr.max()) < 20 * float(exact.max()) / num**0.5


def test_small_draws_make_secants_tangents():
    problem, data = ridge()
    root = 1e-5 * torch.eye(3).double()
    moved = LossCovariance(GaussianDraws(root, 50)).fit(problem, data).self_scores()
    linear = LossCovariance(GaussianDraws(root, 50), observe=tangents).fit(problem, data)
    torch.testing.assert_close(moved, linear.self_scores(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("move", [there_minus_here, loss_there])
@pytest.mark.parametrize("moment", [uncentered_moment, covariance, product_of_means])
def test_the_kernel_is_psd_of_low_rank_with_self_influence_on_its_diagonal(move, moment):
    table = draws(4)
    kernel = cross_influence(table, table, move, moment)
    torch.testing.assert_close(kernel.diagonal(), self_influence(table, move, moment))
    values = torch.linalg.eigvalsh(kernel)
    assert values.min() > -1e-12
    assert int((values > 1e-10).sum()) <= 4


def test_second_moment_is_covariance_and_product_of_means():
    table = draws(6)
    parts = [
        cross_influence(table, table, there_minus_here, m)
        for m in (uncentered_moment, covariance, product_of_means)
    ]
    torch.testing.assert_close(parts[0], parts[1] * 5 / 6 + parts[2])


def test_jackknife_of_a_mean_is_its_standard_error_and_falls_with_the_root():
    errors = []
    for num in (50, 800):
        table = draws(num)
        found = self_influence_with_stderr(table, there_minus_here, uncentered_moment)
        spread = there_minus_here(table).square().std(1) / num**0.5
        torch.testing.assert_close(found.stderr, spread)
        errors.append(float(found.stderr.mean()))
    assert 3 < errors[0] / errors[1] < 5.5


def test_reliability_tells_agreement_from_noise():
    same = torch.arange(200.0).double()[:, None].expand(200, 8)
    noise = torch.randn(200, 8, generator=Generator().manual_seed(0), dtype=torch.float64)
    zero = torch.zeros(200).double()
    assert (
        reliability(LossTable(zero, same, torch.arange(8)), there_minus_here, uncentered_moment)
        > 0.99
    )
    assert (
        abs(
            reliability(
                LossTable(zero, noise, torch.arange(8)), there_minus_here, uncentered_moment
            )
        )
        < 0.4
    )


def test_the_floor_turns_the_ranking_of_memorized_members_around():
    """T10: members that are as memorized as the network, and the authors' floor of 0.05."""
    base = torch.linspace(0.0001, 0.04, 100)
    table = LossTable(base, base[:, None] * torch.tensor([1.1, 1.2]), torch.arange(2))
    wrong = base > 0.036
    assert auc(self_influence(table, there_minus_here, uncentered_moment), wrong) == 1
    assert (
        auc(self_influence(table, there_minus_floored_here(0.05), uncentered_moment), wrong) < 0.2
    )


def test_gex_finds_memorized_labels_where_bilinear_scores_do_not(memorized):
    problem, data, wrong = memorized
    assert losses(problem, data).max() < 0.2
    found = GEX().fit(problem, data)
    ap = average_precision(found.self_scores(), wrong)
    assert ap > 0.9
    assert ap > average_precision(gradient_norms(problem, data), wrong) + 0.2
    assert ap > average_precision(gradient_norm_scores(problem, data), wrong) + 0.2
    assert found.reliability() > 0.8
    assert found.search is not None
    assert found.search.found


def test_scores_do_not_depend_on_batches_or_on_order(memorized):
    problem, data, _ = memorized
    method = LossCovariance(GaussianDraws(0.01 * torch.eye(problem.num_params)[:, :9], 6))
    scores = method.fit(problem, data).self_scores()
    order = torch.randperm(data.num_samples, generator=Generator().manual_seed(1))
    other = method.fit(problem, Batches(data.subset(order), 33)).self_scores()
    torch.testing.assert_close(other, scores[order], rtol=1e-4, atol=1e-7)


def test_groups_blocks_and_means_are_sums_of_scores(memorized):
    problem, data, _ = memorized
    found = GEX(members=3, steps=3, learning_rate=0.4).fit(problem, data)
    query = found.observe(data.subset(torch.arange(7)))
    scores = found.scores(query)
    assert scores.shape == (7, 400)
    near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # sums in float32
    near(found.scores(data.subset(torch.arange(7))), scores)
    near(found.mean_scores(query), scores.mean(0))
    groups = [torch.tensor([1, 2]), torch.tensor([3])]
    near(found.group_scores(groups, query)[:, 1], scores[:, 3])
    near(found.block(torch.arange(7), torch.arange(400)), scores)


def test_members_can_be_added_and_the_first_ones_stay(memorized):
    problem, data, _ = memorized
    found = GEX(members=2, steps=3, learning_rate=0.4).fit(problem, data)
    more = found.extend(2)
    assert len(more.ensemble) == 4
    torch.testing.assert_close(more.table.columns[:, :2], found.table.columns[:, :2])


def test_aggregated_second_moment_warns_of_its_sign(memorized):
    problem, data, _ = memorized
    found = GEX(members=2, steps=4, learning_rate=0.8, cross_moment=uncentered_moment)
    with pytest.warns(UserWarning, match="sign"):
        found.fit(problem, data).mean_scores(data)


def test_a_run_that_was_killed_goes_on_where_it_was(memorized, tmp_path):
    problem, data, _ = memorized
    method = GEX(members=3, steps=3, max_trials=2)
    whole = method.fit(problem, data).self_scores()

    def die(line: str) -> None:
        if line.startswith("member 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), heard_by(die):
        method.fit(problem, data, folder=tmp_path)
    assert json.loads((tmp_path / "search.json").read_text())["trials"]
    told: list[str] = []
    with heard_by(told.append):
        resumed = method.fit(problem, data, folder=tmp_path)
    assert not any("separability" in line for line in told)
    torch.testing.assert_close(resumed.self_scores(), whole)
    with pytest.raises(ValueError, match="another run"):
        replace(method, seed=1).fit(problem, data, folder=tmp_path)


def test_the_published_settings_are_those_of_the_authors():
    method = published_gex()
    assert (method.members, method.steps, method.learning_rate, method.chains) == (32, 800, 0.05, 8)
    table = LossTable(torch.tensor([0.0]), torch.tensor([[1.0]]), torch.arange(1))
    assert method.move(table) == pytest.approx(0.95)


def test_nothing_of_the_user_is_changed_and_random_state_is_kept(memorized):
    problem, data, _ = memorized
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = {n: v.clone() for n, v in problem.params.items()}
    GEX(members=2, steps=3, max_trials=2).fit(problem, data).scores(data.subset(torch.arange(3)))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert all(torch.equal(before[n], v) for n, v in problem.params.items())


@pytest.mark.parametrize("settings", [{"learning_rate": -1.0}, {"max_trials": 0}, {"members": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        partial(GEX, **settings)()

import math

import pytest
import torch
from torch import Generator, nn
from torch.testing import assert_close

from afterfit.posterior import dropout_outputs, has_dropout
from afterfit.problem import (
    Batches,
    Categorical,
    Gaussian,
    Problem,
    connectivity,
    losses,
    outputs,
)
from afterfit.sampling import GeometricEnsemble
from afterfit.workflows import (
    LinearizedLaplace,
    WalkedEnsemble,
    calibrate,
    temperature_scaling,
    trained_network,
)
from tests.cases import make_case

QUICK = WalkedEnsemble((0.01, 0.1), GeometricEnsemble(members=3, steps=5))


def task(seed: int, num: int, classes: int = 3) -> Batches:
    """Noisy labels of a linear rule."""
    generator = Generator().manual_seed(seed)
    x = torch.randn(num, 4, generator=generator)
    logits = x[:, :classes] * 1.5
    y = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return Batches((x, y), 64)


def overconfident(dropout: float = 0.0) -> Problem:
    """A network fitted to the last bit of its noisy labels, its logits then made three times."""
    train = task(0, 80)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(
            nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
        ).train(mode=False)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        (_, x, y) = train.fetch(torch.arange(80))
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
    return Problem.from_module(module, Categorical())


def test_every_way_is_compared_and_the_best_is_kept(random_state_is_kept: None):
    problem, train, validation, test = overconfident(0.2), task(0, 80), task(1, 200), task(2, 300)
    ways = {
        "MAP": trained_network,
        "temperature": temperature_scaling,
        "members": QUICK,
        "LL": LinearizedLaplace(lambda p: p),
        "CL": LinearizedLaplace(connectivity),
    }
    found = calibrate(problem, train, validation, test, ways)
    assert set(found.table.index) == set(ways)
    assert found.best == found.table["nll"].idxmin() == found.table.index[0]
    plain = float(losses(problem, validation).mean())
    assert_close(found.table.loc["MAP", "nll"], plain, rtol=1e-5, atol=0)
    for name in ("temperature", "LL", "CL"):
        assert found.table.loc[name, "nll"] < plain - 0.1
        assert found.table.loc[name, "test_nll"] < found.table.loc["MAP", "test_nll"]
        assert found.table.loc[name, "ece"] < found.table.loc["MAP", "ece"]
    expected = found.predictors[found.best].predict(test).mean
    assert torch.equal(found.predict(test).mean, expected)
    assert_close(
        found.table.loc[found.best, "test_nll"],
        float(found.predict(test).losses(test.targets()).mean()),
    )


def test_the_default_ways_have_dropout_only_where_the_network_has():
    data = task(0, 4)
    assert has_dropout(overconfident(0.2), data)
    assert not has_dropout(overconfident(0.0), data)


def test_dropout_is_on_and_the_statistics_of_normalization_stay():
    case = make_case("batch-norm", "gaussian")
    assert torch.equal(
        dropout_outputs(case.problem, case.data, 2)[1], outputs(case.problem, case.data)
    )
    for name in ("mlp", "cnn", "token-bag"):
        case = make_case(name, "gaussian")
        first, second = dropout_outputs(case.problem, case.data, 2)
        assert not torch.equal(first, second)
        again, other = (dropout_outputs(case.problem, case.data, 1, seed) for seed in (0, 1))
        assert torch.equal(again[0], first)
        assert not torch.equal(other, again)


def test_dropout_has_the_mean_of_the_network_where_it_is_linear():
    module = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2)).double()
    problem = Problem.from_module(module, Gaussian())
    x = torch.randn(3, 4, generator=Generator(), dtype=torch.float64)
    rows = dropout_outputs(problem, Batches((x, torch.zeros(3, 2))), 3000)
    stderr = rows.std(0) / math.sqrt(3000)
    exact = outputs(problem, Batches((x, torch.zeros(3, 2))))
    assert bool(((rows.mean(0) - exact).abs() < 5 * stderr).all())


def test_the_temperature_is_where_the_held_out_loss_is_least():
    problem, validation = overconfident(), task(1, 200)
    found = temperature_scaling(problem, task(0, 80), validation)
    temperature = float(found.chosen.split()[1])
    rows, y = outputs(problem, validation), validation.targets()
    least = float(found.predict(validation).losses(y).mean())
    assert temperature > 1
    for factor in (0.8, 1.25):
        other = Categorical().loss(rows / (temperature * factor), y).mean()
        assert float(other) > least


@pytest.mark.parametrize("sigma", [0.3, 4.0])
def test_the_noise_of_a_regression_is_scaled(sigma: float):
    generator = Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=generator)
    module = nn.Linear(2, 1)
    y = module(x).detach() + sigma * torch.randn(400, 1, generator=generator)
    problem = Problem.from_module(module, Gaussian())
    data = Batches((x, y), 100)
    found = temperature_scaling(problem, data, data)
    assert_close(float(found.predict(data).variance.mean()), sigma**2, rtol=0.2, atol=0)
    table = calibrate(problem, data, data, None, {"T": temperature_scaling}).table
    assert 0.85 < table.loc["T", "coverage90"] < 0.95
    ways = {"CL": LinearizedLaplace(connectivity)}
    assert 0.85 < calibrate(problem, data, data, None, ways).table.loc["CL", "coverage90"] < 0.95


def test_counts_are_compared_by_their_loss():
    case = make_case("mlp", "poisson")
    ways = {"MAP": trained_network, "CL": LinearizedLaplace(connectivity, scales=(0.01, 1.0))}
    table = calibrate(case.problem, case.data, case.data, None, ways).table
    assert bool(table["nll"].notna().all())


def test_no_way_is_refused():
    with pytest.raises(ValueError, match="no candidates"):
        calibrate(overconfident(), task(0, 8), task(1, 8), None, {})


def test_rates_at_which_all_diverges_are_refused():
    hopeless = WalkedEnsemble((1e30,), GeometricEnsemble(members=1, steps=20, clip=None))
    with pytest.raises(ValueError, match="give lower ones"):
        hopeless(overconfident(), task(0, 80), task(1, 20))

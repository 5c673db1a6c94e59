import pytest
import torch
from torch import Generator, nn

from afterfit.evaluate import granulated, kendall
from afterfit.problem import Batches, Gaussian, Problem
from afterfit.sharpness import connectivity_sharpness, squared_norm
from afterfit.workflows.compare import compare, generalization_gap

AXES = {"width": [2, 2, 4, 4], "scale": [1.0, 3.0, 1.0, 3.0]}


def problems():
    for width, scale in zip(*AXES.values(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(width)
            module = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).double()
        with torch.no_grad():  # the same function at another scale
            module[0].weight.mul_(scale)
            module[0].bias.mul_(scale)
            module[2].weight.div_(scale)
        yield Problem.from_module(module, Gaussian())


def make_data(seed: int) -> Batches:
    generator = Generator().manual_seed(seed)
    x = torch.randn(10, 3, dtype=torch.float64, generator=generator)
    return Batches((x, torch.randn(10, 2, dtype=torch.float64, generator=generator)), 4)


TARGET = torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_networks_of_one_function_tie_by_connectivity_and_not_by_norm():
    found = compare(problems(), make_data(0), TARGET, axes=AXES, num_resamples=50)
    sharp = found.table["connectivity sharpness"]
    assert sharp[0] == pytest.approx(sharp[1], rel=1e-10)
    assert abs(found.table["squared norm"][1] / found.table["squared norm"][0] - 1) > 0.01
    assert found.invariances["connectivity sharpness"] > found.invariances["squared norm"]


def test_correlations_are_those_of_the_columns_with_intervals_around_them():
    found = compare(problems(), make_data(0), TARGET, axes=AXES, num_resamples=200)
    for name, row in found.correlations.iterrows():
        column = torch.tensor(found.table[name].to_numpy())
        assert row["kendall"] == pytest.approx(kendall(column, TARGET))
        whole = granulated(column, TARGET, AXES)
        assert row["granulated"] == pytest.approx(whole.value)
        assert row["psi width"] == pytest.approx(whole.by_axis["width"])
        assert row["low"] <= row["kendall"] <= row["high"]


def test_a_comparison_without_a_target_ranks():
    found = compare(problems(), make_data(0), names=list("abcd"))
    assert found.correlations.empty
    ranked = found.ranked("squared norm")
    assert ranked["squared norm"].is_monotonic_increasing
    assert set(ranked["name"]) == set("abcd")


def test_the_same_seed_gives_the_same_intervals():
    first, second = (compare(problems(), make_data(0), TARGET, num_resamples=50) for _ in range(2))
    assert first.correlations.equals(second.correlations)
    assert "granulated" not in first.correlations


def test_measures_of_ones_own_take_part():
    own = {"sharp": connectivity_sharpness, "norm": lambda p, d: squared_norm(p, d).total}
    found = compare(problems(), make_data(0), TARGET, measures=own, num_resamples=20)
    assert list(found.correlations.index) == ["sharp", "norm"]
    assert found.invariances["norm"] == frozenset()


def test_the_gap_is_the_difference_of_mean_losses():
    problem = next(iter(problems()))
    train, test = make_data(0), make_data(1)
    expected = [
        problem.likelihood.loss(
            problem.forward(problem.params, data.fetch(torch.arange(10)).inputs), data.targets()
        ).mean()
        for data in (train, test)
    ]
    found = generalization_gap(problem, train, test)
    assert found == pytest.approx(float(expected[1] - expected[0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": TARGET[:2]}, "'target': 2"),
        ({"axes": {"width": [1]}}, "axis 'width'"),
        ({"names": ["a"]}, "'names': 1"),
        ({"measures": {"bad": lambda p, d: float("nan")}}, "'bad' gave nan"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(changes, words):
    with pytest.raises(ValueError, match=words):
        compare(problems(), make_data(0), **changes)


def test_one_network_is_no_comparison():
    with pytest.raises(ValueError, match="at least 2"):
        compare([next(iter(problems()))], make_data(0))

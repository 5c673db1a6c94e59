"""Random projections: unbiased within their own error, and the sketch they say they are."""

import pytest
import torch
from torch import Generator, nn

from afterfit.influence.projected import RandomProjection
from afterfit.influence.tracin import GradientDot, TracIn
from afterfit.problem import Batches, Categorical, Problem


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def network(seed=0):
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    weights = {name: draws(*p.shape, seed=seed + p.ndim) for name, p in net.named_parameters()}
    net.load_state_dict(weights)
    return net


def samples(num=8, batch_size=3, seed=3):
    return Batches((draws(num, 3, seed=seed), torch.arange(num) % 3), batch_size=batch_size)


PROBLEM, TRAIN, QUERY = Problem.from_module(network(), Categorical()), samples(), samples(5, seed=9)


def columns(influence, data):
    """One independent estimate for every projection, (K checkpoints, samples, d)."""
    rows = torch.cat([rows for _, rows in influence.features(data)])
    parts = rows.unflatten(1, (-1, NUM_DRAWS)) * NUM_DRAWS**0.5
    return parts.transpose(0, 1)


NUM_DRAWS = 3000


def errors_in_stderr(draws, exact):
    return (draws.mean(-1) - exact).abs() / (draws.std(-1) / NUM_DRAWS**0.5)


def pair_draws(influence):
    """Products of projections of queries and training samples, summed over checkpoints."""
    query, train = columns(influence, QUERY), columns(influence, TRAIN)
    return (query[:, :, None] * train[:, None]).sum(0)


def test_scores_are_unbiased_for_the_gradient_dot_product():
    influence = RandomProjection(NUM_DRAWS).fit(PROBLEM, TRAIN)

    exact = GradientDot().fit(PROBLEM, TRAIN).scores(QUERY)
    assert torch.allclose(influence.scores(QUERY), pair_draws(influence).mean(-1), atol=1e-10)
    assert float(errors_in_stderr(pair_draws(influence), exact).max()) < 5


def test_with_checkpoints_scores_are_unbiased_for_tracin():
    checkpoints, rates = [network(seed).state_dict() for seed in (0, 20)], [0.2, 0.5]

    influence = RandomProjection(NUM_DRAWS, checkpoints=checkpoints, learning_rates=rates).fit(
        PROBLEM, TRAIN
    )

    exact = TracIn(checkpoints, rates).fit(PROBLEM, TRAIN).scores(QUERY)
    assert torch.allclose(influence.scores(QUERY), pair_draws(influence).mean(-1), atol=1e-10)
    assert float(errors_in_stderr(pair_draws(influence), exact).max()) < 5


def test_relative_error_of_self_influence_is_the_root_of_two_over_d():
    own = columns(RandomProjection(NUM_DRAWS).fit(PROBLEM, TRAIN), TRAIN)[0].square()

    of_one = own.std(-1) / own.mean(-1)
    of_ten = own.unflatten(-1, (-1, 10)).mean(-1)

    # χ²₁ has relative variance 2; the variance of its sample variance gives the tolerance.
    assert float((of_one.square() / 2 - 1).abs().max()) < 5 * (14 / NUM_DRAWS) ** 0.5
    relative = of_ten.var(-1) / of_ten.mean(-1).square()
    assert float((relative / 0.2 - 1).abs().max()) < 5 * (3 * 10 / NUM_DRAWS) ** 0.5


def test_the_same_directions_serve_every_checkpoint():
    twice = RandomProjection(3, checkpoints=[network().state_dict()] * 2).fit(PROBLEM, TRAIN)
    once = RandomProjection(3).fit(PROBLEM, TRAIN)

    assert torch.allclose(twice.scores(QUERY), once.scores(QUERY), atol=1e-10)


def test_self_influence_is_the_diagonal_and_seeds_reproduce():
    one, same, other = (RandomProjection(6, seed).fit(PROBLEM, TRAIN) for seed in (1, 1, 2))

    assert torch.allclose(one.scores(TRAIN).diagonal(), one.self_scores(), atol=1e-10)
    assert torch.equal(one.scores(QUERY), same.scores(QUERY))
    assert not torch.allclose(one.scores(QUERY), other.scores(QUERY))


def test_users_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()

    RandomProjection(2).fit(PROBLEM, TRAIN).self_scores()

    assert torch.equal(torch.random.get_rng_state(), before)


def test_unusable_settings_are_refused():
    with pytest.raises(ValueError, match="num_projections is 0"):
        RandomProjection(0)
    with pytest.raises(ValueError, match="no checkpoints"):
        RandomProjection(2, checkpoints=[]).fit(PROBLEM, TRAIN)

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn
from torch.testing import assert_close

from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity
from afterfit.sharpness.certificate import Divergence, Scales, binary_kl, mcallester, seeger
from afterfit.sharpness.pacbayes import (
    _least,
    _Part,
    class_indices,
    kernel_basis,
    low_rank_pac_bayes_bound,
    pac_bayes_bound,
    require_unseen,
    ridge_mean,
    zero_mean,
)
from tests import truth

GRID = [Scales(0.01, 0.1), Scales(0.1, 0.1)]


def blobs(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = Generator().manual_seed(seed)
    classes = torch.arange(num) % 3
    centers = 3 * torch.eye(3, 4, dtype=torch.float64)
    return centers[classes] + torch.randn(num, 4, dtype=torch.float64, generator=generator), classes


def trained() -> nn.Module:
    """Squared loss on one-hot targets."""
    x, y = blobs(120, 0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (module(x) - nn.functional.one_hot(y, 3)).square().sum(1).mean().backward()
        optimizer.step()
    return module


MODULE = trained()
PROBLEM = Problem.from_module(MODULE, Categorical())
TRAIN, HELD_OUT = Batches(blobs(120, 0), 50), Batches(blobs(90, 1), 40)


def certify(**changes):
    arguments = {
        "problem": connectivity(PROBLEM), "train": TRAIN, "held_out": HELD_OUT, "scales": GRID,
        "generator": Generator().manual_seed(0),
    }  # fmt: skip
    return pac_bayes_bound(**{**arguments, **changes})


@pytest.mark.parametrize("num", [9, 90])
def test_the_basis_is_that_of_the_kernel_by_the_smaller_way(num: int):
    data = HELD_OUT.subset(torch.arange(num))
    basis = kernel_basis(connectivity(PROBLEM), data)
    assert basis.way == ("dual" if 3 * num <= PROBLEM.num_params else "primal")
    jacobian = truth.jacobian(PROBLEM, data).flatten(0, 1)
    jacobian = jacobian * truth.flat(dict(PROBLEM.params))
    built = basis.vectors * basis.eigenvalues @ basis.vectors.T
    assert_close(built, jacobian @ jacobian.T, rtol=1e-9, atol=1e-9)
    gram = basis.vectors.T @ basis.vectors
    assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("center", [zero_mean, ridge_mean])
def test_the_gibbs_risk_is_that_of_draws_from_the_dense_posterior(center):
    scale = Scales(0.5, 0.2)
    found = certify(scales=[scale], center=center, num_draws=400)
    relative = connectivity(PROBLEM)
    jacobian = truth.jacobian(relative, HELD_OUT).flatten(0, 1)
    outputs = truth.outputs(PROBLEM, HELD_OUT)
    residual = center(outputs, HELD_OUT.targets()).flatten()
    identity = torch.eye(jacobian.shape[1], dtype=torch.float64)
    precision = identity / scale.prior**2 + jacobian.T @ jacobian / scale.noise**2
    mean = torch.linalg.solve(precision, jacobian.T @ residual / scale.noise**2)
    draws = truth.laplace_draws(mean, precision, 400, Generator().manual_seed(1))
    logits = outputs + (draws @ jacobian.T).view(400, 90, 3)
    shares = (logits.argmax(2) != HELD_OUT.targets()).double().mean(1)
    error = 5 * float(shares.std()) / 20
    assert found.observed_risk == pytest.approx(float(shares.mean()), abs=error)
    prior = torch.distributions.MultivariateNormal(0 * mean, scale.prior**2 * identity)
    posterior = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    expected = float(torch.distributions.kl_divergence(posterior, prior))
    assert found.divergence.total == pytest.approx(expected, rel=1e-6)


def test_the_certificate_is_not_vacuous_for_a_network_that_generalizes_and_holds_on_new_data():
    found = certify()
    assert not found.is_vacuous
    assert found.observed_risk <= found.risk <= found.bound < 0.5
    x, y = blobs(2000, 2)
    error = float((MODULE(x).argmax(1) != y).double().mean())
    assert error < found.bound


def test_seeger_is_tighter_than_mcallester_and_a_grid_costs():
    assert certify(form=seeger).bound < certify(form=mcallester).bound
    one, many = certify(scales=GRID[:1]), certify(scales=GRID[:1] * 100)
    assert one.bound < many.bound
    assert (one.num_scales, many.num_scales) == (1, 100)


def test_the_connectivity_bound_ignores_rescaling_and_the_other_can_be_made_small():
    scaled = Problem.from_module(trained(), Categorical())
    hidden = {"0.weight": 8.0, "0.bias": 8.0, "2.weight": 1 / 8}
    params = {name: hidden.get(name, 1.0) * p for name, p in scaled.params.items()}
    scaled = replace(scaled, params=params)
    here, there = certify(), certify(problem=connectivity(scaled))
    assert there.bound == pytest.approx(here.bound, rel=1e-9)
    assert there.divergence.total == pytest.approx(here.divergence.total, rel=1e-9)
    plain, moved = certify(problem=PROBLEM), certify(problem=scaled)
    assert abs(moved.divergence.total / plain.divergence.total - 1) > 0.01


def test_a_prior_that_saw_the_data_is_refused_whatever_the_samples_are_called():
    x, y = blobs(120, 0)
    part = Batches((x[60:].clone(), y[60:]), ids=[f"new-{i}" for i in range(60)])
    with pytest.raises(ValueError, match=r"60 of 60 samples.*new-0.*prior has seen them"):
        certify(held_out=part)
    mixed = Batches((torch.cat([blobs(90, 1)[0], x[:1]]), torch.zeros(91).long()))
    with pytest.raises(ValueError, match="1 of 91"):
        certify(held_out=mixed)
    require_unseen(TRAIN, HELD_OUT)


def test_the_low_rank_posterior_has_the_divergence_of_its_covariance_and_a_bound():
    arguments = connectivity(PROBLEM), TRAIN, HELD_OUT, [Scales(0.05, 0.1)]
    found = low_rank_pac_bayes_bound(
        *arguments, Generator().manual_seed(0), num_directions=5, num_draws=200
    )
    jacobian = truth.jacobian(connectivity(PROBLEM), HELD_OUT).flatten(0, 1)
    values, vectors = torch.linalg.eigh(jacobian.T @ jacobian)
    top, v = values[-5:], vectors[:, -5:]
    narrow = torch.eye(len(values)).double() - v * (0.25 * top / (1 + 0.25 * top)) @ v.T
    mean = torch.zeros(len(values)).double()
    posterior = torch.distributions.MultivariateNormal(mean, 0.05**2 * narrow)
    prior = torch.distributions.MultivariateNormal(mean, 0.05**2 * torch.eye(len(mean)).double())
    expected = float(torch.distributions.kl_divergence(posterior, prior))
    assert found.divergence.total == pytest.approx(expected, rel=1e-3)
    precision = torch.linalg.inv(0.05**2 * narrow)
    draws = truth.laplace_draws(mean, precision, 400, Generator().manual_seed(3))
    logits = truth.outputs(PROBLEM, HELD_OUT) + (draws @ jacobian.T).view(400, 90, 3)
    share = (logits.argmax(2) != HELD_OUT.targets()).double().mean()
    assert found.observed_risk == pytest.approx(float(share), abs=0.02)
    assert found.bound < 1


def test_targets_may_be_classes_or_one_hot_rows():
    rows = nn.functional.one_hot(torch.tensor([2, 0, 1]), 3).double()
    assert class_indices(rows, 3).tolist() == [2, 0, 1]
    assert class_indices(torch.tensor([2.0, 0.0]), 3).tolist() == [2, 0]
    hot = Batches((blobs(90, 1)[0], nn.functional.one_hot(blobs(90, 1)[1], 3).double()))
    squared = Problem.from_module(MODULE, Gaussian())
    assert certify(problem=connectivity(squared), held_out=hot).bound == pytest.approx(
        certify().bound
    )
    with pytest.raises(ValueError, match="classification errors"):
        class_indices(torch.rand(4), 3)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        certify(scales=[])


def test_delta_is_shared_by_the_grid_and_a_tenth_of_it_is_for_the_draws():
    parts = [_Part(scale, Divergence(4.0, 2.0), 0.0, 100) for scale in GRID]
    found = _least(parts, 10_000, 0.05, seeger)
    # each of the two has 0.025: draws 0.0025, the bound 0.0225
    risk = 1 - (2 / 0.0025) ** (-1 / 100)
    assert found.risk == pytest.approx(risk, rel=1e-12)
    # (3 + log(2 · 100 / 0.0225)) / 10,000
    assert binary_kl(risk, found.bound) == pytest.approx((3 + 9.0925573363198) / 10_000, rel=1e-9)

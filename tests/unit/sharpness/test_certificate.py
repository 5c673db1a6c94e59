import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from torch import Generator, distributions

from afterfit.linalg.krylov import lanczos
from afterfit.sharpness.certificate import (
    KAPPA,
    Certificate,
    Divergence,
    Scales,
    bias_term,
    binary_kl,
    certified_sharpness,
    complexity,
    effective_dimension,
    kl_inverse,
    mcallester,
    narrowing,
    risk_of_draws,
    seeger,
    sharpness_term,
    trace_bound,
)

unhurried = settings(deadline=None, max_examples=40)
scales_of = st.builds(Scales, st.floats(0.01, 3), st.floats(0.1, 3))


def jacobian(seed, rows=12, columns=7):
    generator = Generator().manual_seed(seed)
    spread = 10 ** torch.linspace(-1, 1, columns, dtype=torch.float64)
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator) * spread


@unhurried
@given(st.integers(0, 10_000), scales_of, st.sampled_from([(12, 7), (5, 9)]))
def test_the_divergence_is_that_of_torch_distributions(seed, scales, shape):
    j = jacobian(seed, *shape)
    residual = torch.randn(len(j), dtype=torch.float64, generator=Generator().manual_seed(seed))
    identity = torch.eye(j.shape[1], dtype=torch.float64)
    precision = identity / scales.prior**2 + j.T @ j / scales.noise**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ j.T @ residual / scales.noise**2
    posterior = distributions.MultivariateNormal(mean, precision_matrix=precision)
    prior = distributions.MultivariateNormal(0 * mean, scales.prior**2 * identity)
    expected = float(distributions.kl_divergence(posterior, prior))
    eigenvalues, vectors = torch.linalg.eigh(j @ j.T)
    found = Divergence(
        bias_term(eigenvalues, vectors.T @ residual, scales), sharpness_term(eigenvalues, scales)
    )
    assert found.total == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found.bias == pytest.approx(float(mean @ mean) / scales.prior**2, rel=1e-7)
    primal = sharpness_term(torch.linalg.eigvalsh(j.T @ j), scales)
    assert primal == pytest.approx(found.sharpness, rel=1e-9, abs=1e-9)


@unhurried
@given(st.integers(0, 10_000), scales_of)
def test_sharpness_is_log_determinant_minus_effective_dimension(seed, scales):
    j = jacobian(seed)
    whole = torch.eye(12, dtype=torch.float64) + scales.ratio * j @ j.T
    dimension = float(torch.trace(torch.linalg.solve(whole, scales.ratio * j @ j.T)))
    values = torch.linalg.eigvalsh(j @ j.T)
    assert effective_dimension(values, scales) == pytest.approx(dimension)
    expected = float(torch.logdet(whole)) - dimension
    assert sharpness_term(values, scales) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_kappa_is_the_largest_slope_and_rounded_up():
    found = minimize_scalar(
        lambda x: -float(narrowing(torch.tensor([x], dtype=torch.float64))) / x,
        bounds=(0.1, 10),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert found.x == pytest.approx(2.16258, abs=1e-4)
    assert -found.fun < KAPPA < -found.fun * (1 + 1e-6)


@unhurried
@given(st.integers(0, 10_000), scales_of, st.integers(1, 7))
def test_certified_sharpness_lies_above_the_truth_and_the_sum_over_ritz_values_below(
    seed, scales, steps
):
    g = jacobian(seed).T @ jacobian(seed)
    start = torch.randn(7, dtype=torch.float64, generator=Generator().manual_seed(seed + 1))
    ritz = torch.linalg.eigvalsh(lanczos(lambda v: g @ v, start, steps).tridiagonal)
    truth = sharpness_term(torch.linalg.eigvalsh(g), scales)
    trace = float(torch.trace(g))
    slack = 1e-9 * (1 + truth)
    certified = certified_sharpness(ritz, trace, scales)
    assert sharpness_term(ritz, scales) <= truth + slack
    assert truth <= certified + slack
    assert certified <= trace_bound(trace, scales) + slack
    assert certified_sharpness(torch.linalg.eigvalsh(g), trace, scales) == pytest.approx(
        truth, rel=1e-6, abs=1e-9
    )


def test_certified_sharpness_needs_the_slope_of_values_that_have_not_converged():
    """One eigenvalue of 1.5 of which Lanczos saw 1: charging κ for the rest would be too little."""
    scales, ritz = Scales(1.0, 1.0), torch.tensor([1.0], dtype=torch.float64)
    truth = sharpness_term(torch.tensor([1.5], dtype=torch.float64), scales)
    assert (
        sharpness_term(ritz, scales) + KAPPA * 0.5 < truth <= certified_sharpness(ritz, 1.5, scales)
    )


def test_zeros_and_rounding_below_zero_count_nothing():
    values = torch.tensor([2.0, 0.3], dtype=torch.float64)
    more = torch.cat([values, torch.tensor([0.0, -1e-12], dtype=torch.float64)])
    scales = Scales(0.3, 0.1)
    assert sharpness_term(more, scales) == sharpness_term(values, scales)
    ones = torch.ones(4, dtype=torch.float64)
    assert bias_term(more, ones, scales) == bias_term(values, ones[:2], scales)


def test_only_the_ratio_of_the_scales_enters_the_sharpness():
    values = torch.rand(5, dtype=torch.float64, generator=Generator().manual_seed(0))
    first, second = (sharpness_term(values, Scales(a, a / 3)) for a in (0.1, 7.0))
    assert first == pytest.approx(second)


@unhurried
@given(st.floats(0, 1), st.floats(1e-6, 5))
@example(0.125, 1e-6)
@example(1e-300, 0.1)
@example(0.999999, 1e-6)
def test_the_inverse_of_kl_is_its_inverse_and_on_the_safe_side(risk, budget):
    found = kl_inverse(risk, budget)
    assert risk <= found <= 1
    if found < 1:
        assert binary_kl(risk, found) >= budget * (1 - 1e-12)
        assert binary_kl(risk, max(risk, found - 3e-14)) <= budget + 1e-9
    assert found <= min(1.0, risk + math.sqrt(budget / 2)) + 1e-9  # Pinsker


@unhurried
@given(st.floats(0, 0.6), st.floats(0, 50), st.integers(50, 5000), st.floats(0.01, 0.3))
def test_bounds_grow_with_divergence_and_confidence_and_fall_with_samples(risk, kl, num, delta):
    for bound in (mcallester, seeger):
        here = bound(risk, kl, num, delta)
        assert here <= bound(risk, kl + 1, num, delta)
        assert here <= bound(risk, kl, num, delta / 2)
        assert here >= bound(risk, kl, 2 * num, delta)
    assert seeger(risk, kl, num, delta) <= mcallester(risk, kl, num, delta) + 1e-9


def test_the_bound_fails_no_more_often_than_it_says():
    """A fixed classifier of known error, which is its own prior: KL is 0."""
    generator, delta, error = np.random.default_rng(0), 0.1, 0.2
    observed = generator.binomial(100, error, 4000) / 100
    failed = np.mean([seeger(risk, 0.0, 100, delta) < error for risk in observed])
    assert failed <= delta
    naive = np.mean(observed < error)
    assert naive > delta  # the test can fail: the observed risk is no bound


def test_the_risk_of_draws_fails_no_more_often_than_it_says_for_unequal_chances():
    generator = np.random.default_rng(1)
    chances = generator.uniform(0, 0.5, 50)
    draws = (generator.random((2000, 50)) < chances).mean(1)
    failed = np.mean([risk_of_draws(share, 50, 0.2) < chances.mean() for share in draws])
    assert 0 < failed <= 0.2
    least = binom.ppf(0.2, 50, 0.3) / 50
    assert risk_of_draws(float(least), 50, 0.2) >= 0.3


def test_a_certificate_says_whether_it_is_vacuous():
    parts = {
        "risk": 0.1, "observed_risk": 0.09, "divergence": Divergence(2.0, 4.0), "num_scales": 1,
        "scales": Scales(0.1, 0.1), "delta": 0.05, "num_samples": 200, "form": "seeger",
    }  # fmt: skip
    tight, empty = Certificate(bound=0.3, **parts), Certificate(bound=1.2, **parts)
    assert not tight.is_vacuous
    assert empty.is_vacuous
    assert "KL 3 nats" in str(tight)
    assert "vacuous" in str(empty)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Scales(0.0, 1.0), "prior scale is 0"),
        (lambda: Scales(1.0, -1.0), "noise scale is -1"),
        (lambda: complexity(1.0, 100, 1.5), "between 0 and 1"),
        (lambda: complexity(1.0, 3, 0.1), "at least 8"),
        (lambda: kl_inverse(1.2, 0.1), "expected a share"),
        (lambda: trace_bound(-1.0, Scales(1.0, 1.0)), "at least 0"),
        (
            lambda: certified_sharpness(torch.ones(3), 2.0, Scales(1.0, 1.0)),
            "same matrix, summed over the same samples",
        ),
    ],
)
def test_bad_input_is_refused_with_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Constants as published, worked out by hand -----------------------------------------------------

LOG_4000 = 8.294049640102028  # log(2 √10000 / 0.05)


def test_the_complexity_has_the_constant_of_maurer():
    found = complexity(3, num_samples=10_000, delta=0.05)
    assert found == pytest.approx((3 + LOG_4000) / 10_000, rel=1e-14)


def test_mcallester_takes_the_root_of_half_the_complexity():
    found = mcallester(0.1, 3, num_samples=10_000, delta=0.05)
    assert found == pytest.approx(0.1 + 0.02376346948585373, rel=1e-13)  # √(0.00112940496401 / 2)


def test_seeger_at_risk_zero_is_one_minus_the_exponential_of_the_complexity():
    found = seeger(0.0, 3, num_samples=10_000, delta=0.05)
    assert found == pytest.approx(0.001128767426270, rel=1e-9)  # 1 - exp(-0.00112940496401)


def test_draws_without_an_error_are_charged_log_two_over_delta():
    found = risk_of_draws(0.0, num_draws=100, delta=0.05)
    assert found == pytest.approx(0.036216692645179, rel=1e-9)  # 1 - 40^(-1/100)


def test_the_terms_of_the_divergence_by_hand():
    one = Scales(1, 1)
    spectrum = torch.tensor([4.0], dtype=torch.float64)
    assert KAPPA == 0.21621660
    assert float(narrowing(torch.ones(1).double())) == pytest.approx(math.log(2) - 0.5, rel=1e-14)
    assert sharpness_term(spectrum, Scales(1, 2)) == pytest.approx(math.log(2) - 0.5, rel=1e-14)
    assert effective_dimension(spectrum, one) == pytest.approx(0.8, rel=1e-14)
    assert trace_bound(10.0, Scales(1, 2)) == pytest.approx(0.5405415, rel=1e-14)
    # 1 · 4 · 3² / (4 + 1)²
    assert bias_term(spectrum, torch.tensor([3.0]).double(), one) == pytest.approx(1.44, rel=1e-14)
    # log 5 - 4/5, and 0.2162166 for each unit that is missing of the trace
    expected = 0.8094379124341003 + 0.2162166
    assert certified_sharpness(spectrum, 5.0, one) == pytest.approx(expected, rel=1e-13)
    # 100 missing at the slope 4 / 25 would be less than κ; at x = 1 the slope is 1/4
    least = torch.tensor([1.0], dtype=torch.float64)
    expected = math.log(2) - 0.5 + 0.25 * 0.1
    assert certified_sharpness(least, 1.1, one) == pytest.approx(expected, rel=1e-12)
    assert Divergence(bias=3.0, sharpness=1.0).total == 2.0
    assert binary_kl(0.5, 0.25) == pytest.approx(0.14384103622589045, rel=1e-13)

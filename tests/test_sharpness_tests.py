"""The laws of sharpness are run on objects that are broken on purpose, and must fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import truth
from tests.laws import test_sharpness_laws as laws


def fails(law: Callable[..., None], *arguments: Any) -> None:
    """Require that a law does not hold; that it breaks for another reason is no excuse."""
    with pytest.raises(AssertionError):
        law(*arguments)


@pytest.mark.parametrize("kind", ["layer", "node"])
def test_the_laws_of_invariance_see_euclidean_numbers(monkeypatch, kind: str):
    law = laws.test_connectivity_sharpness_and_its_kin_ignore_rescaling
    for name in ("connectivity_sharpness", "connectivity_curvature", "fisher_rao_norm"):
        with monkeypatch.context() as patch:
            patch.setattr(laws, name, laws.tangent_trace)
            fails(law, "mlp", kind)

    def euclidean(problem, data):
        jacobian = truth.jacobian(problem, data).flatten(0, 1)
        return jacobian @ jacobian.T

    monkeypatch.setattr(laws, "kernel", euclidean)
    fails(laws.test_the_connectivity_tangent_kernel_and_its_spectrum_ignore_rescaling, "mlp", kind)
    fails(laws.test_divergence_and_bound_ignore_rescaling, "mlp", kind)


def test_the_laws_of_invariance_see_a_small_difference(monkeypatch):
    real = laws.changed

    def nudged(name: str, kind: str):
        problem = real(name, kind)
        first = next(iter(problem.params.values()))
        first.view(-1)[0] *= 1 + 1e-6
        return problem

    monkeypatch.setattr(laws, "changed", nudged)
    fails(laws.test_connectivity_sharpness_and_its_kin_ignore_rescaling, "mlp", "node")
    fails(
        laws.test_the_connectivity_tangent_kernel_and_its_spectrum_ignore_rescaling, "mlp", "node"
    )


def test_the_negative_control_sees_a_change_that_is_none_and_an_invariant_twin(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(laws, "changed", lambda name, kind: laws.before(name)[0])
        fails(laws.test_the_euclidean_twins_do_not, "mlp", "node")
    monkeypatch.setattr(laws, "fisher_trace", laws.connectivity_curvature)
    fails(laws.test_the_euclidean_twins_do_not, "mlp", "node")


def test_the_law_of_mixing_sees_measures_exchanged(monkeypatch):
    monkeypatch.setattr(laws, "fisher_rao_norm", laws.connectivity_sharpness)
    fails(laws.test_mixing_heads_changes_connectivity_sharpness_but_not_the_fisher_rao_norm, "gpt")


def test_the_law_of_inverse_squares_and_the_law_of_temperature_see_wrong_powers(monkeypatch):
    monkeypatch.setattr(laws, "tangent_trace", laws.connectivity_sharpness)
    fails(laws.test_the_tangent_trace_moves_by_the_inverse_squares_of_the_factors)
    monkeypatch.setattr(laws, "connectivity_sharpness", laws.connectivity_curvature)
    fails(laws.test_scaling_the_head_by_four_scales_connectivity_sharpness_by_sixteen)


def test_the_measure_of_equality_sees_what_it_should():
    one = torch.ones(3, dtype=torch.float64)
    laws.require_equal(one, one + 1e-12)
    fails(laws.require_equal, one, one + 1e-8)
    laws.require_moved(one, one + 0.1)
    fails(laws.require_moved, one, one + 1e-3)

import dataclasses
import math

import pytest

from afterfit.linalg import Estimate


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.91234, 0.00218, "0.9123 ± 0.0022 (7 probes)"),
        (1234.5678, 12.3, "1235 ± 12 (7 probes)"),
        (-3.14159, 0.25, "-3.14 ± 0.25 (7 probes)"),
        (5e-12, 1e-13, "5e-12 ± 1e-13 (7 probes)"),
        (123456.0, 4321.0, "1.235e+05 ± 4321 (7 probes)"),
    ],
)
def test_two_digits_of_the_error_are_shown(value, stderr, text):
    assert str(Estimate(value, stderr, 7)) == text


@pytest.mark.parametrize("stderr", [0.0, math.nan, math.inf])
def test_an_error_without_digits_still_has_a_text(stderr):
    assert str(Estimate(0.5, stderr, 1)).startswith("0.5 ± ")


def test_an_estimate_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Estimate(1.0, 0.1, 5).value = 2.0

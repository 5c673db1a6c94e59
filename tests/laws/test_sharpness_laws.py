"""Laws of sharpness: what a rescaling of the network can change, and what it cannot.

Every change below is discovered on the network, applied, and verified to preserve its function.
Under it connectivity quantities are equal to 1e-10, and their Euclidean twins are not.
"""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from afterfit.problem import Batches, Categorical, Problem, connectivity
from afterfit.problem.persample import outputs
from afterfit.sharpness.architecture import Architecture, explore
from afterfit.sharpness.certificate import Scales, bias_term, seeger, sharpness_term
from afterfit.sharpness.measures import (
    connectivity_curvature,
    connectivity_sharpness,
    estimate_connectivity_curvature,
    estimate_connectivity_sharpness,
    fisher_rao_norm,
    fisher_trace,
    normalized_connectivity_sharpness,
    tangent_trace,
)
from afterfit.sharpness.perturbed import (
    adaptive_average_sharpness,
    adaptive_worst_case_sharpness,
    worst_case_sharpness,
)
from afterfit.sharpness.rescaling import change_of_outputs, scale_units
from tests import truth
from tests.rescalable import NETWORKS

EXACT = 1e-10
RESCALED = ("layer", "node", "normalization", "affine", "query-key", "sign", "permutation")
EUCLIDEAN = ("layer", "node", "normalization", "affine", "query-key")  # and not orthogonal
unhurried = settings(deadline=None, max_examples=8)

PAIRS = [(name, kind) for name, case in NETWORKS.items() for kind in RESCALED if kind in case.kinds]
every_pair = pytest.mark.parametrize(("name", "kind"), PAIRS, ids=lambda part: part)
SCALES = Scales(0.3, 0.5)


@cache
def architecture(name: str) -> Architecture:
    return explore(NETWORKS[name].module(), NETWORKS[name].data())


def problem_of(network: nn.Module) -> Problem:
    return Problem.from_module(network, Categorical())


def changed(name: str, kind: str, seed: int = 0, spread: float = math.log(4)) -> Problem:
    network = architecture(name).changed(kind, spread, Generator().manual_seed(seed))
    return problem_of(network)


@cache
def before(name: str) -> tuple[Problem, Batches]:
    return problem_of(architecture(name).network), NETWORKS[name].data()


def kernel(problem: Problem, data: Batches) -> Tensor:
    """Connectivity tangent kernel, from dense Jacobians of ours and not of the library."""
    jacobian = truth.jacobian(problem, data).flatten(0, 1)
    relative = jacobian * truth.flat(dict(problem.params))
    return relative @ relative.T


def require_equal(here: Tensor, there: Tensor, tolerance: float = EXACT) -> None:
    assert float((here - there).abs().max()) <= tolerance * float(here.abs().max())


def require_moved(here: Tensor, there: Tensor) -> None:
    assert float((here - there).abs().max()) > 0.01 * float(here.abs().max())


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def relative_numbers(problem: Problem, data: Batches) -> Tensor:
    """Everything that is one number and said to be invariant; each is compared by itself."""
    generator = Generator().manual_seed(1)
    measures = [
        connectivity_sharpness(problem, data),
        connectivity_curvature(problem, data),
        normalized_connectivity_sharpness(problem, data),
        fisher_rao_norm(problem, data),
        adaptive_worst_case_sharpness(problem, data, 0.05, 5),
        adaptive_average_sharpness(problem, data, 0.05, 2, generator),
    ]
    return numbers(*(measure.total for measure in measures))


def bound_numbers(problem: Problem, data: Batches) -> Tensor:
    """Divergence, its two terms, and the bound."""
    values, vectors = torch.linalg.eigh(kernel(problem, data))
    classes = nn.functional.one_hot(data.targets(), 3).double()
    residual = (classes - outputs(problem, data)).flatten()
    sharp, bias = sharpness_term(values, SCALES), bias_term(values, vectors.T @ residual, SCALES)
    return numbers(sharp, bias, seeger(0.2, 0.5 * (sharp + bias), 10_000, 0.05))


@every_pair
def test_the_connectivity_tangent_kernel_and_its_spectrum_ignore_rescaling(name: str, kind: str):
    problem, data = before(name)
    here, there = kernel(problem, data), kernel(changed(name, kind), data)
    require_equal(here, there)
    require_equal(*(torch.linalg.eigvalsh(matrix) for matrix in (here, there)))


@every_pair
def test_connectivity_sharpness_and_its_kin_ignore_rescaling(name: str, kind: str):
    problem, data = before(name)
    here, there = (relative_numbers(p, data) for p in (problem, changed(name, kind)))
    kept = slice(None) if kind != "permutation" else slice(0, -1)  # draws are not permuted
    for first, second in zip(here[kept], there[kept], strict=True):
        require_equal(first, second, EXACT)


@every_pair
def test_estimates_at_a_seed_ignore_rescaling(name: str, kind: str):
    """Probes live in the outputs, which do not change, and not in the parameters, which do."""
    problem, data = before(name)
    for estimate in (estimate_connectivity_sharpness, estimate_connectivity_curvature):
        here, there = (
            estimate(p, data, 3, Generator().manual_seed(0)) for p in (problem, changed(name, kind))
        )
        require_equal(numbers(here.total), numbers(there.total))
        require_equal(numbers(here.stderr), numbers(there.stderr))


@every_pair
def test_divergence_and_bound_ignore_rescaling(name: str, kind: str):
    problem, data = before(name)
    here, there = (bound_numbers(p, data) for p in (problem, changed(name, kind)))
    for first, second in zip(here, there, strict=True):
        require_equal(first, second)


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n, k in PAIRS if k in EUCLIDEAN], ids=lambda part: part
)
def test_the_euclidean_twins_do_not(name: str, kind: str):
    problem, data = before(name)
    there = changed(name, kind)
    for measure in (tangent_trace, fisher_trace):
        require_moved(*(numbers(measure(p, data).total) for p in (problem, there)))
    worst = (numbers(worst_case_sharpness(p, data, 0.3, 5).total) for p in (problem, there))
    if kind != "query-key":  # a worst case may lie in other parameters
        require_moved(*worst)


@pytest.mark.parametrize("name", ["vit", "gpt"])
def test_mixing_heads_changes_connectivity_sharpness_but_not_the_fisher_rao_norm(name: str):
    problem, data = before(name)
    mixed = changed(name, "mixing")
    require_moved(*(numbers(connectivity_sharpness(p, data).total) for p in (problem, mixed)))
    require_equal(*(numbers(fisher_rao_norm(p, data).total) for p in (problem, mixed)))


@unhurried
@given(st.integers(0, 10_000), st.sampled_from(["mlp", "conv-bn"]))
def test_jacobians_in_connectivity_are_equal_entry_by_entry_for_factors_up_to_a_thousand(
    seed: int, name: str
):
    problem, data = before(name)
    generator, network = Generator().manual_seed(seed), architecture(name).network
    for freedom in architecture(name).freedoms:
        if freedom.kind in ("node", "normalization", "affine"):
            draw = torch.rand(freedom.symmetry.size, dtype=torch.float64, generator=generator)
            network = scale_units(network, freedom.symmetry, 10 ** (6 * draw - 3))
    assert change_of_outputs(architecture(name).network, network, architecture(name).inputs) < 1e-9
    here, there = (
        truth.jacobian(p, data) * truth.flat(dict(p.params)) for p in (problem, problem_of(network))
    )
    require_equal(here, there)
    library = connectivity(problem_of(network))
    require_equal(here, truth.jacobian(library, data))
    require_equal(
        numbers(connectivity_sharpness(problem, data).total),
        numbers(connectivity_sharpness(problem_of(network), data).total),
    )


def test_the_tangent_trace_moves_by_the_inverse_squares_of_the_factors():
    problem, data = before("conv-bn")
    there = changed("conv-bn", "affine")
    ratio = truth.flat(dict(there.params)) / truth.flat(dict(problem.params))
    columns = truth.jacobian(problem, data).flatten(0, 1).square().sum(0)
    expected = float((columns / ratio.square()).sum())
    assert tangent_trace(there, data).total == pytest.approx(expected, rel=1e-10)


def test_scaling_the_head_by_four_scales_connectivity_sharpness_by_sixteen():
    """A temperature is no rescaling: the function changes. The normalized sharpness ignores it."""
    problem, data = before("mlp")
    network = architecture("mlp").network
    hotter = {n: 4 * v if n.startswith("4.") else v for n, v in network.state_dict().items()}
    module = NETWORKS["mlp"].module()
    module.load_state_dict(hotter)
    there = problem_of(module)
    here = connectivity_sharpness(problem, data).total
    assert connectivity_sharpness(there, data).total == pytest.approx(16 * here)
    require_equal(
        *(numbers(normalized_connectivity_sharpness(p, data).total) for p in (problem, there))
    )


def test_zeros_contribute_nothing_and_make_no_nan():
    module = NETWORKS["mlp"].module()
    with torch.no_grad():
        module[0].bias.zero_()
        module[2].weight[:3].zero_()
    data = NETWORKS["mlp"].data()
    found = connectivity_sharpness(problem_of(module), data)
    assert math.isfinite(found.total)
    assert found.by_parameter["0.bias"] == 0
    rest = [v for n, v in found.by_parameter.items() if n != "0.bias"]
    assert found.total == pytest.approx(sum(rest))


def test_without_biases_homogeneity_bounds_connectivity_sharpness_from_below():
    """Euler: Σ_i θ_i ∂_i f = L f for L bias-free ReLU layers, so CS ≥ L² ‖f‖² / P."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(
            nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
        ).double()
    problem, data = problem_of(module), NETWORKS["mlp"].data()
    jacobian = truth.jacobian(problem, data) @ truth.flat(dict(problem.params))
    require_equal(jacobian, 2 * outputs(problem, data))
    least = 4 * float(outputs(problem, data).square().sum()) / problem.num_params
    assert connectivity_sharpness(problem, data).total >= least


def test_what_epsilon_breaks_shrinks_with_it():
    """Variances scaled by a² without their ε: the deviation falls linearly as ε does."""
    deviations = []
    for epsilon in (1e-3, 1e-5, 1e-7, 0.0):
        module = NETWORKS["conv-bn"].module()
        module[1].eps = epsilon
        reference = problem_of(module)
        scaled = {n: v.clone() for n, v in module.state_dict().items()}
        for name, power in (("0.weight", 1), ("0.bias", 1), ("1.running_mean", 1),
                            ("1.running_var", 2)):  # fmt: skip
            scaled[name] *= 0.5**power
        module.load_state_dict(scaled)
        data = NETWORKS["conv-bn"].data()
        here, there = (
            connectivity_sharpness(p, data).total for p in (reference, problem_of(module))
        )
        deviations.append(abs(there / here - 1))
    assert deviations[0] / deviations[1] == pytest.approx(100, rel=0.1)
    assert deviations[1] / deviations[2] == pytest.approx(100, rel=0.1)
    assert deviations[3] < 1e-12

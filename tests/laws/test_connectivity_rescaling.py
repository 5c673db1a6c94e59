"""Whatever is computed in connectivity is the same for a network that was rescaled, to 1e-10.

Every factor lies between 1/1000 and 1000, every unit has its own, all symmetries that a network has
are used together, and odd units are turned around. Permutations are apart: what is drawn by
positions is compared with permuted draws. Euclidean twins move by more than 1 %.
"""

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Generator, Tensor, nn

from afterfit.curvature import Curvature, diagonal, ekfac, ggn, jacobian, kfac
from afterfit.posterior import (
    ConjugateGradients,
    GaussianPosterior,
    LeastSquares,
    by_evidence,
    laplace,
    log_evidence,
    low_rank,
    predict,
    predict_by_members,
    randomize_then_optimize,
    with_ridge_mean,
)
from afterfit.problem import Batches, Categorical, Problem, connectivity, linearize, restrict
from afterfit.sharpness import (
    Certificate,
    Scales,
    connectivity_sharpness,
    low_rank_pac_bayes_bound,
    pac_bayes_bound,
    ridge_mean,
)
from afterfit.sharpness.architecture import Architecture, explore
from afterfit.sharpness.rescaling import (
    change_of_outputs,
    permute_in_place,
    scale_units,
    without_epsilon,
)
from afterfit.sharpness.symmetry import Part, Symmetry
from tests.rescalable import NETWORKS, changed_by

EXACT = 1e-10
CURVATURES: Mapping[str, Curvature] = {
    "full": ggn,
    "diagonal": diagonal,
    "kfac": kfac,
    "ekfac": ekfac,
    "low rank": low_rank(8),
}
SCALED = [name for name in NETWORKS if name != "tanh"]
HEADS = {"mlp": "4.*", "tanh": "4.*", "conv-bn": "8.*", "vit": "head.*", "gpt": "head.*"}
every_network = pytest.mark.parametrize("name", NETWORKS)
every_curvature = pytest.mark.parametrize("curvature", CURVATURES)
both_changes = pytest.mark.parametrize("change", ["rescaled", "permuted"])


@cache
def architecture(name: str) -> Architecture:
    return explore(NETWORKS[name].module(), NETWORKS[name].data())


@cache
def original(name: str) -> nn.Module:
    return without_epsilon(architecture(name).network)


def with_biases_of_keys(symmetry: Symmetry) -> Symmetry:
    """Keys have a bias on which nothing depends; it is scaled along with their weight."""
    keys = [part for part in symmetry.parts if "qkv" in part.name and part.exponent < 0]
    biases = [
        Part(part.name.replace("weight", "bias"), 0, part.start, part.repeat, part.exponent)
        for part in keys
        if part.axis == 0
    ]
    return Symmetry(symmetry.size, (*symmetry.parts, *biases))


@cache
def rescaled(name: str, biases_of_keys: bool = True) -> nn.Module:
    """All factors up to a thousand that the network admits, and random signs of odd units."""
    generator, network = Generator().manual_seed(7), original(name)
    for freedom in architecture(name).freedoms:
        symmetry = freedom.symmetry
        chosen = with_biases_of_keys(symmetry) if biases_of_keys else symmetry
        draw = torch.rand(symmetry.size, dtype=torch.float64, generator=generator)
        if freedom.kind in ("node", "normalization", "affine", "query-key"):
            network = scale_units(network, chosen, 10 ** (6 * draw - 3))
        elif freedom.kind == "layer" and symmetry.size == 1:
            network = scale_units(network, symmetry, torch.tensor([1e3]))
        elif freedom.kind == "sign":
            network = scale_units(network, chosen, torch.where(draw < 0.5, -1.0, 1.0))
    assert change_of_outputs(original(name), network, architecture(name).inputs) < 1e-12
    return network


def permuted_in_the_same_way(name: str, network: nn.Module) -> nn.Module:
    generator = Generator().manual_seed(8)
    for freedom in architecture(name).freedoms:
        if freedom.kind == "permutation":
            order = torch.randperm(freedom.symmetry.size, generator=generator)
            network = changed_by(permute_in_place, network, freedom.symmetry, order)
    return network


@cache
def permuted(name: str) -> nn.Module:
    network = permuted_in_the_same_way(name, original(name))
    assert change_of_outputs(original(name), network, architecture(name).inputs) < 1e-12
    return network


@cache
def order_of_coordinates(name: str) -> Tensor:
    """Coordinate i of the permuted network is coordinate ``order[i]`` of the original."""
    numbered = original(name)
    numbered = without_epsilon(numbered)  # a copy
    with torch.no_grad():
        count = 0
        for value in numbered.parameters():
            value.copy_(torch.arange(count, count + value.numel()).view_as(value))
            count += value.numel()
    moved = permuted_in_the_same_way(name, numbered)
    return torch.cat([value.flatten() for value in moved.parameters()]).long()


CHANGES: Mapping[str, Callable[[str], nn.Module]] = {"rescaled": rescaled, "permuted": permuted}


@cache
def problems(name: str, change: str) -> tuple[Problem, Problem]:
    """In connectivity: as it was, and changed."""
    before, after = (
        connectivity(Problem.from_module(one, Categorical()))
        for one in (original(name), CHANGES[change](name))
    )
    return before, after


@cache
def data(name: str) -> Batches:
    return NETWORKS[name].data().subset(torch.arange(10))


@cache
def posteriors(
    name: str, change: str, curvature: str
) -> tuple[GaussianPosterior, GaussianPosterior]:
    one, other = (
        laplace(problem, data(name), 1.0, CURVATURES[curvature])
        for problem in problems(name, change)
    )
    return one, other


def distance(here: Tensor | float, there: Tensor | float) -> float:
    """Largest difference, of the largest entry."""
    first, second = (torch.as_tensor(one, dtype=torch.float64) for one in (here, there))
    return float((first - second).abs().max() / first.abs().max())


def covariance(posterior: GaussianPosterior, seen: Batches) -> Tensor:
    return torch.cat([part for _, _, part in posterior.covariances(seen)])


@every_network
def test_entries_of_the_jacobian(name: str):
    before, after = (jacobian(p, data(name)).to_dense() for p in problems(name, "rescaled"))
    assert distance(before, after) < EXACT
    before, after = (jacobian(p, data(name)).to_dense() for p in problems(name, "permuted"))
    assert distance(before[:, order_of_coordinates(name)], after) < EXACT


@every_network
@both_changes
def test_sharpness_spectrum_divergence_and_bound(name: str, change: str):
    first, second = problems(name, change)
    values = [
        torch.linalg.svdvals(jacobian(one, data(name)).to_dense()).square()
        for one in (first, second)
    ]
    assert distance(*values) < EXACT
    networks = original(name), CHANGES[change](name)
    sharpness = [
        connectivity_sharpness(Problem.from_module(one, Categorical()), data(name)).total
        for one in networks
    ]
    assert distance(*sharpness) < EXACT
    held_out = NETWORKS[name].inputs(Generator().manual_seed(99))
    unseen = Batches((held_out[:10], torch.arange(10) % 3), 10)
    for form in (zero_mean_bound, ridge_mean_bound):
        require_same_certificate(*(form(one, data(name), unseen) for one in (first, second)))
    if change == "rescaled":  # its directions and draws belong to positions
        require_same_certificate(*(low_rank_bound(p, data(name), unseen) for p in (first, second)))


def zero_mean_bound(problem: Problem, seen: Batches, unseen: Batches) -> Certificate:
    return pac_bayes_bound(problem, seen, unseen, [Scales(0.3, 0.5)], Generator().manual_seed(2))


def ridge_mean_bound(problem: Problem, seen: Batches, unseen: Batches) -> Certificate:
    generator = Generator().manual_seed(2)
    return pac_bayes_bound(problem, seen, unseen, [Scales(0.3, 2)], generator, center=ridge_mean)


def low_rank_bound(problem: Problem, seen: Batches, unseen: Batches) -> Certificate:
    generator, scales = Generator().manual_seed(2), [Scales(0.3, 0.5)]
    return low_rank_pac_bayes_bound(
        problem, seen, unseen, scales, generator, num_directions=2, num_draws=2
    )


def require_same_certificate(one: Certificate, other: Certificate) -> None:
    assert distance(one.divergence.sharpness, other.divergence.sharpness) < EXACT
    assert abs(one.divergence.bias - other.divergence.bias) <= EXACT * one.divergence.bias
    assert distance(one.bound, other.bound) < EXACT


@every_network
@every_curvature
@both_changes
def test_predictions_and_evidence(name: str, curvature: str, change: str):
    one, other = posteriors(name, change, curvature)
    assert distance(covariance(one, data(name)), covariance(other, data(name))) < EXACT
    predictions = [predict(posterior, data(name)).mean for posterior in (one, other)]
    assert distance(*predictions) < EXACT
    assert distance(log_evidence(one), log_evidence(other)) < EXACT
    assert distance(one.effective_dimension(), other.effective_dimension()) < EXACT
    assert distance(by_evidence(one).factor, by_evidence(other).factor) < EXACT


@every_network
@every_curvature
@both_changes
def test_predictions_of_the_ridge_mean(name: str, curvature: str, change: str):
    found = [
        predict(with_ridge_mean(one, data(name)), data(name)).logit_mean
        for one in posteriors(name, change, curvature)
    ]
    assert distance(*found) < EXACT


@every_network
@both_changes
def test_predictions_of_the_last_layer(name: str, change: str):
    one, other = (
        laplace(restrict(problem, HEADS[name]), data(name)) for problem in problems(name, change)
    )
    assert distance(covariance(one, data(name)), covariance(other, data(name))) < EXACT


@every_network
@every_curvature
def test_draws_of_one_seed_are_the_same_functions(name: str, curvature: str):
    pair = posteriors(name, "rescaled", curvature)
    for model in (linearize, lambda problem: problem):
        found = [
            predict_by_members(
                model(one.problem), data(name), one.sample(3, Generator().manual_seed(5))
            ).logit_mean
            for one in pair
        ]
        assert distance(*found) < EXACT


@every_network
@every_curvature
def test_a_permuted_network_has_the_permuted_root(name: str, curvature: str):
    """So draws have the same law; those of one seed differ, since noise belongs to positions."""
    one, other = posteriors(name, "permuted", curvature)
    order = order_of_coordinates(name)
    noise = torch.randn(len(order), 3, generator=Generator().manual_seed(5), dtype=torch.float64)
    signed = [torch.sign(posterior.prior) for posterior in (one, other)]
    first, second = (
        posterior.prior[:, None]
        * posterior.basis.apply(
            posterior.variances_along().sqrt(), posterior.factor, sign[:, None] * drawn
        )
        for posterior, sign, drawn in zip((one, other), signed, (noise, noise[order]), strict=True)
    )
    assert distance(first[order], second) < EXACT


@every_network
@pytest.mark.parametrize(
    "how", [ConjugateGradients(1e-13, 2000), LeastSquares(1e-13, 2000)], ids=lambda one: type(one)
)
def test_randomized_draws_of_one_seed_are_the_same_functions(
    name: str, how: ConjugateGradients | LeastSquares
):
    found = []
    for problem in problems(name, "rescaled"):
        drawn = randomize_then_optimize(
            problem, data(name), 2, Generator().manual_seed(5), 1.0, how
        )
        members = drawn.members
        found.append(predict_by_members(linearize(problem), data(name), members).logit_mean)
    assert distance(*found) < EXACT


@pytest.mark.parametrize("name", SCALED)
@every_curvature
def test_the_euclidean_twins_move(name: str, curvature: str):
    one, other = (
        laplace(Problem.from_module(network, Categorical()), data(name), 1.0, CURVATURES[curvature])
        for network in (original(name), rescaled(name))
    )
    assert distance(covariance(one, data(name)), covariance(other, data(name))) > 0.01
    assert distance(log_evidence(one), log_evidence(other)) > 0.01


@pytest.mark.parametrize("name", ["vit", "gpt"])
@every_curvature
def test_only_kronecker_factors_see_a_dead_bias_that_is_not_scaled_along(name: str, curvature: str):
    """Their scale is of rank one for a weight with its bias, and follows rows and columns alone."""
    one, _ = posteriors(name, "rescaled", curvature)
    network = rescaled(name, biases_of_keys=False)
    problem = connectivity(Problem.from_module(network, Categorical()))
    other = laplace(problem, data(name), 1.0, CURVATURES[curvature])
    gap = distance(covariance(one, data(name)), covariance(other, data(name)))
    assert gap > 1e-4 if "kfac" in curvature else gap < EXACT

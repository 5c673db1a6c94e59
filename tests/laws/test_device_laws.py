"""Parameters on one device, data on another, generators on the processor: every call puts it right.

To add a call, add a row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from afterfit import (
    GEX,
    GeometricEnsemble,
    Unlearning,
    audit,
    calibrate,
    compare,
    curvature,
    graph,
    posterior,
    sharpness,
)
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.projected import RandomProjection
from afterfit.influence.simple import loss_scores
from afterfit.influence.tracin import GradientDot, TracIn
from afterfit.problem import (
    Batches,
    Categorical,
    Problem,
    connectivity,
    gradients,
    linearize,
    losses,
    outputs,
)
from afterfit.sharpness import Scales
from afterfit.workflows import WalkedEnsemble, analyze_labels, temperature_scaling
from tests.cases import LIKELIHOODS
from tests.pretend import ELSEWHERE, HERE, Pretend
from tests.unit.graph.networks import make_data, make_network

Call = Callable[[Problem, Batches, Batches], Any]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3)
        ).eval()


def data(seed: int, num: int, device: torch.device) -> Batches:
    generator = Generator().manual_seed(seed)
    x = torch.randn(num, 4, generator=generator).to(device)
    y = torch.randint(3, (num,), generator=generator).to(device)
    return Batches((x, y), 8)


def drawn() -> Generator:
    return Generator().manual_seed(1)


def fitted(method: Any) -> Call:
    def call(problem: Problem, train: Batches, query: Batches) -> Any:
        found = method(problem).fit(problem, train)
        return found.self_scores(), found.scores(query)

    return call


def laplace(of: Any, **settings: Any) -> Call:
    def call(problem: Problem, train: Batches, query: Batches) -> Any:
        found = posterior.laplace(connectivity(problem), train, curvature=of, **settings)
        best = posterior.by_evidence(found)
        predictive = posterior.predict(best, query)
        members = best.sample(2, drawn())
        posterior.predict_by_members(problem, query, members)
        return predictive.losses(query.targets()), best.variances(), best.draws(2, drawn())

    return call


def product(of: Any) -> Call:
    def call(problem: Problem, train: Batches, query: Batches) -> Any:
        operator = of(problem, train)
        columns = torch.ones(problem.num_params, 2, device=problem.device)
        return operator @ columns, operator.to_dense()

    return call


WALK = WalkedEnsemble((0.1,), GeometricEnsemble(members=2, steps=2))
CURVATURES = {
    "ggn": curvature.ggn,
    "hessian": curvature.hessian,
    "kfac": curvature.kfac,
    "ekfac": curvature.ekfac,
    "diagonal": curvature.diagonal,
    "empirical-fisher": curvature.empirical_fisher,
    "fisher": lambda p, d: curvature.fisher(2, drawn())(p, d),
}
CALLS: Mapping[str, Call] = {
    "outputs": lambda p, d, q: (outputs(p, d), losses(p, d), list(gradients(p, d))),
    "linearized": lambda p, d, q: outputs(linearize(p), d),
    **{f"products-{name}": product(of) for name, of in CURVATURES.items()},
    "ntk": lambda p, d, q: (curvature.ntk(p, d, q), curvature.jacobian(p, d)),
    "g-prior": lambda p, d, q: connectivity(p, curvature.g_prior_scale(p, d)),
    "traces": lambda p, d, q: (
        curvature.estimate_ggn_trace(p, d, 2, drawn()),
        curvature.estimate_squared_jacobian_trace(p, d, 2, drawn()),
    ),
    "laplace": laplace(curvature.ggn),
    "laplace-by-groups": laplace(curvature.ggn, prior_scale={"0.*": 0.5, "*": 1.0}),
    "laplace-kfac": laplace(curvature.kfac),
    "laplace-ekfac": laplace(curvature.ekfac),
    "laplace-diagonal": laplace(curvature.diagonal),
    "laplace-low-rank": laplace(posterior.low_rank(4)),
    "links": lambda p, d, q: [
        posterior.predict(posterior.laplace(p, d), q, link=link)
        for link in (posterior.Probit(), posterior.LaplaceBridge(), posterior.MonteCarlo(6))
    ],
    "validation-scale": lambda p, d, q: posterior.by_validation(
        posterior.laplace(p, d), q, (0.1, 1.0)
    ),
    "group-evidence": lambda p, d, q: posterior.by_group_evidence(
        p, d, ("0.*", "*"), rounds=1, tolerance=9.0
    ),
    "ridge-mean": lambda p, d, q: posterior.with_ridge_mean(posterior.laplace(p, d), d),
    "randomized": lambda p, d, q: list(posterior.randomize_then_optimize(p, d, 2, drawn()).members),
    "least-squares": lambda p, d, q: posterior.randomize_then_optimize(
        p, d, 2, drawn(), optimizer=posterior.LeastSquares()
    ),
    "dropout": lambda p, d, q: posterior.predict_by_outputs(
        p.likelihood, posterior.dropout_outputs(p, q, 3)
    ),
    "measures": lambda p, d, q: [
        getattr(sharpness, name)(p, d)
        for name in (
            "connectivity_sharpness",
            "connectivity_curvature",
            "normalized_connectivity_sharpness",
            "tangent_trace",
            "fisher_trace",
            "fisher_rao_norm",
            "squared_norm",
        )
    ],
    "estimated-measures": lambda p, d, q: [
        sharpness.estimate_connectivity_sharpness(p, d, 2, drawn()),
        sharpness.estimate_hessian_trace(p, d, 2, drawn()),
        sharpness.relative_flatness(p, d, "4.weight"),
        sharpness.estimate_relative_flatness(p, d, "4.weight", 2, drawn()),
    ],
    "perturbed": lambda p, d, q: [
        sharpness.worst_case_sharpness(p, d, 0.1, 2),
        sharpness.average_sharpness(p, d, 0.1, 2, drawn()),
        sharpness.adaptive_average_sharpness(p, d, 0.1, 2, drawn()),
        sharpness.adaptive_worst_case_sharpness(p, d, 0.1, 2),
    ],
    "bound": lambda p, d, q: sharpness.pac_bayes_bound(
        connectivity(p), d, q, [Scales(0.5, 0.4)], drawn()
    ),
    "low-rank-bound": lambda p, d, q: sharpness.low_rank_pac_bayes_bound(
        connectivity(p), d, q, [Scales(0.5, 0.4)], drawn(), num_directions=1
    ),
    "audit": lambda p, d, q: audit(network().to(p.device), Categorical(), d, num_draws=1),
    "compare": lambda p, d, q: compare([p, p], q, num_resamples=5),
    "calibrate": lambda p, d, q: calibrate(
        p, d, q, q, {"walk": WALK, "scaling": temperature_scaling}
    ),
    "gex": fitted(lambda p: GEX(members=2, steps=3, learning_rate=0.1)),
    "gex-search": fitted(lambda p: GEX(members=2, steps=2, max_trials=1)),
    "influence-function": fitted(lambda p: InfluenceFunction(damping=0.1)),
    "gradient-dot": fitted(lambda p: GradientDot()),
    "tracin": fitted(lambda p: TracIn([p.params])),
    "random-projection": fitted(lambda p: RandomProjection()),
    "arnoldi": fitted(lambda p: ArnoldiInfluence(num_iterations=3, num_pairs=2, damping=0.1)),
    "labels-gex": lambda p, d, q: analyze_labels(p, d, GEX(members=2, steps=3, learning_rate=0.1)),
    "labels": lambda p, d, q: analyze_labels(p, data(5, 40, HERE), Unlearning()),
    "labels-loss": lambda p, d, q: analyze_labels(p, d, loss_scores),
}


NEAR = ("outputs", "products-ggn", "laplace-kfac", "measures", "influence-function", "gex")
"""Calls that are also tried with the network here and the data elsewhere."""

APART = [(name, ELSEWHERE, HERE) for name in CALLS] + [(name, HERE, ELSEWHERE) for name in NEAR]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "place", "other"), APART, ids=lambda value: str(value))
def test_every_call_puts_right_what_lies_apart(name: str, place, other):
    with Pretend():
        problem = Problem.from_module(network().to(place), Categorical())
        assert problem.device == place
        CALLS[name](problem, data(0, 20, other), data(3, 9, other))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_all_likelihoods_draw_and_lose_apart(likelihood: str):
    target = LIKELIHOODS[likelihood]
    with Pretend():
        found = torch.randn(7, target.num_outputs).to(ELSEWHERE)
        y = target.targets(drawn()).to(ELSEWHERE)
        target.likelihood.check(found, y)
        assert target.likelihood.loss(found, y).device == ELSEWHERE
        if likelihood != "per-sample":
            assert target.likelihood.sample(found, drawn()).device == ELSEWHERE
            assert target.likelihood.root(found).device == ELSEWHERE


EDGES: Mapping[str, Callable[[graph.GraphProblem], Any]] = {
    "exact": lambda p: graph.edge_influence(p, damping=0.1),
    "gradients": lambda p: graph.edge_influence(
        p, damping=0.1, inverse=graph.conjugate_gradients, method=graph.FirstOrder()
    ),
    "closed-form": lambda p: graph.edge_influence(p, damping=0.1, propagation=graph.ClosedForm()),
    "screened": lambda p: graph.screened_influence(p, 3, damping=0.1),
    "nodes": lambda p: graph.node_influence(p, [1, 2], damping=0.1),
    "features": lambda p: graph.feature_influence(
        p, torch.tensor([1, 2]), torch.zeros(2, 30).double(), damping=0.1
    ),
    "insertions": lambda p: graph.insertion_influence(p, torch.tensor([[1, 9]]), damping=0.1),
}


@pytest.mark.parametrize("name", EDGES)
def test_graphs_that_lie_apart_from_their_network_are_put_right(name: str):
    with Pretend():
        problem = graph.graph_problem(make_network("sgc").to(ELSEWHERE), make_data())
        assert problem.x.device == ELSEWHERE
        EDGES[name](problem)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "place", "other"), APART, ids=lambda value: str(value))
def test_so_it_is_on_a_gpu(name: str, place, other):
    problem = Problem.from_module(network().to(place), Categorical())
    CALLS[name](problem, data(0, 20, other), data(3, 9, other))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("of", [curvature.diagonal, curvature.kfac, curvature.ggn])
def test_a_gpu_gives_what_the_processor_gives(of):
    found = [
        of(Problem.from_module(network().double().to(place), Categorical()), doubled).to_dense()
        for place in (HERE, ELSEWHERE)
        for doubled in [Batches((torch.ones(5, 4).double(), torch.arange(5) % 3), 2)]
    ]
    torch.testing.assert_close(found[1].cpu(), found[0], rtol=1e-9, atol=1e-11)


# The device that is not there ---------------------------------------------------------------------


BROKEN: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda far, near: far + near,
    "product": lambda far, near: near @ far.mT,
    "indices": lambda far, near: near[far[:, 0].long()],
    "index_add": lambda far, near: far.index_add(0, torch.tensor([0]), far[:1]),
    "generator": lambda far, near: torch.bernoulli(far.sigmoid(), generator=drawn()),
    "draw": lambda far, near: torch.randn(2, generator=drawn(), device=far.device),
    "numpy": lambda far, near: far.numpy(),
    "array": lambda far, near: np.asarray(far),
    "mapped": lambda far, near: torch.func.vmap(lambda a: a + near[0])(far),
    "new": lambda far, near: far + torch.zeros(2, 2),
    "view": lambda far, near: far.mT.flatten() + near.flatten(),
}
SOUND: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "number": lambda far, near: far * torch.tensor(2.0) + near.sum(),
    "moved": lambda far, near: far.cpu() + near + far.to("cpu") + far.to(near),
    "there": lambda far, near: far + near.to(far.device) + near.to(far),
    "indices": lambda far, near: far[near[:, 0].long().clamp(0, 1)],
    "gradient": lambda far, near: torch.func.grad(lambda a: a.sin().sum())(far) + far,
    "tangent": lambda far, near: torch.func.jvp(torch.sin, (far,), (far,))[1] + far,
    "copy": lambda far, near: torch.empty_like(far).copy_(near) + far,
    "draw": lambda far, near: torch.randn(2, 2, generator=drawn()).to(far) + far,
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_pretended_device_refuses_what_a_gpu_refuses(name: str):
    with Pretend():
        near = torch.rand(2, 2)
        far = torch.rand(2, 2).to(ELSEWHERE)
        with pytest.raises((RuntimeError, TypeError)):
            BROKEN[name](far, near)


@pytest.mark.parametrize("name", SOUND)
def test_and_allows_what_a_gpu_allows(name: str):
    with Pretend():
        near = torch.rand(2, 2)
        SOUND[name](torch.rand(2, 2).to(ELSEWHERE), near)

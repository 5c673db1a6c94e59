"""Rules of similarity, beside sets and angles worked out pair by pair."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from afterfit import graph
from afterfit.graph import GraphProblem, similarity
from afterfit.graph.inverse import smaller
from afterfit.graph.rules import Round
from afterfit.typing import Params
from tests.unit.graph.networks import make_network, make_problem


def words(problem: GraphProblem) -> Tensor:
    """Features with zeros, some nodes without any."""
    kept = problem.x * (problem.x > 0.8)
    kept[:3] = 0
    return kept


def a_round() -> Round:
    problem = make_problem("sgc")
    problem = replace(problem, x=words(problem))
    return Round(problem, 0, graph.Exact(), smaller, 0.1)


def jaccard_of(one: Tensor, other: Tensor) -> float:
    a, b = set(one.nonzero()[:, 0].tolist()), set(other.nonzero()[:, 0].tolist())
    return len(a & b) / len(a | b) if a | b else 0.0


def cosine_of(one: Tensor, other: Tensor) -> float:
    size = math.hypot(*one.tolist()) * math.hypot(*other.tolist())
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True)) / (size or 1.0)


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize(
    ("found", "expected"), [(graph.jaccard, jaccard_of), (graph.cosine, cosine_of)]
)
def test_similarities_are_those_of_the_pairs(monkeypatch, budget, found, expected):
    monkeypatch.setattr(similarity, "_BUDGET", budget)
    problem = a_round().problem
    pairs = problem.edges.pairs
    by_hand = [expected(problem.x[u], problem.x[v]) for u, v in pairs.tolist()]
    assert torch.allclose(found(problem.x, pairs), torch.tensor(by_hand).double(), atol=1e-15)
    assert len(set(by_hand)) > 5
    assert len(found(problem.x, pairs[:0])) == 0


def test_dissimilar_takes_all_below_the_threshold_and_the_least_alike_first():
    now = a_round()
    alike = graph.jaccard(now.problem.x, now.problem.edges.pairs)
    taken = graph.Dissimilar(0.2)(now)
    assert set(taken.tolist()) == set((alike < 0.2).nonzero()[:, 0].tolist())
    assert bool((alike[taken].diff() >= 0).all())
    assert 0 < len(taken) < len(alike)
    assert not len(graph.Dissimilar(0.0)(now))


@pytest.mark.parametrize("share", [1e-9, 0.1, 1])
@pytest.mark.parametrize("measure", [graph.jaccard, graph.cosine])
def test_the_least_similar_share_is_the_lowest(share, measure):
    now = a_round()
    alike = measure(now.problem.x, now.problem.edges.pairs)
    taken = graph.LeastSimilar(share, measure)(now)
    assert len(taken) == math.ceil(share * len(alike))
    assert torch.equal(alike[taken], alike.sort().values[: len(taken)])


def test_features_without_zeros_have_no_jaccard_similarity():
    problem = make_problem("sgc")
    with pytest.raises(ValueError, match="use cosine"):
        graph.jaccard(problem.x, problem.edges.pairs)


@pytest.mark.parametrize("measure", [graph.jaccard, graph.cosine])
def test_features_that_number_the_nodes_have_no_similarity(measure):
    now = a_round()
    numbered = replace(now.problem, x=torch.eye(now.problem.num_nodes).double())
    with pytest.raises(ValueError, match="no feature is that of two nodes"):
        graph.Dissimilar(0.01, measure)(replace(now, problem=numbered))


def test_a_rule_without_influence_runs_its_rounds_whatever_is_foretold():
    problem = a_round().problem

    def same(edge_index: Tensor, params: Params) -> nn.Module:
        module = make_network("sgc")
        with torch.no_grad():
            module.lin.weight.copy_(1.01 * params["lin.weight"])
        return module

    found = graph.rectify(
        problem,
        same,
        damping=0.1,
        rule=graph.LeastSimilar(0.1),
        max_rounds=4,
        keep=graph.last_round,
    )
    assert len(found.history) == 5
    assert all(math.isnan(record.predicted) for record in found.history[1:])
    once = graph.rectify(
        problem,
        same,
        damping=0.1,
        rule=graph.Dissimilar(0.2),
        keep=graph.last_round,
    )
    assert len(once.history) == 2
    left = graph.jaccard(problem.x, once.edges.pairs)
    assert float(left.min()) >= 0.2

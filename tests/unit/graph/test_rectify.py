import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch_geometric.nn import SGConv

from afterfit import graph
from afterfit.graph import GraphProblem
from afterfit.graph.exact import Exact
from afterfit.graph.inverse import smaller
from afterfit.graph.rectify import RoundRecord
from afterfit.graph.rules import Round, fold_scores, opponents
from tests.unit.graph.networks import NUM_CLASSES, NUM_FEATURES, make_data

DECAY = 0.3  # nine training nodes: with less, one edge moves the network out of the linear range


def train(edge_index: Tensor, params=None) -> nn.Module:
    """SGC trained to its optimum from the same start each time."""
    data = make_data()
    module = SGConv(NUM_FEATURES, NUM_CLASSES, K=2, bias=False).double()
    with torch.no_grad():
        module.lin.weight.zero_()
    weight = module.lin.weight
    optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-11)

    def loss() -> Tensor:
        optimizer.zero_grad()
        outputs = module(data.x, edge_index)[data.train_mask]
        value = nn.functional.cross_entropy(outputs, data.y[data.train_mask])
        value = value + 0.5 * DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return module.eval()


@cache
def trained() -> GraphProblem:
    whole = graph.union(make_data().edge_index, len(make_data().x))
    return graph.graph_problem(train(whole.edge_index()), make_data())


@cache
def a_round() -> Round:
    problem = trained()
    return Round(problem, 0, Exact(), smaller, DECAY)


# Influence foretells what training again does ---------------------------------------------------


def retrained_changes(problem: GraphProblem) -> Tensor:
    """Change of the validation loss on the given graph when each edge is left out of training."""

    def loss(at: GraphProblem) -> Tensor:
        return graph.validation_loss(at, at.outputs(at.read_on))

    changes = []
    for edge in range(problem.edges.num_edges):
        edges = problem.edges.without(torch.tensor([edge]))
        changes.append(loss(problem.with_module(train(edges.edge_index()))) - loss(problem))
    return torch.stack(changes)


def test_influence_foretells_training_again_and_newton_does_so_better():
    problem = trained()
    actual = retrained_changes(problem)
    moved = actual.abs() > 1e-9
    exact = graph.edge_influence(problem, damping=DECAY).shift
    newton = graph.edge_influence(problem, damping=DECAY, method=graph.Newton(DECAY)).shift
    errors = {}
    for name, found in (("exact", exact), ("newton", newton)):
        both = torch.stack([found[moved], actual[moved]])
        assert float(torch.corrcoef(both)[0, 1]) > 0.9
        large = actual.abs() > actual.abs().median()
        assert float((found.sign() == actual.sign())[large].double().mean()) > 0.9
        errors[name] = float((found - actual).abs().sum())
    assert errors["newton"] < 0.5 * errors["exact"]
    assert bool((exact[~moved].abs() < 1e-8).all())


def test_an_edge_whose_removal_lowers_the_loss_scores_below_zero():
    problem = trained()
    worst = int(a_round().scores.argmin())
    assert float(a_round().scores[worst]) < 0
    again = train(problem.edges.without(torch.tensor([worst])).edge_index())
    before = graph.validation_loss(problem, problem.outputs(problem.read_on))
    moved = problem.with_module(again)
    assert float(graph.validation_loss(moved, moved.outputs(moved.read_on)) - before) < 0


# Rules -----------------------------------------------------------------------------------------


def test_opponents_come_in_order_and_rounding_errors_are_none():
    scores = torch.tensor([0.5, -1e-14, -0.2, 0.0, -0.9, 1e-20])
    assert opponents(scores).tolist() == [4, 2]
    assert opponents(torch.zeros(3)).tolist() == []
    assert opponents(torch.zeros(0)).tolist() == []


def test_simple_rules_take_what_their_names_say():
    now = a_round()
    bad = opponents(now.scores).tolist()
    assert len(bad) > 5
    assert graph.all_opponents(now).tolist() == bad
    assert graph.Top(3)(now).tolist() == bad[:3]
    assert graph.TopShare(0.1)(now).tolist() == bad[: math.ceil(0.1 * len(now.scores))]
    assert graph.TopShare(1e-9)(now).tolist() == bad[:1]


def test_random_rules_follow_their_seed_and_the_round():
    now = a_round()
    one = graph.RandomShare(0.5, seed=1)(now)
    assert set(one.tolist()) <= set(opponents(now.scores).tolist())
    assert len(one) == math.ceil(0.5 * len(opponents(now.scores)))
    assert torch.equal(one, graph.RandomShare(0.5, seed=1)(now))
    assert not torch.equal(one, graph.RandomShare(0.5, seed=1)(replace(now, number=1)))
    edges = graph.RandomEdges(7, seed=2)(now)
    assert len(edges.unique()) == 7
    assert len(edges) == 7


def test_a_strictly_repulsive_group_is_distant_and_cannot_grow():
    now = a_round()
    taken = graph.Repulsive(math.inf)(now).tolist()
    pairs = now.problem.edges.pairs
    assert len(taken) > 1
    assert graph.is_distant(now.problem, pairs[taken])
    for other in set(opponents(now.scores).tolist()) - set(taken):
        group = pairs[[*taken, other]]
        assert not graph.is_distant(now.problem, group)


def test_repulsion_takes_the_most_harmful_edge_first():
    now = a_round()
    assert int(graph.Repulsive(math.inf)(now)[0]) == int(now.scores.argmin())


def greedy_by_hand(sets: list[set[int]], patience: float) -> list[int]:
    """Algorithm 1's selection, written once more."""
    used: set[int] = set()
    taken, wait = [], 0
    for edge, nodes in enumerate(sets):
        if not nodes:
            continue
        if not (nodes & used) or wait > patience:
            taken.append(edge)
            used |= nodes
            wait = 0
        else:
            wait += 1
    return taken


@pytest.mark.parametrize("patience", [-1, 0, 1, 5, math.inf])
def test_patience_is_that_of_the_published_algorithm(patience):
    now = a_round()
    bad = opponents(now.scores)
    pairs = now.problem.edges.pairs[bad]
    for radius in (graph.exact_radius, graph.paper_radius):
        sets = [set(n.tolist()) for n in graph.affected_nodes(now.problem, pairs, radius)]
        expected = bad[greedy_by_hand(sets, patience)]
        assert torch.equal(graph.Repulsive(patience, radius)(now), expected)
    if patience == -1:
        assert torch.equal(graph.Repulsive(-1)(now), bad)


def test_patience_counts_from_the_last_edge_taken():
    from afterfit.graph.rules import _apart

    every = csr_matrix(np.ones((9, 1), dtype=bool))  # all edges affect the same node
    assert _apart(every, 1, 1).tolist() == [0, 3, 6]
    assert _apart(every, 1, math.inf).tolist() == [0]


def test_the_published_patience_follows_the_degree_of_training_nodes():
    problem = trained()
    counts = torch.zeros(problem.num_nodes)
    for pair in problem.edges.pairs.tolist():
        counts[pair] += 1
    degree = float((counts[problem.train] + 1).mean())
    assert graph.published_patience(problem) == max(round(math.log2(degree - 1)) + 3, 1)


def test_consistent_opponents_are_those_below_zero_by_their_standard_error():
    now = a_round()
    mean, stderr = fold_scores(now, folds=4, seed=0)
    generator = torch.Generator().manual_seed(0)
    nodes = now.problem.validation
    parts = nodes[torch.randperm(len(nodes), generator=generator)].tensor_split(4)
    columns = torch.stack(
        [
            graph.edge_influence(now.problem, damping=DECAY, target=graph.mean_loss(part)).shift
            for part in parts
        ],
        1,
    )
    assert torch.allclose(mean, columns.mean(1), atol=1e-12)
    assert torch.allclose(stderr, columns.std(1) / 2, atol=1e-12)
    taken = graph.Consistent(errors=1.0, share=1.0, folds=4)(now)
    expected = (mean < -stderr).nonzero()[:, 0]
    assert set(taken.tolist()) == set(expected.tolist())
    assert len(graph.Consistent(errors=0.0, share=1e-9, folds=4)(now)) == 1


# Rectification ---------------------------------------------------------------------------------


def test_rounds_are_recorded_and_add_up():
    problem = trained()
    found = graph.rectify(
        problem,
        train,
        damping=DECAY,
        rule=graph.Top(2),
        held_out=0.4,
        max_rounds=4,
        keep=graph.best_held_out,
    )
    history = found.history
    assert len(history) == 5
    assert [record.number for record in history] == list(range(5))
    assert len(history[0].removed) == 0
    for before, after in itertools.pairwise(history):
        assert len(after.removed) == 2
        assert after.predicted < 0
        assert after.actual == pytest.approx(after.validation_loss - before.validation_loss)
    losses = [record.held_out_loss for record in history]
    assert graph.best_held_out(history) == losses.index(min(losses))
    assert len(found.removed) == 2 * found.kept
    left = {tuple(pair) for pair in found.edges.pairs.tolist()}
    gone = {tuple(pair) for pair in found.removed.tolist()}
    assert not left & gone
    assert left | gone == {tuple(pair) for pair in problem.edges.pairs.tolist()}


def test_the_kept_network_is_the_one_trained_on_the_kept_graph():
    found = graph.rectify(
        trained(),
        train,
        damping=DECAY,
        rule=graph.Top(3),
        held_out=0.0,
        keep=graph.last_round,
        max_rounds=2,
    )
    again = train(found.edge_index())
    weight = found.problem.problem.params["lin.weight"]
    assert torch.allclose(weight, again.lin.weight, atol=1e-9)
    assert found.kept == 2
    record = found.history[-1]
    outputs = found.problem.outputs(found.problem.read_on)
    loss = graph.validation_loss(found.problem, outputs)
    assert record.validation_loss == pytest.approx(float(loss))
    node = trained().test
    right = (outputs[node].argmax(1) == trained().y[node]).double().mean()
    assert record.test_accuracy == pytest.approx(float(right))


def test_held_out_nodes_choose_no_edge():
    problem, seen = trained(), []

    def rule(now: Round) -> Tensor:
        seen.append(now.problem.validation)
        return graph.Top(1)(now)

    found = graph.rectify(problem, train, damping=DECAY, rule=rule, held_out=0.5, max_rounds=1)
    half = round(0.5 * len(problem.validation))
    assert all(len(nodes) == len(problem.validation) - half for nodes in seen)
    assert len(found.problem.validation) == len(problem.validation)


def test_training_is_given_the_parameters_of_the_round_before():
    given = []

    def warm(edge_index: Tensor, params) -> nn.Module:
        given.append(params["lin.weight"].clone())
        return train(edge_index)

    graph.rectify(trained(), warm, damping=DECAY, rule=graph.Top(1), max_rounds=2)
    assert torch.equal(given[0], trained().problem.params["lin.weight"])
    assert not torch.equal(given[0], given[1])


def test_the_search_ends_when_nothing_is_left_or_too_little_is_foretold():
    def nothing(now: Round) -> Tensor:
        return torch.zeros(0, dtype=torch.long)

    ended = graph.rectify(trained(), train, damping=DECAY, rule=nothing)
    assert len(ended.history) == 1
    assert ended.kept == 0
    tolerant = graph.rectify(trained(), train, damping=DECAY, rule=graph.Top(1), tolerance=1e3)
    assert len(tolerant.history) == 1


def test_the_published_mode_is_the_loop_of_algorithm_1():
    """Twice the weight decay, radius K − 1, patience, all validation nodes, the last round."""
    problem = trained()
    found = graph.published(problem, train, weight_decay=DECAY, max_rounds=3)
    now, removed = problem, []
    for _ in range(3):
        scores = graph.edge_influence(now, damping=2 * DECAY).shift
        bad = opponents(scores)
        pairs = now.edges.pairs[bad]
        sets = [set(n.tolist()) for n in graph.affected_nodes(now, pairs, graph.paper_radius)]
        taken = bad[greedy_by_hand(sets, graph.published_patience(problem))]
        if not len(taken):
            break
        removed += [tuple(pair) for pair in now.edges.pairs[taken].tolist()]
        edges = now.edges.without(taken)
        now = now.with_edges(edges).with_module(train(edges.edge_index()))
    assert [tuple(pair) for pair in found.removed.tolist()] == removed
    assert found.kept == len(found.history) - 1


def test_tables_hold_a_row_a_round_and_a_row_an_edge():
    found = graph.rectify(trained(), train, damping=DECAY, rule=graph.Top(2), max_rounds=3)
    table = found.to_pandas()
    assert len(table) == len(found.history)
    assert table["kept"].sum() == 1
    removed = found.removed_to_pandas()
    assert list(removed.columns) == ["round", "u", "v"]
    assert len(removed) == len(found.removed)


@pytest.mark.parametrize("held_out", [-0.1, 1.0, 2.0])
def test_shares_that_leave_no_node_are_refused(held_out):
    with pytest.raises(ValueError, match="validation nodes, expected a share"):
        graph.rectify(trained(), train, damping=DECAY, rule=graph.Top(1), held_out=held_out)


def test_the_best_round_cannot_be_chosen_without_held_out_nodes():
    with pytest.raises(ValueError, match="pass keep=last_round"):
        graph.rectify(trained(), train, damping=DECAY, rule=graph.Top(1), held_out=0.0)


def test_a_network_that_was_not_trained_again_is_refused():
    module = train(trained().edges.edge_index())

    def forgets(edge_index: Tensor, params) -> nn.Module:
        return module

    with pytest.raises(ValueError, match="train returned the parameters of the round before"):
        graph.rectify(trained(), forgets, damping=DECAY, rule=graph.Top(2))


def test_a_network_that_was_never_trained_is_warned_of():
    def fresh(edge_index: Tensor, params) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            return SGConv(NUM_FEATURES, NUM_CLASSES, K=2, bias=False).double()

    with pytest.warns(RuntimeWarning, match="it looks untrained"):
        graph.rectify(trained(), fresh, damping=DECAY, rule=graph.Top(2), max_rounds=1)


def test_a_network_that_caches_a_graph_is_refused():
    def caching(edge_index: Tensor, params) -> nn.Module:
        module = SGConv(NUM_FEATURES, NUM_CLASSES, K=2, bias=False, cached=True).double()
        module.lin.weight = train(edge_index).lin.weight
        return module

    with pytest.raises(ValueError, match="cached=True"):
        graph.rectify(trained(), caching, damping=DECAY, rule=graph.Top(2), max_rounds=1)


def test_edges_far_from_training_nodes_may_leave_the_parameters_as_they_were():
    reached = graph.affected_nodes(trained(), trained().edges.pairs)
    far = torch.tensor([k for k, nodes in enumerate(reached) if not len(nodes)])

    def rule(now: Round) -> Tensor:
        return far if not now.number else far[:0]

    found = graph.rectify(trained(), train, damping=DECAY, rule=rule, keep=graph.last_round)
    assert len(far)
    assert len(found.removed) == len(far)


# Keeping the graph ------------------------------------------------------------------------------


def record(number: int, gain: float, stderr: float) -> RoundRecord:
    nothing = torch.zeros(0, 2, dtype=torch.long)
    nan = math.nan
    return RoundRecord(number, nothing, 0.0, 0.0, 1.0, 1 - gain, nan, gain, stderr, nan, nan, nan)


def test_a_gain_within_its_standard_error_keeps_the_graph():
    history = [record(0, 0.0, 0.0), record(1, 0.02, 0.02), record(2, 0.10, 0.06)]
    assert graph.best_held_out(history) == 2
    assert graph.ClearGain(2)(history) == 0
    assert graph.ClearGain(1.5)(history) == 2
    assert graph.ClearGain(0)(history) == graph.best_held_out(history)


def test_of_clear_gains_the_largest_is_taken():
    history = [record(0, 0.0, 0.0), record(1, 0.3, 0.1), record(2, 0.4, 0.1), record(3, 0.5, 0.3)]
    assert graph.ClearGain(2)(history) == 2


def test_gains_are_paired_over_held_out_nodes():
    found = graph.rectify(
        trained(), train, damping=DECAY, rule=graph.Top(3), held_out=0.5, max_rounds=2
    )
    held = sorted(set(trained().validation.tolist()) - set(chosen_nodes(0.5)))

    def losses(at: GraphProblem) -> Tensor:
        return at.likelihood.loss(at.outputs(at.read_on)[held], at.y[held])

    gains = losses(trained()) - losses(found.stages[2])
    last = found.history[2]
    assert last.held_out_gain == pytest.approx(float(gains.mean()))
    assert last.held_out_gain_stderr == pytest.approx(float(gains.std()) / len(held) ** 0.5)


def chosen_nodes(held_out: float) -> list[int]:
    """Validation nodes that a rule of the first round is shown."""
    seen: list[int] = []

    def rule(now: Round) -> Tensor:
        seen.extend(now.problem.validation.tolist())
        return torch.zeros(0, dtype=torch.long)

    graph.rectify(trained(), train, damping=DECAY, rule=rule, held_out=held_out)
    return seen


def test_every_round_gives_its_graph_and_its_network():
    found = graph.rectify(trained(), train, damping=DECAY, rule=graph.Top(2), max_rounds=2)
    assert [s.edges.num_edges for s in found.stages] == [
        trained().edges.num_edges - k for k in (0, 2, 4)
    ]
    assert found.problem is found.stages[found.kept]
    for stage in found.stages:
        again = train(stage.edges.edge_index()).lin.weight
        assert torch.allclose(stage.problem.params["lin.weight"], again, atol=1e-9)
        assert torch.equal(stage.validation, trained().validation)


def test_rules_that_do_not_read_scores_cost_none():
    class Unwanted:
        def shift(self, problem, edits, query):
            raise AssertionError

        propagation = shift

    found = graph.rectify(
        trained(), train, damping=DECAY, rule=graph.RandomEdges(2), method=Unwanted(),
        max_rounds=2, keep=graph.last_round,
    )  # fmt: skip
    assert found.kept == 2
    assert all(math.isnan(done.predicted) for done in found.history[1:])


@pytest.mark.parametrize("seed", range(3))
def test_labels_without_a_cause_in_the_graph_keep_it(seed):
    """Nothing can help validation nodes whose classes are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(NUM_CLASSES, trained().y.shape, generator=generator)
    drawn[trained().train] = trained().y[trained().train]
    shuffled = replace(trained(), y=drawn)
    found = graph.rectify(
        shuffled, train, damping=DECAY, rule=graph.Top(2), held_out=0.5, max_rounds=4, seed=seed
    )
    assert len(found.history) > 1
    assert found.kept == 0

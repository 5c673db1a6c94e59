"""A run over the edges of a small graph, some of which were drawn at random."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, nn
from torch_geometric.data import Data
from torch_geometric.nn import SGConv

from afterfit import graph
from afterfit.workflows.edge_run import pairs_of_opponents, run_edges

DECAY = 1e-2


def fitted(data: Data, edge_index: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = SGConv(5, 3, K=2, bias=False).double()
    optimizer = torch.optim.Adam(net.parameters(), 0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(data.x, edge_index)[:20], data.y[:20])
        (loss + 0.5 * DECAY * net.lin.weight.square().sum()).backward()
        optimizer.step()
    return net.eval()


def trained() -> graph.TrainedGraph:
    generator = Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) + torch.eye(5).double()[y]
    near = torch.randint(20, (2, 90), generator=generator) * 3
    kind = torch.randint(3, (90,), generator=generator)
    noise = torch.randint(60, (2, 30), generator=generator)
    index = torch.cat([near + kind, noise], 1)
    masks = {"train_mask": slice(0, 20), "val_mask": slice(20, 40), "test_mask": slice(40, 60)}
    data = Data(x=x, y=y, edge_index=index)
    for name, part in masks.items():
        mask = torch.zeros(60, dtype=torch.bool)
        mask[part] = True
        data[name] = mask
    edges = graph.union(index, 60).edge_index()
    return graph.TrainedGraph(
        fitted(data, edges), data, DECAY, lambda edge_index, _: fitted(data, edge_index),
        names=[f"node <{k}>" for k in range(60)], classes=("a", "b", "c"),
    )  # fmt: skip


def test_a_run_scores_removes_and_reports(tmp_path):
    given = trained()
    run = run_edges(given, tmp_path, graph.Top(5), max_rounds=3)
    scores = pd.read_csv(tmp_path / "edges.csv")
    assert len(scores) == given.problem().edges.num_edges
    assert scores["score"].is_monotonic_increasing
    rounds, removed = pd.read_csv(tmp_path / "rounds.csv"), pd.read_csv(tmp_path / "removed.csv")
    changes = rounds["validation_loss"].diff()[1:]
    np.testing.assert_allclose(changes, rounds["actual"][1:], atol=1e-12)
    assert (rounds["predicted"][1:] < 0).all()
    assert len(removed) == run.figures["removed"]
    assert json.loads((tmp_path / "result.json").read_text()) == run.figures
    settings = tomllib.loads((tmp_path / "run.toml").read_text())["edges"]
    assert (settings["rule"], settings["damping"]) == ("Top(size=5)", DECAY)
    page = run.report.read_text()
    assert page.count("<svg") == 3
    assert "<0>" not in page


def test_distant_pairs_are_additive_and_neighbors_are_not():
    given = trained()
    problem = given.problem()
    influence = graph.edge_influence(problem, damping=DECAY)
    pairs = pairs_of_opponents(problem, influence, DECAY, seed=0)
    gaps = {name: np.abs(together - sums).max() for name, (sums, together) in pairs.items()}
    assert gaps["neighbors"] > 1e-6
    if "distant" in gaps:
        assert gaps["distant"] < 1e-14


def test_without_training_again_edges_are_only_scored(tmp_path):
    run = run_edges(replace(trained(), train_again=None), tmp_path, graph.Top(5))
    assert run.found.rectified is None
    assert not (tmp_path / "rounds.csv").exists()
    assert "no edge was removed" in run.report.read_text()


def test_a_rule_that_finds_nothing_leaves_the_graph(tmp_path):
    run = run_edges(trained(), tmp_path, lambda _: torch.zeros(0, dtype=torch.long))
    assert run.figures["removed"] == 0
    assert run.figures["test_accuracy_before"] == run.figures["test_accuracy_after"]
    assert "Keep the graph: no round clearly" in run.report.read_text()


def test_a_rule_without_influence_goes_on_whatever_is_foretold(tmp_path):
    rule = graph.LeastSimilar(0.1, graph.cosine)
    run = run_edges(trained(), tmp_path, rule, max_rounds=3)
    assert run.found.rectified is not None
    assert len(run.found.rectified.history) == 4


def test_names_stand_in_for_numbers():
    assert trained().name(3) == "node <3>"
    assert replace(trained(), names=()).name(3) == "3"
    with pytest.raises(IndexError):
        trained().name(60)

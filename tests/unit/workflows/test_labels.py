"""From a trained network to a table, and what is done about the labels."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, nn
from torch.utils.data import TensorDataset

from afterfit import (
    GEX,
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    PerSample,
    Poisson,
    Problem,
    Trained,
    TrainingTrace,
    Unlearning,
    analyze_labels,
    corrected_labels,
    find_label_issues,
    prune,
    verify,
)
from afterfit.evaluate import otsu_cut
from afterfit.influence.simple import loss_scores
from afterfit.influence.tracin import GradientDot
from afterfit.workflows import LabelAnalysis, prune_easy, relabel, run_labels, soft_targets
from tests.listening import heard_by

QUICK = GEX(members=4, steps=6, max_trials=2)
WALKS = Unlearning(rates=(0.0125, 0.025, 0.05, 0.1), epochs=0.1)


def two_groups(num: int = 60) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two clouds; the first three labels are wrong."""
    generator = Generator().manual_seed(0)
    clean = torch.arange(num) % 2
    x = torch.randn(num, 2, generator=generator) * 0.3 + 2 * clean[:, None]
    y = clean.clone()
    y[:3] = 1 - y[:3]
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]))
        net.bias.copy_(torch.tensor([4.0, -4.0]))
    return net, x, y, y != clean


def test_the_table_ranks_flags_and_suggests():
    net, x, y, wrong = two_groups()
    data = Batches((x, y), ids=[f"s{i}" for i in range(60)])
    issues = find_label_issues(Problem.from_module(net, Categorical()), data, QUICK, cut=otsu_cut)
    assert list(issues.columns) == [
        "id", "given", "suggested", "confidence", "p_wrong", "is_issue", "score", "stderr", "rank",
        "loss", "margin",
    ]  # fmt: skip
    assert issues.index.name == "index"
    assert set(issues.index[:3]) == {0, 1, 2}
    assert issues["rank"].tolist() == list(range(1, 61))
    assert issues["score"].is_monotonic_decreasing
    assert issues["id"].tolist() == [f"s{i}" for i in issues.index]
    flagged = issues[issues["is_issue"]]
    assert set(flagged.index) == set(wrong.nonzero()[:, 0].tolist())
    assert bool((flagged["suggested"] != flagged["given"]).all())


def likelihood_cases():
    x = torch.randn(20, 3, generator=Generator().manual_seed(1))
    yes = (x[:, 0] > 0).float()
    per_sample = PerSample(lambda outputs, y: (outputs[:, 0] - y).abs())
    plain = GEX(members=3, steps=4, learning_rate=0.1)
    return [
        (Bernoulli(), 1, yes, QUICK),
        (Bernoulli(), 2, torch.stack([yes, 1 - yes], 1), QUICK),
        (Gaussian(), 1, x[:, :1], QUICK),
        (Poisson(), 1, yes[:, None], QUICK),
        (per_sample, 1, yes, plain),
    ], x


@pytest.mark.parametrize("number", range(5))
@pytest.mark.filterwarnings("ignore:no learning rate keeps")  # the network is not trained
def test_every_likelihood_gets_a_table(number):
    cases, x = likelihood_cases()
    likelihood, width, y, method = cases[number]
    problem = Problem.from_module(nn.Linear(3, width), likelihood)
    issues = find_label_issues(problem, Batches((x, y)), method)
    assert len(issues) == 20
    assert not issues["score"].isna().any()


def test_a_plain_score_or_another_method_is_taken_but_not_its_fit(tmp_path):
    net, x, y, _ = two_groups()
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    for method in (loss_scores, GradientDot()):
        assert set(find_label_issues(problem, data, method).index[:3]) == {0, 1, 2}
        with pytest.raises(ValueError, match="for Unlearning and GEX"):
            find_label_issues(problem, data, method, folder=tmp_path)


# The index, probabilities, and what there is without them -----------------------------------------


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where members of the walks stay, so that the tests below do not train again."""
    return tmp_path_factory.mktemp("walked")


@pytest.fixture(scope="module")
def judged(walked: Path) -> tuple[Problem, Batches, LabelAnalysis, torch.Tensor]:
    """What the default method finds on 200 samples, the first three of which are wrong."""
    net, x, y, wrong = two_groups(200)
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    return problem, data, analyze_labels(problem, data, WALKS, folder=walked), wrong


def recorded(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> TrainingTrace:
    """A trace of three epochs in which the network grew into what it is."""
    trace = TrainingTrace(len(x), Categorical())
    with torch.no_grad():
        for scale in (0.1, 0.5, 1.0):
            for batch in torch.arange(len(x)).split(32):
                trace.record(batch, scale * net(x[batch]), y[batch])
    return trace


@pytest.mark.parametrize("method", [loss_scores, GradientDot(), QUICK, WALKS])
def test_the_index_is_the_position_so_that_rows_and_joins_are_of_the_same_sample(method: Any):
    """It used to be the rank, so that ``sort_index`` and joins silently paired other samples."""
    net, x, y, _ = two_groups(64)
    names = [f"s{i}" for i in range(64)]
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y), ids=names)
    table = find_label_issues(problem, data, method)
    assert table.index.tolist() != list(range(64))  # sorted by suspicion, or this shows nothing
    assert table.index.name == "index"
    assert "index" not in table.columns
    assert table.sort_index()["id"].tolist() == names
    assert table.sort_index()["given"].tolist() == y.tolist()
    assert [table.loc[i, "id"] for i in range(64)] == names
    assert [table.loc[i, "given"] for i in range(64)] == y.tolist()
    own = pd.DataFrame({"name": names, "label": y.numpy(), "first": x[:, 0].numpy()})
    joined = own.join(table)
    assert joined["id"].tolist() == joined["name"].tolist() == names
    assert joined["given"].equals(joined["label"])
    assert table.join(own)["name"].tolist() == table["id"].tolist()
    assert own.merge(table, left_index=True, right_index=True)["name"].equals(joined["id"])
    doubtful = own.loc[table["rank"] <= 3]  # a mask is aligned by the index too
    assert set(doubtful["name"]) == set(table["id"][:3])
    aligned = own.assign(score=table["score"])
    assert aligned["score"].tolist() == table.sort_index()["score"].tolist()
    assert table.reset_index()["index"].tolist() == table.index.tolist()


def test_the_default_knows_how_probable_each_wrong_label_is(judged):
    _, _, found, wrong = judged
    table = found.issues
    assert table["p_wrong"].between(0, 1).all()
    assert table["p_wrong"].is_monotonic_decreasing
    assert set(table.index[:3]) == set(wrong.nonzero()[:, 0].tolist())
    assert table["is_issue"].tolist() == (table["p_wrong"] > 0.5).tolist()
    assert table["is_issue"][:3].all()
    assert found.share.value == pytest.approx(table["p_wrong"].mean())
    assert found.share.low <= found.share.value <= found.share.high
    assert found.share.low <= 3 / 200 <= found.share.high
    assert found.cut.expected_wrong == pytest.approx(found.share.value)
    assert found.agreement.keys() == {"loss", "margin"}


def test_what_is_done_about_labels_follows_the_probabilities(judged):
    problem, data, found, _ = judged
    flagged = set(found.issues.index[found.issues["p_wrong"] > 0.5])
    assert 3 <= len(flagged) < 20
    kept = [i for i in range(200) if i not in flagged]
    assert found.kept.tolist() == kept
    assert prune(range(200), found).indices == kept
    y, changed = data.targets(), corrected_labels(found)
    for i in range(200):
        assert int(changed[i]) == (1 - int(y[i]) if i in flagged else int(y[i]))
    _, targets = relabel(problem, data, found).tensors
    assert set((targets.argmax(1) != y).nonzero()[:, 0].tolist()) == flagged


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4])
def test_so_many_are_flagged_that_the_expected_share_of_right_ones_is_the_rate(
    rate: float, judged, walked: Path
):
    problem, data, plain, _ = judged
    found = analyze_labels(problem, data, WALKS, false_discovery_rate=rate, folder=walked)
    pd.testing.assert_series_equal(found.issues["p_wrong"], plain.issues["p_wrong"])
    num = int(found.issues["is_issue"].sum())
    assert found.issues["is_issue"][:num].all()  # a stretch from the top
    right = (0.25 + (1 - found.issues["p_wrong"]).cumsum()) / np.arange(1, 201)
    within = [k for k, share in enumerate(right, start=1) if share <= rate]
    more = max(within, default=0)
    assert more > 0 or rate < 0.4
    # As many as may be, but for equal scores, which are never parted.
    assert num == more or found.issues["score"].iloc[num] == found.issues["score"].iloc[more - 1]
    assert found.cut.name == f"false discovery rate {rate:g}"
    assert found.kept.tolist() == sorted(found.issues.index[num:])


def test_a_larger_rate_flags_no_fewer(judged, walked: Path):
    problem, data, _, _ = judged
    flags = [
        find_label_issues(problem, data, WALKS, false_discovery_rate=rate, folder=walked)[
            "is_issue"
        ].sum()
        for rate in (0.001, 0.5, 0.9)
    ]
    assert flags == sorted(flags)
    assert flags[0] < flags[-1]


def called(problem: Problem, data: Batches) -> torch.Tensor:
    """Score that must not be asked for."""
    message = "the method was asked for scores"
    raise AssertionError(message)


@pytest.mark.parametrize("method", [called, None])
def test_a_cut_and_a_rate_are_one_too_many(method: Any):
    net, x, y, _ = two_groups(64)
    with pytest.raises(ValueError, match="both cut and false_discovery_rate are given"):
        find_label_issues(
            Problem.from_module(net, Categorical()), Batches((x, y)), method,
            cut=otsu_cut, false_discovery_rate=0.1,
        )  # fmt: skip


@pytest.mark.parametrize("method", [loss_scores, GradientDot(), QUICK])
def test_a_rate_needs_probabilities(method: Any):
    net, x, y, _ = two_groups()
    with pytest.raises(ValueError, match="needs probabilities, which only Unlearning has"):
        find_label_issues(
            Problem.from_module(net, Categorical()), Batches((x, y)), method,
            false_discovery_rate=0.1,
        )  # fmt: skip


def test_a_rate_without_probabilities_is_refused_before_anything_is_computed():
    net, x, y, _ = two_groups()
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    with pytest.raises(ValueError, match="needs probabilities"):
        find_label_issues(problem, data, called, false_discovery_rate=0.1)


@pytest.mark.parametrize("rate", [0.0, 1.5, float("nan")])
def test_a_rate_that_is_none_is_refused_before_anything_is_trained(rate: float):
    net, x, y, _ = two_groups(64)
    told: list[str] = []
    with pytest.raises(ValueError, match="expected between 0 and 1"), heard_by(told.append):
        find_label_issues(
            Problem.from_module(net, Categorical()), Batches((x, y)), WALKS,
            false_discovery_rate=rate,
        )  # fmt: skip
    assert told == []


@pytest.mark.parametrize("method", [loss_scores, GradientDot(), QUICK])
def test_without_a_decision_there_is_a_ranking_and_nothing_else(method: Any):
    net, x, y, _ = two_groups()
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    found = analyze_labels(problem, data, method)
    assert found.cut is None
    assert found.share is None
    assert not found.issues["is_issue"].any()
    assert found.issues["p_wrong"].isna().all()
    assert any("ranked list only" in caution for caution in found.cautions)
    for use in (
        lambda: prune(data, found),
        lambda: relabel(problem, data, found),
        lambda: corrected_labels(found),
        lambda: found.kept,
        found.decision,
    ):
        with pytest.raises(ValueError, match="ranked list only"):
            use()


@pytest.mark.parametrize(
    ("num", "change", "reason"),
    [
        (49, lambda y: y, "there are 49 samples, and at least 50 are needed"),
        (200, torch.zeros_like, "all labels are the same"),
    ],
    ids=["few", "one class"],
)
def test_the_default_ranks_by_the_loss_and_says_why_where_it_cannot_judge(num, change, reason):
    net, x, y, _ = two_groups(num)
    problem, data = Problem.from_module(net, Categorical()), Batches((x, change(y)))
    found = analyze_labels(problem, data)
    assert found.cut is None
    assert found.share is None
    assert found.issues["p_wrong"].isna().all()
    assert found.issues["score"].tolist() == pytest.approx(found.issues["loss"].tolist())
    assert any(reason in c and "ranked list only" in c for c in found.cautions)
    with pytest.raises(ValueError, match=f"ranked list only.*{reason}"):
        prune(data, found)
    assert analyze_labels(problem, data, false_discovery_rate=0.1).cut is None
    cut = analyze_labels(problem, data, cut=otsu_cut)
    assert cut.kept.tolist() == (~otsu_cut(found.scores.value).is_issue).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("num", [50, 56, 63, 64])
def test_the_smallest_data_that_are_not_refused_are_judged(num: int):
    net, x, y, _ = two_groups(num)
    found = find_label_issues(Problem.from_module(net, Categorical()), Batches((x, y)), WALKS)
    assert len(found) == num
    assert set(found.index[:3]) == {0, 1, 2}


def test_one_sample_is_a_list_of_one():
    net, x, y, _ = two_groups()
    problem, data = Problem.from_module(net, Categorical()), Batches((x[:1], y[:1]))
    for method in (None, loss_scores):
        assert find_label_issues(problem, data, method)["rank"].tolist() == [1]


def test_a_trace_is_the_score_and_nothing_is_trained():
    net, x, y, wrong = two_groups(200)
    trace = recorded(net, x, y)
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    told: list[str] = []
    with heard_by(told.append):
        found = analyze_labels(problem, data, trace=trace)
    assert told == []
    table = found.issues.sort_index()
    assert torch.equal(found.scores.value, trace.mean_loss())
    assert table["score"].tolist() == table["mean_loss"].tolist() == trace.mean_loss().tolist()
    assert table["p_wrong"].isna().all()
    assert found.cut is None
    assert found.influence is None
    assert set(found.issues.index[:3]) == set(wrong.nonzero()[:, 0].tolist())
    assert found.agreement.keys() == {"loss", "margin", "mean_loss"}
    assert found.agreement["mean_loss"] == pytest.approx(1)
    with pytest.raises(ValueError, match="ranked list only"):
        prune(data, found)
    with pytest.raises(ValueError, match="needs probabilities"):
        analyze_labels(problem, data, trace=trace, false_discovery_rate=0.1)
    cut = analyze_labels(problem, data, trace=trace, cut=otsu_cut)
    assert prune(data, cut).indices == (~wrong).nonzero()[:, 0].tolist()


def test_a_trace_stands_beside_the_score_of_a_method(judged, walked: Path):
    problem, data, alone, _ = judged
    net, x, y, _ = two_groups(200)
    trace = recorded(net, x, y)
    found = analyze_labels(problem, data, WALKS, trace=trace, folder=walked)
    pd.testing.assert_frame_equal(found.issues.drop(columns="mean_loss"), alone.issues)
    assert found.issues.sort_index()["mean_loss"].tolist() == trace.mean_loss().tolist()
    assert -1 <= found.agreement["mean_loss"] <= 1


@pytest.mark.parametrize("method", [None, called], ids=["trace alone", "beside a method"])
def test_a_trace_of_other_data_is_refused_before_anything_is_computed(method: Any):
    net, x, y, _ = two_groups()
    trace = recorded(net, x[:40], y[:40])
    with pytest.raises(ValueError, match="the trace holds 40 samples and the data 60"):
        find_label_issues(
            Problem.from_module(net, Categorical()), Batches((x, y)), method, trace=trace
        )


def test_a_budget_shortens_the_stages_and_is_told():
    """The whole walk takes 2 walks of 4 stages of 2 epochs; no stage is shorter than 18 steps."""
    net, x, y, _ = two_groups(320)
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    walks = Unlearning(rates=WALKS.rates, batch_size=8, budget=8)
    found = analyze_labels(problem, data, walks)
    (told,) = [c for c in found.cautions if "budget" in c]
    assert told.startswith(
        "A stage is 0.6"
    )  # eight passes for losses cost a third of an epoch each
    assert "epochs long instead of 2, since the budget is 8 epochs" in told
    assert 7 < found.influence.cost.epochs <= 8
    enough = analyze_labels(problem, data, Unlearning(rates=WALKS.rates, epochs=0.5, budget=8))
    assert not any("budget" in caution for caution in enough.cautions)


def test_what_is_told_of_the_length_of_a_stage_is_its_length():
    net, x, y, _ = two_groups(200)
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    found = analyze_labels(problem, data, Unlearning(rates=WALKS.rates, budget=2))
    epochs = found.influence.cost.epochs / 8 - 1 / 3
    assert f"A stage is {epochs:.2g} epochs long" in " ".join(found.cautions)


def test_pruning_and_relabeling_follow_the_flags():
    net, x, y, wrong = two_groups()
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    analysis = analyze_labels(problem, data, QUICK, cut=otsu_cut)
    assert prune(TensorDataset(x, y), analysis).indices == (~wrong).nonzero()[:, 0].tolist()
    assert torch.equal(corrected_labels(analysis), torch.where(wrong, 1 - y, y))
    assert torch.equal(corrected_labels(analysis, min_confidence=1.1), y)
    positions, targets = relabel(problem, data, analysis).tensors
    assert torch.equal(positions, torch.arange(60))
    assert torch.equal(targets[5], nn.functional.one_hot(y[5], 2).float())


def test_soft_targets_follow_the_formula():
    p, y = torch.tensor([[0.7, 0.2, 0.1]]).double(), torch.tensor([0])
    found = soft_targets(p, y, torch.tensor([True]))[0]
    expected = [0.0] + [float(torch.tensor(0.3).double().log() / 2 / p[0, c].log()) for c in (1, 2)]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_pruning_easy_samples_keeps_the_hardest():
    assert prune_easy(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5).tolist() == [0, 3]
    with pytest.raises(ValueError, match="fraction"):
        prune_easy(torch.zeros(2), 1.0)


def test_verification_tells_before_and_after():
    net, x, y, _ = two_groups()
    data = Batches((x, y))
    rows = verify(lambda _: net, data, data, {"kept": torch.arange(3, 60)})
    assert rows["samples"].tolist() == [60, 57]
    assert rows.loc["kept", "test_accuracy"] == pytest.approx(57 / 60)


def test_a_run_leaves_every_file_and_no_half_one(tmp_path):
    net, x, y, wrong = two_groups()
    texts = [f"text <b>{i}</b>" for i in range(60)]
    trained = Trained(net, (x, y), classes=("a", "b"), show=lambda i: texts[i], wrong=wrong)
    run = run_labels(trained, tmp_path, QUICK, otsu_cut)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"scores.csv", "result.json", "run.toml", "losses.safetensors", "report.html"} <= files
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.suffix]
    assert json.loads((tmp_path / "result.json").read_text())["auc"] == run.figures["auc"] == 1
    assert tomllib.loads((tmp_path / "run.toml").read_text())["method"]["members"] == 4
    page = run.report.read_text()
    assert "text &lt;b&gt;0&lt;/b&gt;" in page
    assert "<b>0</b>" not in page

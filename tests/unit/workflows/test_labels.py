"""From a trained network to a table, and what is done about the labels."""

import json
import tomllib

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
    analyze_labels,
    corrected_labels,
    find_label_issues,
    prune,
    relabel,
    run_labels,
    verify,
)
from afterfit.influence.baselines import loss_scores
from afterfit.influence.tracin import GradientDot
from afterfit.workflows import prune_easy, soft_targets

QUICK = GEX(members=4, steps=6, max_trials=2)


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
    issues = find_label_issues(Problem.from_module(net, Categorical()), data, QUICK)
    assert list(issues.columns) == [
        "index", "id", "given", "suggested", "confidence", "score", "stderr", "rank", "is_issue",
        "significant",
    ]  # fmt: skip
    assert set(issues["index"][:3]) == {0, 1, 2}
    assert issues["rank"].tolist() == list(range(1, 61))
    assert issues["score"].is_monotonic_decreasing
    assert issues["id"][0] == f"s{issues['index'][0]}"
    flagged = issues[issues["is_issue"]]
    assert set(flagged["index"]) == set(wrong.nonzero()[:, 0].tolist())
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
        assert set(find_label_issues(problem, data, method)["index"][:3]) == {0, 1, 2}
        with pytest.raises(ValueError, match="for GEX"):
            find_label_issues(problem, data, method, folder=tmp_path)


def test_pruning_and_relabeling_follow_the_flags():
    net, x, y, wrong = two_groups()
    problem, data = Problem.from_module(net, Categorical()), Batches((x, y))
    analysis = analyze_labels(problem, data, QUICK)
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
    run = run_labels(trained, tmp_path, QUICK)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"scores.csv", "result.json", "run.toml", "losses.safetensors", "report.html"} <= files
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.suffix]
    assert json.loads((tmp_path / "result.json").read_text())["auc"] == run.figures["auc"] == 1
    assert tomllib.loads((tmp_path / "run.toml").read_text())["method"]["members"] == 4
    page = run.report.read_text()
    assert "text &lt;b&gt;0&lt;/b&gt;" in page
    assert "<b>0</b>" not in page

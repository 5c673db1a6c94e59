"""What an analysis of labels holds, for every kind of target and method."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from afterfit import (
    GEX,
    Batches,
    Gaussian,
    GeometricEnsemble,
    Problem,
    Unlearning,
    analyze_labels,
    corrected_labels,
    find_label_issues,
    prune,
)
from afterfit.evaluate import Cut, budget_cut
from afterfit.influence import LossCovariance
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.simple import loss_scores
from afterfit.influence.tracin import GradientDot
from afterfit.problem import losses
from afterfit.workflows import LabelAnalysis, prune_easy, relabel, soft_targets, verify
from tests import truth
from tests.cases import CASES, LIKELIHOODS, Case, make_case, name_of, parts_of, select
from tests.listening import heard_by

QUICK = GEX(members=4, steps=3, learning_rate=0.05, batch_size=4)
COLUMNS = [
    "id", "given", "suggested", "confidence", "p_wrong", "is_issue", "score", "stderr", "rank",
    "loss",
]  # fmt: skip
MORE = {
    "categorical": ["margin"],
    "bernoulli": ["margin"],
    "multi-label": ["margin", "output"],
}
EXACT = {"rtol": 1e-10, "atol": 1e-12}
TWO = partial(budget_cut, budget=2)


def analyzed(case: Case, method: Any = QUICK, **settings: Any) -> LabelAnalysis:
    return analyze_labels(case.problem, case.data, method, **{"cut": TWO, **settings})


@pytest.mark.parametrize("case", select("mlp", "named-inputs"), ids=name_of)
def test_the_table_says_what_the_analysis_holds(case: Case):
    found = analyzed(case)
    table = found.issues
    assert list(table.columns) == COLUMNS + MORE.get(parts_of(case)[1], [])
    assert table["rank"].tolist() == list(range(1, 8))
    assert sorted(table.index) == list(range(7))
    assert table["score"].is_monotonic_decreasing
    order = torch.tensor(table.index.to_numpy())
    assert_close(torch.tensor(table["score"].to_numpy()), found.scores.value[order])
    assert_close(torch.tensor(table["stderr"].to_numpy()), found.scores.stderr[order])
    assert torch.equal(torch.tensor(table["is_issue"].to_numpy()), found.cut.is_issue[order])
    assert table["p_wrong"].isna().all()
    own = torch.tensor(table["loss"].to_numpy())
    assert_close(own, truth.losses(case.problem, case.data)[order], **EXACT)
    given = case.data.targets()
    assert torch.equal(torch.tensor(table["given"].tolist(), dtype=given.dtype), given[order])
    assert table["is_issue"].sum() == 2
    assert table["is_issue"][:2].all()
    assert found.kept.tolist() == sorted(table.index[2:])


@pytest.mark.parametrize("case", select("mlp"), ids=name_of)
def test_free_scores_are_those_of_the_trained_network(case: Case):
    found, likelihood = analyzed(case), parts_of(case)[1]
    table = found.issues.sort_index()
    if likelihood not in MORE:
        assert found.agreement.keys() == {"loss"}
        return
    mean = case.problem.likelihood.mean(truth.outputs(case.problem, case.data))
    given = case.data.targets()
    for i in range(7):
        if likelihood == "categorical":
            rivals = torch.cat([mean[i, : given[i]], mean[i, given[i] + 1 :]])
            margin = float((rivals.max() / mean[i, given[i]]).log())
        else:
            chance = torch.where(given[i] > 0.5, mean[i], 1 - mean[i]).reshape(-1)
            margin = float(((1 - chance) / chance).log().max())
        assert table.loc[i, "margin"] == pytest.approx(margin)
    assert found.agreement.keys() == {"loss", "margin"}
    for name, agreement in found.agreement.items():
        ranks = table["score"].rank(), table[name].rank()
        assert agreement == pytest.approx(ranks[0].corr(ranks[1]))


def test_of_several_labels_the_one_that_members_doubt_most_is_named():
    case = make_case("mlp", "multi-label")
    found = analyzed(case)
    mean, given = mean_by_hand(case, found), case.data.targets()
    chance = torch.where(given > 0.5, mean, 1 - mean)
    assert found.issues.sort_index()["output"].tolist() == chance.argmin(1).tolist()


def mean_by_hand(case: Case, found: LabelAnalysis) -> Tensor:
    """Expected target of each sample, averaged over the members one after another."""
    total = torch.zeros(())
    members = list(found.influence.ensemble)  # pyright: ignore
    for member in members:
        moved = replace(case.problem, params=member.params, buffers={})
        total = total + case.problem.likelihood.mean(truth.outputs(moved, case.data))
    return total / len(members)


@pytest.mark.parametrize("budget", [0, 2, 7])
def test_classes_get_the_most_probable_one_and_flagged_ones_another(budget: int):
    case = make_case("mlp", "categorical")
    found = analyzed(case, cut=flagging(*range(budget)))
    mean, given = mean_by_hand(case, found), case.data.targets()
    for row in found.issues.reset_index().to_dict("records"):
        i = row["index"]
        chances = mean[i].clone()
        if row["is_issue"]:
            chances[given[i]] = 0
            assert row["suggested"] != row["given"]
        assert row["suggested"] == int(chances.argmax())
        assert row["confidence"] == pytest.approx(float(chances.max()))


@pytest.mark.parametrize("likelihood", ["bernoulli", "multi-label"])
def test_switches_get_the_more_probable_side_of_each(likelihood: str):
    case = make_case("mlp", likelihood)
    found = analyzed(case)
    mean = mean_by_hand(case, found)
    for row in found.issues.reset_index().to_dict("records"):
        chances = mean[row["index"]]
        said = torch.tensor(row["suggested"]).reshape(-1)
        assert torch.equal(said.bool(), chances > 0.5)
        sure = torch.maximum(chances, 1 - chances).prod()
        assert row["confidence"] == pytest.approx(float(sure))


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_numbers_get_the_mean_prediction_without_confidence(likelihood: str):
    case = make_case("mlp", likelihood)
    found = analyzed(case)
    order = torch.tensor(found.issues.index.to_numpy())
    assert_close(
        torch.tensor(found.issues["suggested"].tolist(), dtype=torch.float64),
        mean_by_hand(case, found)[order],
        **EXACT,
    )
    assert found.issues["confidence"].isna().all()


def test_a_loss_alone_suggests_nothing():
    found = analyzed(make_case("mlp", "per-sample"))
    assert found.issues["suggested"].tolist() == found.issues["given"].tolist()
    assert found.issues["confidence"].isna().all()


def test_the_shape_of_the_targets_is_kept_where_there_is_one_output():
    mean, flags = torch.tensor([[1.0], [2.0]]), torch.tensor([True, False])
    for given in (torch.zeros(2), torch.zeros(2, 1)):
        label, confidence = Gaussian().suggested(mean, given, flags)
        assert label.shape == given.shape
        assert bool(confidence.isnan().all())


# Methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [InfluenceFunction(0.5), GradientDot()])
def test_any_influence_method_is_scored_by_its_self_influence(method: Any):
    case = make_case("mlp", "categorical")
    found = analyzed(case, method)
    assert_close(found.scores.value, method.fit(case.problem, case.data).self_scores())
    assert bool(found.scores.stderr.isnan().all())
    assert found.issues["p_wrong"].isna().all()
    assert found.influence is not None
    assert found.evidence is None


def test_members_of_any_sampler_bring_their_errors():
    case = make_case("mlp", "categorical")
    method = LossCovariance(GeometricEnsemble(members=4, steps=2))
    found = analyzed(case, method)
    expected = method.fit(case.problem, case.data).self_influence()
    assert torch.equal(found.scores.value, expected.value)
    assert torch.equal(found.scores.stderr, expected.stderr)


def test_a_function_is_scored_by_its_values():
    case = make_case("mlp", "categorical")
    found = analyzed(case, loss_scores)
    assert_close(found.scores.value, truth.losses(case.problem, case.data), **EXACT)
    assert bool(found.scores.stderr.isnan().all())
    assert found.influence is None
    mean = case.problem.likelihood.mean(truth.outputs(case.problem, case.data))
    kept = found.issues[~found.issues["is_issue"]]
    assert kept["suggested"].tolist() == mean.argmax(1)[kept.index.tolist()].tolist()


@pytest.mark.parametrize("method", [loss_scores, GradientDot(), InfluenceFunction(0.5)])
@pytest.mark.parametrize("name", ["fit", "folder"])
def test_what_only_walks_use_is_refused_elsewhere(method: Any, name: str, tmp_path: Path):
    case = make_case("mlp", "categorical")
    given: dict[str, Any] = {"fit": case.data, "folder": tmp_path}
    with pytest.raises(ValueError, match="fit and folder are for Unlearning and GEX"):
        find_label_issues(case.problem, case.data, method, **{name: given[name]})


def test_gex_trains_on_what_it_is_given_and_keeps_its_members(tmp_path: Path):
    case = make_case("mlp", "categorical")
    _, inputs, targets = case.data.fetch(torch.arange(7))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=3, shuffle=True)
    first = analyzed(case, fit=loader, folder=tmp_path)
    told: list[str] = []
    with heard_by(told.append):
        again = analyzed(case, fit=loader, folder=str(tmp_path))
    assert torch.equal(first.scores.value, again.scores.value)
    assert len(list((tmp_path / "members").iterdir())) == 4
    assert told[0].startswith("4 members")
    assert not torch.equal(first.scores.value, analyzed(case).scores.value)


def test_unlearning_is_what_there_is_by_default():
    case = make_case("linear", "categorical")
    inputs = torch.randn(200, 3, dtype=torch.float64, generator=Generator().manual_seed(0))
    data = Batches((inputs, truth_of(case, inputs)))
    found = analyze_labels(case.problem, data)
    assert found.issues["p_wrong"].notna().all()
    given = find_label_issues(case.problem, data, Unlearning())
    pd.testing.assert_frame_equal(found.issues, given)
    assert found.evidence.fallback == ""


def truth_of(case: Case, inputs: Tensor) -> Tensor:
    """Labels that the network itself would give."""
    blank = torch.zeros(len(inputs), dtype=torch.long)
    return truth.outputs(case.problem, Batches((inputs, blank))).argmax(1)


def test_unlearning_trains_on_what_it_is_given_and_keeps_its_members(tmp_path: Path):
    case = make_case("mlp", "categorical")
    inputs = torch.randn(80, 3, dtype=torch.float64, generator=Generator().manual_seed(0))
    targets = truth_of(case, inputs)
    data = Batches((inputs, targets))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=10, shuffle=True)
    walks = Unlearning(rates=(0.01, 0.02, 0.04, 0.08), epochs=0.1)

    def analyze(**settings: Any) -> tuple[LabelAnalysis, list[str]]:
        told: list[str] = []
        with heard_by(told.append):
            return analyze_labels(case.problem, data, walks, **settings), told

    first, _ = analyze(fit=loader, folder=tmp_path)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "members").iterdir())]
    again, told = analyze(fit=loader, folder=str(tmp_path))
    pd.testing.assert_frame_equal(first.issues, again.issues)
    members = sorted((tmp_path / "members").iterdir())
    assert len(members) == 8
    assert [path.stat().st_mtime_ns for path in members] == times
    assert told[0].startswith("2 walks of 4 stages")
    other, _ = analyze()
    assert not torch.equal(first.scores.value, other.scores.value)


@pytest.mark.parametrize("cut", [TWO, partial(budget_cut, budget=3), None])
def test_the_cut_may_be_any_function_of_the_scores(cut: Any):
    case = make_case("mlp", "categorical")

    def every_other(scores: Tensor) -> Cut:
        return Cut(torch.arange(len(scores)) % 2 == 0, 0.0, 0.5, 0.5, "every other")

    chosen = every_other if cut is None else cut
    found = analyzed(case, cut=chosen)
    assert torch.equal(found.cut.is_issue, chosen(found.scores.value).is_issue)


def test_names_of_samples_are_kept():
    case = make_case("mlp", "categorical")
    _, inputs, targets = case.data.fetch(torch.arange(7))
    names = [f"s{i}.png" for i in range(7)]
    table = find_label_issues(case.problem, Batches((inputs, targets), ids=names), loss_scores)
    assert [names[i] for i in table.index] == table["id"].tolist()
    half = case.data.subset(torch.tensor([6, 2, 4]))
    assert sorted(find_label_issues(case.problem, half, loss_scores)["id"]) == [2, 4, 6]


# What is done about it ---------------------------------------------------------------------------


def flagging(*wrong: int) -> Any:
    def cut(scores: Tensor) -> Cut:
        flags = torch.zeros(len(scores), dtype=torch.bool)
        flags[list(wrong)] = True
        return Cut(flags, 0.0, 0.0, 0.0, "given")

    return cut


def test_pruning_takes_out_the_flagged_samples():
    case = make_case("mlp", "categorical")
    found = analyzed(case, cut=flagging(1, 5))
    rows = [f"row {i}" for i in range(7)]
    assert list(prune(rows, found)) == [rows[i] for i in (0, 2, 3, 4, 6)]


def test_soft_targets_are_those_of_the_paper_in_a_loop():
    probabilities = torch.tensor(
        [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.01, 0.01, 0.98]], dtype=torch.float64
    )
    given, flags = torch.tensor([0, 1, 2]), torch.tensor([True, False, True])
    found = soft_targets(probabilities, given, flags)
    for i, (row, y, flagged) in enumerate(zip(probabilities, given, flags, strict=True)):
        for c in range(3):
            if not flagged:
                expected = float(c == y)
            elif c == y:
                expected = 0.0
            else:  # log_{p_c} of (1 - p_y)^{1/(C-1)}
                expected = float(((1 - row[y]) ** 0.5).log() / row[c].log())
            assert float(found[i, c]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_targets_of_a_network_that_is_sure_are_finite(dtype: torch.dtype):
    """Probabilities of 0 and 1, for and against the given label."""
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=dtype)
    found = soft_targets(probabilities, torch.tensor([0, 0]), torch.tensor([True, True]))
    assert found.dtype == dtype
    assert bool(torch.isfinite(found).all())
    assert bool((found >= 0).all())
    assert found[1].tolist() == pytest.approx([0.0, 0.5, 0.0], abs=1e-3)


def test_relabeling_pairs_positions_with_soft_targets():
    case = make_case("mlp", "categorical")
    positions, targets = relabel(
        case.problem, case.data, analyzed(case, cut=flagging(1, 5))
    ).tensors
    p = truth.outputs(case.problem, case.data).softmax(1)
    flags = torch.zeros(7, dtype=torch.bool)
    flags[[1, 5]] = True
    assert positions.tolist() == list(range(7))
    assert_close(targets, soft_targets(p, case.data.targets(), flags), **EXACT)


@pytest.mark.parametrize("likelihood", [n for n in LIKELIHOODS if n != "categorical"])
def test_soft_targets_are_for_classes_only(likelihood: str):
    case = make_case("mlp", likelihood)
    with pytest.raises(TypeError, match="expected Categorical: soft targets are for class labels"):
        relabel(case.problem, case.data, analyzed(case))


@pytest.mark.parametrize("case", select("mlp"), ids=name_of)
def test_corrected_labels_are_given_ones_but_where_flagged(case: Case):
    found = analyzed(case, cut=flagging(1, 5))
    labels, given = corrected_labels(found), case.data.targets()
    table = found.issues.sort_index()
    said = torch.tensor(table["suggested"].tolist())
    for i in range(7):
        assert_close(labels[i], said[i] if i in (1, 5) else given[i], check_dtype=False)


def test_corrections_that_the_ensemble_is_not_sure_of_are_left():
    case = make_case("mlp", "categorical")
    found = analyzed(case, cut=flagging(*range(7)))
    table = found.issues.sort_index()
    for least in (0.0, 0.35, 0.45, 1.1):
        labels = corrected_labels(found, least)
        for i, row in enumerate(table.to_dict("records")):
            sure = row["confidence"] >= least
            assert int(labels[i]) == row["suggested" if sure else "given"]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.9])
def test_the_easiest_share_is_pruned(fraction: float):
    scores = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0, 9.0, 8.0, 7.0, 6.0, 0.0])
    kept = prune_easy(scores, fraction)
    assert len(kept) == 10 - int(fraction * 10)
    assert kept.tolist() == sorted(kept.tolist())
    gone = [i for i in range(10) if i not in kept.tolist()]
    assert all(float(scores[i]) < float(scores[kept].min()) for i in gone)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(fraction: float):
    with pytest.raises(ValueError, match="expected at least 0 and below 1"):
        prune_easy(torch.ones(3), fraction)


def test_verification_trains_on_each_variant_and_tells_what_it_found():
    case = make_case("linear", "categorical")
    seen: list[list[int]] = []

    def retrain(data: Batches) -> nn.Module:
        seen.append(data.ids)
        net = nn.Linear(3, 3).double()
        with torch.no_grad():
            net.weight.fill_(0.1 * data.num_samples)
            net.bias.copy_(torch.tensor([0.0, data.num_samples, 0.0]))
        return net

    kept, fixed = torch.tensor([6, 0, 3]), case.data.subset(torch.arange(5))
    rows = verify(retrain, case.data, case.data, {"kept": kept, "fixed": fixed})
    assert seen == [list(range(7)), [6, 0, 3], list(range(5))]
    assert rows.index.tolist() == ["as given", "kept", "fixed"]
    assert rows["samples"].tolist() == [7, 3, 5]
    for name, data in (("as given", case.data), ("kept", case.data.subset(kept))):
        problem = Problem.from_module(retrain(data), case.problem.likelihood)
        hits = truth.outputs(problem, case.data).argmax(1) == case.data.targets()
        assert rows.loc[name, "test_accuracy"] == pytest.approx(float(hits.double().mean()))
        assert rows.loc[name, "test_loss"] == pytest.approx(
            float(truth.losses(problem, case.data).mean())
        )


def test_verification_of_numbers_has_no_accuracy():
    case = make_case("linear", "gaussian")
    rows = verify(lambda _: nn.Linear(3, 2).double(), case.data, case.data, {}, Gaussian())
    assert rows["test_accuracy"].isna().all()
    assert rows["test_loss"].notna().all()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_kind_of_network_and_target_can_be_analyzed(case: Case):
    found = analyzed(case)
    assert len(found.issues) == 7
    assert found.issues["score"].notna().all()
    assert float(losses(case.problem, case.data).sum()) == pytest.approx(
        float(truth.losses(case.problem, case.data).sum())
    )

"""A run in a folder: every file whole, readable by others, and the same when taken up again."""

import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from afterfit import (
    GEX,
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    GeometricEnsemble,
    PerSample,
    Trained,
    TrainingStream,
    TrainingTrace,
    Unlearning,
)
from afterfit.evaluate import auc, average_precision, budget_cut, otsu_cut
from afterfit.influence import CovarianceInfluence, LossCovariance
from afterfit.influence.simple import loss_scores
from afterfit.workflows import LabelAnalysis, Run, apply_decisions, run_labels
from afterfit.workflows.label_run import MEASURED
from tests.listening import heard_by

FILES = {"scores.csv", "result.json", "run.toml", "report.html", "review.html"}
QUICK = GEX(members=4, steps=4, learning_rate=0.1)
SEARCHING = replace(QUICK, learning_rate="auto", max_trials=3)
WALKS = Unlearning(rates=(0.0125, 0.025, 0.05, 0.1), epochs=0.1)


def trained(num: int = 30, **settings: Any) -> Trained:
    """Two clouds, of which the first two samples have the label of the other one."""
    generator = Generator().manual_seed(0)
    clean = torch.arange(num) % 2
    x = torch.randn(num, 2, generator=generator) + 3 * clean[:, None]
    wrong = torch.arange(num) < 2
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        net.bias.copy_(torch.tensor([3.0, -3.0]))
    y = torch.where(wrong, 1 - clean, clean)
    given = {"module": net, "train": (x, y), "wrong": wrong, "classes": ("cat", "dog")}
    return Trained(**{**given, **settings})


def strictly(text: str) -> Any:
    """Parse JSON as other languages do, which know neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def measured(run: Run[LabelAnalysis]) -> dict[str, Any]:
    return {name: run.figures[name] for name in MEASURED if name in run.figures}


def read(run: Run[LabelAnalysis]) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any], str]:
    folder = run.folder
    return (
        pd.read_csv(folder / "scores.csv"),
        strictly((folder / "result.json").read_text()),
        tomllib.loads((folder / "run.toml").read_text()),
        run.report.read_text(),
    )


@pytest.mark.parametrize(
    "method",
    [
        QUICK,
        SEARCHING,
        replace(SEARCHING, cap=1e-9),
        replace(QUICK, members=2),
        loss_scores,
        partial(loss_scores),
        LossCovariance(GeometricEnsemble(members=4, steps=2)),
    ],
)
@pytest.mark.filterwarnings("ignore:no learning rate keeps")
def test_every_file_is_there_whole_and_can_be_read(method: Any, tmp_path: Path):
    run = run_labels(trained(), tmp_path / "deep" / "run", method, otsu_cut)
    scores, result, settings, page = read(run)
    assert list(scores.columns[:2]) == ["index", "id"]
    assert scores["rank"].tolist() == list(range(1, 31))
    assert set(scores["index"][:2]) == {0, 1}
    assert result["samples"] == settings["input"]["samples"] == 30
    assert result["issues"] == int(scores["is_issue"].sum())
    assert settings["input"]["network"] == result["network"]
    assert page.rstrip().endswith("</html>")
    names = {path.name for path in run.folder.glob("*")}
    with_table = isinstance(run.found.influence, CovarianceInfluence)
    assert names >= (FILES | {"losses.safetensors"} if with_table else FILES)
    assert not [path for path in run.folder.rglob("*") if "tmp" in path.name]


def test_every_file_of_the_default_is_there_whole_and_can_be_read(tmp_path: Path):
    run = run_labels(trained(100), tmp_path, WALKS)
    scores, result, settings, page = read(run)
    assert scores["rank"].tolist() == list(range(1, 101))
    assert set(scores["index"][:2]) == {0, 1}
    assert scores["p_wrong"].between(0, 1).all()
    assert result["issues"] == int(scores["is_issue"].sum()) == int((scores["p_wrong"] > 0.5).sum())
    assert result["cautions"] == list(run.found.cautions)
    share = result["share"]
    assert share["low"] <= share["value"] <= share["high"]
    assert share["value"] == pytest.approx(scores["p_wrong"].mean())
    assert result["expected_wrong"] == pytest.approx(share["value"])
    assert result["rank_agreement"].keys() == {"loss", "margin"}
    assert 0.5 < result["told_apart"] <= 1
    assert settings["method"]["name"] == "Unlearning"
    assert settings["method"]["epochs"] == 0.1
    assert settings["input"]["samples"] == result["samples"] == 100
    assert "Ranked list only" not in page
    assert "Probably wrong" in page
    assert "Share of wrong labels" in page
    names = {path.name for path in run.folder.glob("*")}
    assert names >= FILES | {"losses.safetensors", "members"}
    assert not [path for path in run.folder.rglob("*") if "tmp" in path.name]


@pytest.mark.parametrize(
    ("num", "change", "reason"),
    [
        (49, lambda y: y, "there are 49 samples, and at least 50 are needed"),
        (100, torch.zeros_like, "all labels are the same"),
    ],
    ids=["few", "one class"],
)
def test_cautions_stand_in_the_result_and_on_the_page(
    num: int, change: Callable[[Tensor], Tensor], reason: str, tmp_path: Path
):
    given = trained(num)
    x, y = given.train
    run = run_labels(replace(given, train=(x, change(y))), tmp_path)
    scores, result, _, page = read(run)
    assert any(reason in caution for caution in result["cautions"])
    assert any("ranked list only" in caution for caution in result["cautions"])
    assert reason in page
    assert "Ranked list only" in page
    assert "look wrong" not in page
    assert not result.keys() & {"issues", "threshold", "cut", "share", "precision", "recall"}
    assert scores["p_wrong"].isna().all()
    assert not scores["is_issue"].any()


def test_a_method_without_probabilities_only_ranks(tmp_path: Path):
    run = run_labels(trained(), tmp_path, QUICK)
    _, result, _, page = read(run)
    assert any("ranked list only" in caution for caution in result["cautions"])
    assert "Ranked list only" in page
    assert "issues" not in result
    assert measured(run).keys() == {"auc", "average_precision"}


def test_a_trace_is_the_score_of_a_run(tmp_path: Path):
    given = trained()
    x, y = given.train
    trace = TrainingTrace(30, Categorical())
    with torch.no_grad():
        for scale in (0.1, 0.5, 1.0):
            trace.record(torch.arange(30), scale * given.module(x), y)
    run = run_labels(given, tmp_path, trace=trace)
    scores, result, settings, page = read(run)
    assert scores.sort_values("index")["score"].tolist() == pytest.approx(trace.mean_loss())
    assert scores["p_wrong"].isna().all()
    assert set(scores["index"][:2]) == {0, 1}
    assert result["auc"] == 1
    assert "trace" in settings["method"]["name"]
    assert "Ranked list only" in page
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_rate_is_written_with_the_run(tmp_path: Path):
    run = run_labels(trained(100), tmp_path, WALKS, false_discovery_rate=0.5)
    scores, result, *_ = read(run)
    flagged = scores[scores["is_issue"]]
    assert result["cut"] == "false discovery rate 0.5"
    assert result["issues"] == len(flagged) > 0
    assert (1 - flagged["p_wrong"]).mean() <= 0.5


def test_the_settings_are_written_as_asked_for_and_as_used(tmp_path: Path):
    found = run_labels(trained(), tmp_path, SEARCHING)
    _, result, settings, _ = read(found)
    method, sampler = settings["method"], settings["sampler"]
    assert method["name"] == "GEX"
    assert (method["members"], method["learning_rate"], method["max_trials"]) == (4, "auto", 3)
    assert method["move"] == "loss_there"
    assert sampler["name"] == "GeometricEnsemble"
    assert sampler["schedule"] == "warm_cosine"
    assert sampler["learning_rate"] == result["search"]["learning_rate"]
    assert sampler["weight_decay"] == 0.1
    assert " at 0x" not in (tmp_path / "run.toml").read_text()
    assert {"afterfit", "torch", "numpy", "python"} <= settings["versions"].keys()


def test_what_is_not_known_is_null(tmp_path: Path):
    run = run_labels(trained(), tmp_path, replace(QUICK, members=2))
    assert read(run)[1]["reliability"] is None
    assert math.isnan(run.found.influence.reliability())  # pyright: ignore


def test_figures_are_those_of_the_scores(tmp_path: Path):
    given = trained()
    run = run_labels(given, tmp_path, QUICK, partial(budget_cut, budget=4))
    scores = run.found.scores.value
    expected = {
        "auc": auc(scores, given.wrong),
        "average_precision": average_precision(scores, given.wrong),
        "precision": 0.5,
        "recall": 1.0,
    }
    assert measured(run) == pytest.approx(expected)
    result = read(run)[1]
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_without_the_truth_or_flags_there_are_no_figures_of_them(tmp_path: Path):
    assert measured(run_labels(trained(wrong=None), tmp_path / "a", loss_scores)) == {}
    nothing = partial(budget_cut, budget=0)
    assert measured(run_labels(trained(), tmp_path / "b", loss_scores, nothing)).keys() == {
        "auc",
        "average_precision",
    }


def test_losses_are_those_of_the_table(tmp_path: Path):
    run = run_labels(trained(), tmp_path, QUICK)
    kept, table = load_file(tmp_path / "losses.safetensors"), run.found.influence.table  # pyright: ignore
    assert torch.equal(kept["trained"], table.trained)
    assert torch.equal(kept["columns"], table.columns)


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("where", ["30 members", "4 members", "learning rate", "member 3"])
def test_a_run_that_was_killed_is_finished_by_the_same_call(where: str, tmp_path: Path):
    def die(line: str) -> None:
        if line.startswith(where):
            raise KilledError

    whole = run_labels(trained(), tmp_path / "whole", SEARCHING)
    folder = tmp_path / "killed"
    try:
        with heard_by(die):
            run_labels(trained(), folder, SEARCHING)
    except KilledError:
        assert not FILES & {path.name for path in folder.glob("*")}
    again = run_labels(trained(), folder, SEARCHING)
    for name in ("scores.csv", "run.toml", "report.html", "losses.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert measured(again) == measured(whole)


@pytest.fixture(scope="module")
def whole_walks(tmp_path_factory: pytest.TempPathFactory) -> Run[LabelAnalysis]:
    """A run of the default method that nobody has killed."""
    return run_labels(trained(100), tmp_path_factory.mktemp("whole"), WALKS)


@pytest.mark.parametrize(
    ("where", "made"),
    [("2 walks", 0), ("walk 1, stage 3", 3), ("walk 1, stage 4", 4), ("walk 2, stage 2", 6)],
)
def test_walks_that_were_killed_are_finished_by_the_same_call(
    where: str, made: int, tmp_path: Path, whole_walks: Run[LabelAnalysis]
):
    def die(line: str) -> None:
        if line.startswith(where):
            raise KilledError

    with pytest.raises(KilledError), heard_by(die):
        run_labels(trained(100), tmp_path, WALKS)
    assert not FILES & {path.name for path in tmp_path.iterdir()}
    members = tmp_path / "members"
    kept = sorted(members.iterdir()) if members.exists() else []
    assert len(kept) == made
    times = [path.stat().st_mtime_ns for path in kept]
    again = run_labels(trained(100), tmp_path, WALKS)
    assert [path.stat().st_mtime_ns for path in kept] == times
    for name in ("scores.csv", "run.toml", "report.html", "losses.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole_walks.folder / name).read_bytes()
    assert measured(again) == measured(whole_walks)


def test_members_of_another_walk_are_refused(tmp_path: Path):
    run_labels(trained(100), tmp_path, WALKS)
    for other in (replace(WALKS, seed=1), replace(WALKS, epochs=0.2), replace(WALKS, planted=0.1)):
        with pytest.raises(ValueError, match="belongs to another run"):
            run_labels(trained(100), tmp_path, other)


def budgeted(epochs: float) -> Trained:
    """So large, in batches so small, that the shortest stage of 18 steps is half an epoch."""
    given = trained(320, epochs=epochs)
    x, y = given.train
    return replace(given, fit=DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True))


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run[LabelAnalysis]:
    """A run of the default method that may cost half of what it would."""
    return run_labels(budgeted(12.0), tmp_path_factory.mktemp("short"))


def test_a_budget_smaller_than_the_walk_shortens_the_stages_and_is_told(
    short_run: Run[LabelAnalysis],
):
    _, result, settings, page = read(short_run)
    told = "epochs long instead of 2, since the budget is 12 epochs"
    assert settings["method"]["budget"] == 12
    assert any(told in caution for caution in result["cautions"])
    assert told in page


def test_the_budget_is_the_cost_of_the_training(short_run: Run[LabelAnalysis]):
    assert read(short_run)[2]["method"]["budget"] == 12
    assert read(short_run)[1]["forecast"]["epochs"] <= 12


def test_the_budget_is_the_cost_of_the_training_of_gex(tmp_path: Path):
    run = run_labels(trained(epochs=30), tmp_path, GEX(budget=30))
    assert read(run)[2]["method"]["budget"] == 30
    assert read(run)[1]["forecast"]["epochs"] <= 30


def noisy(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def streams(x: Tensor, y: Tensor) -> list[Any]:
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    return [loader, TrainingStream(Batches((x, y)), 8, noisy)]


@pytest.mark.parametrize("number", [0, 1])
def test_members_train_on_what_the_network_trained_on(number: int, tmp_path: Path):
    given = trained()
    fit = streams(*given.train)[number]
    run = run_labels(replace(given, fit=fit), tmp_path, QUICK)
    assert run.found.influence.stream.samples_per_step == 8  # pyright: ignore
    loss = run_labels(replace(given, fit=fit), tmp_path / "loss", loss_scores)
    assert len(loss.found.issues) == 30


# What a reader sees ------------------------------------------------------------------------------

SHOWS: dict[str, tuple[Callable[[int], Any], str]] = {
    "text": (lambda i: f"letter <i>{i}</i> & more", "letter &lt;i&gt;0&lt;/i&gt; &amp; more"),
    "array": (lambda i: np.full((4, 4), i / 30), "data:image/png;base64,"),
    "tensor": (lambda i: torch.full((3, 4, 4), i / 30), "data:image/png;base64,"),
    "named": (lambda i: {"age": 40 + i, "town": "<Ulm>"}, "&lt;Ulm&gt;"),
}


@pytest.mark.parametrize("kind", SHOWS)
def test_samples_look_as_show_says(kind: str, tmp_path: Path):
    show, expected = SHOWS[kind]
    page = run_labels(trained(show=show), tmp_path, loss_scores).report.read_text()
    assert expected in page
    assert "letter <i>" not in page
    assert "<Ulm>" not in page


def test_the_suspects_stand_on_the_page_with_their_names(tmp_path: Path):
    given = trained(show=lambda i: f"this is number {i}.")
    ids = [f"file <{i}>" for i in range(30)]
    named = replace(given, train=Batches(given.train, ids=ids))
    run = run_labels(named, tmp_path, loss_scores, title="My <labels>")
    page = run.report.read_text()
    for i in run.found.issues.index[:2]:
        assert f"this is number {i}." in page
        assert f"file &lt;{i}&gt;" in page
    assert "My &lt;labels&gt;" in page
    assert "cat" in page


def rows_of_dicts(x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    return [{"input": a, "labels": b} for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize("make", [rows_of_dicts, lambda x, y: (x, x, y)])
def test_inputs_that_are_dicts_or_tuples_are_shown_too(make: Callable[..., Any], tmp_path: Path):
    class Either(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.layer = nn.Linear(2, 2)

        def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:  # noqa: A002
            return self.layer(input)

    given = trained()
    run = run_labels(replace(given, module=Either(), train=make(*given.train)), tmp_path, QUICK)
    assert len(read(run)[0]) == 30


@pytest.mark.parametrize(
    ("likelihood", "num_outputs", "target"),
    [
        (Bernoulli(), 1, lambda y: y.float()),
        (Bernoulli(), 3, lambda y: torch.stack([y, 1 - y, y], 1).float()),
        (Gaussian(), 1, lambda y: y[:, None] * 2.5),
        (PerSample(lambda f, y: (f[:, 0] - y).square()), 1, lambda y: y.float()),
    ],
)
def test_other_targets_than_classes_get_a_page_too(
    likelihood: Any, num_outputs: int, target: Callable[[Tensor], Tensor], tmp_path: Path
):
    given = trained(classes=())
    x, y = given.train
    other = replace(
        given, module=nn.Linear(2, num_outputs), likelihood=likelihood, train=(x, target(y))
    )
    scores, result, *_ = read(run_labels(other, tmp_path, QUICK))
    assert len(scores) == 30
    assert "auc" in result


def test_decisions_on_a_run_clean_its_data(tmp_path: Path):
    given = trained(show=lambda index: f"<i>sample {index}</i>")
    run = run_labels(given, tmp_path, loss_scores, partial(budget_cut, budget=2))
    page = (tmp_path / "review.html").read_text()
    (text,) = re.findall(r'id="data">(.*?)</script>', page)
    data = strictly(text)
    assert len(data["items"]) == 30
    assert {item[0] for item in data["items"] if item[5]} == {0, 1}
    assert data["classes"] == [["0", "cat"], ["1", "dog"]]
    assert data["items"][0][7] == f"<i>sample {data['items'][0][0]}</i>"
    decisions = tmp_path / "decisions.csv"
    decisions.write_text("position,decision,label\n0,relabel,0\n1,drop,\n")
    applied = apply_decisions(run.folder, decisions)
    expected = given.batches().targets().tolist()
    expected[0] = 0
    assert applied.labels["label"].astype(int).tolist() == expected
    assert applied.kept["position"].astype(int).tolist() == [0, *range(2, 30)]

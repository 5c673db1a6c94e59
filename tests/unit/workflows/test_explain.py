import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Generator, Tensor, nn

from afterfit.influence import GEX
from afterfit.influence.base import Influence
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.covariance import Scores
from afterfit.influence.tracin import GradientDot
from afterfit.problem import Batches
from afterfit.workflows import Trained
from afterfit.workflows.explain import explain_prediction, explained
from afterfit.workflows.influence_run import run_influence


@pytest.fixture
def trained() -> Trained:
    generator = Generator().manual_seed(0)
    y = torch.arange(30) % 2
    x = torch.randn(30, 2, generator=generator) + 3 * y[:, None]
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        net.bias.copy_(torch.tensor([3.0, -3.0]))
    return Trained(net, Batches((x[:24], y[:24])), test=(x[24:], y[24:]), classes=("cat", "<dog>"))


def test_proponents_and_opponents_are_the_ends_of_each_row():
    train = Batches((torch.zeros(4, 1), torch.tensor([0, 1, 1, 0])), ids=list("abcd"))
    query = Batches((torch.zeros(2, 1), torch.tensor([1, 0])), ids=["q", "r"])
    value = torch.tensor([[3.0, -1.0, 0.0, 2.0], [-4.0, -5.0, -1.0, -2.0]])
    stderr = torch.tensor([[1.0, 1.0, 1.0, 1.5], [torch.nan] * 4])
    table = explained(Scores(value, stderr), train, query, num=2)
    named = [tuple(row) for row in table[["query", "kind", "rank", "id"]].to_numpy().tolist()]
    assert named == [
        ("q", "proponent", 1, "a"),
        ("q", "proponent", 2, "d"),
        ("q", "opponent", 1, "b"),
        ("r", "opponent", 1, "b"),
        ("r", "opponent", 2, "a"),
    ]
    assert table["certain"].tolist()[:3] == [True, False, False]
    assert table["certain"][3:].isna().all()
    assert table["target"].tolist() == [0, 0, 1, 1, 0]


def test_scores_that_do_not_fit_are_refused():
    data = Batches((torch.zeros(4, 1), torch.zeros(4)))
    scores = Scores(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"scores are \(3, 4\), expected at least 1 and \(4, 4\)"):
        explained(scores, data, data)


def test_errors_come_from_methods_that_draw(trained: Trained):
    problem, train, query = trained.problem(), trained.batches(), trained.held_out()
    assert query is not None
    drawn = GEX(members=4, learning_rate=0.01, steps=2).fit(problem, train)
    assert (explain_prediction(drawn, train, query)["stderr"] > 0).all()
    exact = GradientDot().fit(problem, train)
    assert (explain_prediction(exact, train, query)["stderr"] == 0).all()


def test_a_run_goes_on_from_its_scores(trained: Trained, tmp_path: Path, monkeypatch):
    first = run_influence(trained, tmp_path, [0, 3], InfluenceFunction(0.1), name="damped")
    assert {path.name for path in tmp_path.iterdir()} == {
        "explained.csv", "result.json", "run.toml", "report.html", "scores.safetensors"
    }  # fmt: skip
    assert json.loads((tmp_path / "result.json").read_text())["queries"] == [0, 3]
    page = first.report.read_text()
    assert "&lt;dog&gt;" in page
    assert "<dog>" not in page

    def broken(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(InfluenceFunction, "fit", broken)
    again = run_influence(trained, tmp_path, [0, 3], InfluenceFunction(0.1), name="damped")
    pd.testing.assert_frame_equal(again.found.table, first.found.table)
    for other in ([0, 2], InfluenceFunction(0.1)), ([0, 3], InfluenceFunction(0.2)):
        with pytest.raises(AssertionError):
            run_influence(trained, tmp_path, *other, name="damped")


SHOWN: dict[str, Callable[[int], object]] = {
    "images": lambda place: torch.full((4, 4), place / 30),
    "text": lambda place: f"sentence {place} & more",
    "rows": lambda place: {"height": place, "width": 2.0},
}


@pytest.mark.parametrize("kind", SHOWN)
def test_samples_of_every_kind_are_shown(kind: str, trained: Trained, tmp_path: Path):
    shown = Trained(trained.module, trained.train, test=trained.test, show=SHOWN[kind])
    run = run_influence(shown, tmp_path, [1], GradientDot(), show_query=SHOWN[kind])
    expected = {"images": "data:image/png", "text": "sentence 1 &amp; more", "rows": "height"}
    assert expected[kind] in run.report.read_text()


def test_queries_that_are_not_there_are_refused(trained: Trained, tmp_path: Path):
    with pytest.raises(ValueError, match="expected positions from 0 to 5 in the held-out data"):
        run_influence(trained, tmp_path, [6], GradientDot())


def test_scores_that_are_not_finite_are_refused(trained: Trained, tmp_path: Path, monkeypatch):
    class Broken(Influence):
        def scores(self, query: Batches) -> Tensor:
            return torch.full((query.num_samples, 24), torch.nan)

        def self_scores(self) -> Tensor:
            return torch.full((24,), torch.nan)

    monkeypatch.setattr(GradientDot, "fit", lambda *_: Broken())
    with pytest.raises(ValueError, match="NaN or infinite values, expected numbers: raise the"):
        run_influence(trained, tmp_path, [0], GradientDot())
    assert not list(tmp_path.iterdir())

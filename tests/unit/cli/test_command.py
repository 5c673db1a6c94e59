"""The commands: what they refuse before they work, what they print, how they end."""

import csv
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator

from afterfit.cli import app
from afterfit.cli.demo import conv_net, digits, shifted, with_wrong_labels
from afterfit.influence import GEX, TrainingTrace
from afterfit.problem import Categorical, losses

FACTORY = """
import torch
from torch import nn
from afterfit import Batches, PerSample, Trained

def factory():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 2
    x = torch.randn(30, 2, generator=generator) + 3 * y[:, None]
    wrong = torch.arange(30) < 2
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        net.bias.copy_(torch.tensor([3.0, -3.0]))
    ids = [f"scan[/b] {i} [red]" for i in range(30)]
    data = Batches((x, torch.where(wrong, 1 - y, y)), ids=ids)
    return Trained(net, data, classes=("[cat]", "dog"), wrong=wrong, epochs=60)
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Call the command line here: exit code, standard output, standard error."""

    def call(*words: str, text: str = FACTORY) -> tuple[int, str, str]:
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["afterfit", *words])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        for console in (app.console, app.errors):
            monkeypatch.setattr(console, "_width", 300)
        with pytest.raises(SystemExit) as ended:
            app.main()
        code = ended.value.code
        return (int(code) if code else 0, *capsys.readouterr())

    return call


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["unlearning", "gex", *app.SCORES])
def test_every_method_ranks_the_wrong_labels_first(run: Run, tmp_path: Path, method: str):
    code, out, err = run("labels", "mine.py", "--out", "run", "--method", method)
    assert code == 0, err
    first = rows(tmp_path / "run")[:2]
    blind = method == "entropy"  # it does not look at the label
    assert blind or {row["index"] for row in first} == {"0", "1"}
    assert out.index(first[0]["id"]) < out.index(first[1]["id"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"auc {result['auc']:.4f}" in out
    assert f"report: {Path('run') / 'report.html'}" in out


@pytest.mark.parametrize(("cut", "flagged"), [("budget:5", 5), ("budget:0", 0), ("otsu", None)])
def test_the_cut_is_the_one_that_was_asked_for(
    run: Run, tmp_path: Path, cut: str, flagged: int | None
):
    code, out, _ = run("labels", "mine.py", "--out", "run", "--method", "margin", "--cut", cut)
    found = sum(row["is_issue"] == "True" for row in rows(tmp_path / "run"))
    assert code == 0
    assert flagged in (None, found)
    assert f"{found} of 30 labels flagged" in out


LARGE = FACTORY.replace("30", "100")


@pytest.mark.parametrize("cut", ["probability", "fdr:0.2", "otsu", "budget:5"])
def test_the_default_decides_by_probabilities_or_as_asked(run: Run, tmp_path: Path, cut: str):
    code, out, err = run("labels", "mine.py", "--out", "run", "--cut", cut, text=LARGE)
    assert code == 0, err
    table = rows(tmp_path / "run")
    flagged = [float(row["p_wrong"]) for row in table if row["is_issue"] == "True"]
    assert f"{len(flagged)} of 100 labels flagged" in out
    assert "share of wrong labels: " in out
    if cut == "probability":
        assert len(flagged) == sum(float(row["p_wrong"]) > 0.5 for row in table)
    if cut == "fdr:0.2":
        assert sum(1 - p for p in flagged) <= 0.2 * len(flagged)


@pytest.mark.parametrize("method", ["margin", "gex", "gex-published"])
def test_a_rate_with_a_method_without_probabilities_is_refused_before_the_work(
    run: Run, method: str
):
    words = ("labels", "mine.py", "--method", method, "--cut", "fdr:0.1")
    code, _, err = run(*words, text=RAISING)
    assert code == 2
    assert "probabilities" in err
    assert err.count("\n") == 1


def test_without_a_cut_other_methods_rank_and_say_so(run: Run, tmp_path: Path):
    code, out, err = run("labels", "mine.py", "--out", "run", "--method", "margin")
    assert code == 0, err
    assert "caution: " in out
    assert "ranked list only" in out
    assert "labels flagged" not in out
    assert not any(row["is_issue"] == "True" for row in rows(tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FACTORY, "there are 30 samples, and at least 50 are needed"),
        (
            LARGE.replace("torch.where(wrong, 1 - y, y)", "torch.zeros_like(y)"),
            "all labels are the same",
        ),
    ],
    ids=["few", "one class"],
)
def test_cautions_stand_in_the_terminal_and_in_the_result(
    run: Run, tmp_path: Path, text: str, reason: str
):
    code, out, err = run("labels", "mine.py", "--out", "run", text=text)
    assert code == 0, err
    (caution,) = json.loads((tmp_path / "run" / "result.json").read_text())["cautions"]
    assert reason in caution
    assert f"caution: {caution}" in out
    assert "labels flagged" not in out
    assert "share of wrong labels" not in out


def recorded(path: Path, num: int) -> TrainingTrace:
    """A trace in which the first two of the samples kept a large loss."""
    trace = TrainingTrace(num, Categorical())
    y = torch.arange(num) % 2
    given = torch.where(torch.arange(num) < 2, 1 - y, y)
    for scale in (0.5, 1.0, 2.0):
        trace.record(torch.arange(num), scale * torch.eye(2)[y], given)
    trace.save(path)
    return trace


def test_a_trace_is_the_score_and_nothing_is_trained(run: Run, tmp_path: Path):
    trace = recorded(tmp_path / "trace.safetensors", 30)
    words = ("labels", "mine.py", "--out", "run", "--trace", "trace.safetensors")
    code, out, err = run(*words)
    assert code == 0, err
    table = sorted(rows(tmp_path / "run"), key=lambda row: int(row["index"]))
    assert [float(row["score"]) for row in table] == pytest.approx(trace.mean_loss().tolist())
    assert {row["p_wrong"] for row in table} == {""}
    assert "ranked list only" in out
    assert not (tmp_path / "run" / "members").exists()


def test_a_trace_stands_beside_another_score(run: Run, tmp_path: Path):
    trace = recorded(tmp_path / "trace.safetensors", 30)
    words = ("labels", "mine.py", "--out", "run", "--method", "margin")
    code, _, err = run(*words, "--trace", "trace.safetensors")
    assert code == 0, err
    table = sorted(rows(tmp_path / "run"), key=lambda row: int(row["index"]))
    assert [float(row["mean_loss"]) for row in table] == pytest.approx(trace.mean_loss().tolist())
    assert [row["score"] for row in table] != [row["mean_loss"] for row in table]


@pytest.mark.parametrize("kind", ["missing", "no trace", "other data"])
def test_a_trace_that_does_not_fit_is_told_in_one_line(run: Run, tmp_path: Path, kind: str):
    if kind == "no trace":
        (tmp_path / "trace.safetensors").write_text("nothing")
    if kind == "other data":
        recorded(tmp_path / "trace.safetensors", 20)
    code, _, err = run("labels", "mine.py", "--trace", "trace.safetensors")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert ("the trace holds 20 samples" if kind == "other data" else "trace.safetensors") in err
    assert "Traceback" not in err


def test_names_with_brackets_are_printed_as_they_are(run: Run):
    code, out, err = run("labels", "mine.py", "--method", "loss")
    assert code == 0, err
    assert "scan[/b] 0 [red]" in out
    assert "[cat]" in out


TO_GEX = ("--method", "gex")
RAISING = "def factory():\n    raise AssertionError('the factory was called')\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cut", "fdr:2"), "--cut is 'fdr:2', expected 'probability', 'fdr:RATE' with a rate"),
        (("--cut", "fdr:"), "--cut is 'fdr:'"),
        (("--cut", "fdr:nan"), "--cut is 'fdr:nan'"),
        (("--cut", "budget:-1"), "--cut is 'budget:-1'"),
        (("--cut", "budget:some"), "--cut is 'budget:some'"),
        (("--cut", "otsu:3"), "--cut is 'otsu:3'"),
        (("--method", "GEX"), "--method is 'GEX', expected unlearning, gex, gex-published, loss"),
        (
            (*TO_GEX, "--learning-rate", "hot"),
            "--learning-rate is 'hot', expected 'auto' or a number",
        ),
        (
            (*TO_GEX, "--learning-rate", "-1"),
            "learning_rate is -1.0, expected 'auto' or a number above 0",
        ),
        ((*TO_GEX, "--learning-rate", "nan"), "learning_rate is nan"),
        ((*TO_GEX, "--members", "0"), "members is 0, expected at least 1"),
        (("--threads", "-2"), "--threads is -2, expected 0 or more"),
    ],
)
def test_options_are_looked_at_before_the_factory_is_called(
    run: Run, tmp_path: Path, options: tuple[str, ...], said: str
):
    code, out, err = run("labels", "mine.py", *options, text=RAISING)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "3 * y[:, None]",
            "float('nan')",
            "is nan (30 such among those read), expected finite losses",
        ),
        ("1 - y, y)", "y + 2, y)", "labels range from 0 to 3, expected 0 to 1"),
        ("1 - y, y)", "1 - y, y).float() + 0.5", "expected integer class indices"),
        ("epochs=60", "likelihood=nn.CrossEntropyLoss()", "has reduction='mean', expected one"),
        ("epochs=60", "likelihood=PerSample(lambda f, y: f.mean())", "the loss has shape ()"),
        ("range(30)]", "range(3)]", "mine.py, line 16: ValueError: 3 ids for 30 samples"),
        (
            "Trained(net, data",
            "Trained(net, torch.utils.data.DataLoader([(x[0], 1)], shuffle=True)",
            "the DataLoader shuffles",
        ),
    ],
)
def test_what_is_wrong_with_the_factory_is_told_in_one_line(
    run: Run, old: str, new: str, said: str
):
    assert FACTORY.count(old) == 1
    code, _, err = run("labels", "mine.py", text=FACTORY.replace(old, new))
    assert code == 2
    assert said in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("options", [(), ("--members", "32"), ("--members", "4")])
def test_the_published_settings_can_be_asked_for(run: Run, options: tuple[str, ...]):
    """That nothing is wrong with the options shows in the factory being called."""
    _, _, err = run("labels", "mine.py", "--method", "gex-published", *options, text=RAISING)
    assert "the factory was called" in err


def test_a_budget_too_small_for_gex_is_told_in_one_line(run: Run):
    text = FACTORY.replace("epochs=60", "epochs=2")
    code, _, err = run("labels", "mine.py", *TO_GEX, text=text)
    assert code == 2
    assert "a budget of 2 epochs is too small" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


def test_control_c_ends_with_a_word_on_how_to_go_on(run: Run):
    code, _, err = run("labels", "mine.py", text="def factory():\n    raise KeyboardInterrupt\n")
    assert code == 130
    assert "run the same command again to go on" in err


def test_what_the_library_warns_of_is_one_line(run: Run):
    text = FACTORY.replace(
        "    net = ", "    import warnings\n    warnings.warn('mind')\n    net = "
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run("labels", "mine.py", "--method", "loss", text=text)
    assert code == 0
    assert "warning: mind\n" in err


def test_cite_prints_what_to_cite(run: Run):
    code, out, _ = run("cite")
    assert code == 0
    told = " ".join(out.split())
    assert GEX.reference in told
    assert "connectivity tangent kernel" in told
    assert "repulsive graph rectification" in told


def test_a_run_can_be_taken_up_again_with_more_members(run: Run, tmp_path: Path):
    fixed = (
        "labels", "mine.py", "--out", "run", *TO_GEX, "--learning-rate", "0.1", "--budget", "500",
    )  # fmt: skip
    assert run(*fixed, "--members", "3")[0] == 0
    first = sorted((tmp_path / "run" / "members").iterdir())
    times = [path.stat().st_mtime_ns for path in first]
    assert run(*fixed, "--members", "5")[0] == 0
    assert [path.stat().st_mtime_ns for path in first] == times
    assert len(list((tmp_path / "run" / "members").iterdir())) == 5
    code, _, err = run(*fixed, "--seed", "1")
    assert code == 2
    assert "belongs to another run" in err


def test_walks_can_be_taken_up_again_and_cut_otherwise(run: Run, tmp_path: Path):
    fixed = ("labels", "mine.py", "--out", "run")
    assert run(*fixed, text=LARGE)[0] == 0
    members = sorted((tmp_path / "run" / "members").iterdir())
    times = [path.stat().st_mtime_ns for path in members]
    first = [row["score"] for row in rows(tmp_path / "run")]
    assert run(*fixed, "--cut", "fdr:0.3", text=LARGE)[0] == 0
    assert [path.stat().st_mtime_ns for path in members] == times
    assert [row["score"] for row in rows(tmp_path / "run")] == first
    code, _, err = run(*fixed, "--seed", "1", text=LARGE)
    assert code == 2
    assert "belongs to another run" in err


def test_the_installed_command_ends_as_told(tmp_path: Path):
    """In a process of its own: the exit code, and no traceback on the terminal."""
    (tmp_path / "mine.py").write_text(FACTORY.replace("3 * y[:, None]", "float('nan')"))
    command = [sys.executable, "-m", "afterfit", "labels", "mine.py", "--method", "loss"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the loss of sample scan[/b] 0 [red] is nan")
    assert "Traceback" not in ended.stderr


# The demonstration -------------------------------------------------------------------------------


def test_wrong_labels_are_as_many_as_asked_for_and_all_wrong():
    labels = torch.arange(1000) % 10
    noisy, wrong = with_wrong_labels(labels, 0.1, Generator().manual_seed(0))
    assert int(wrong.sum()) == 100
    assert torch.equal(noisy != labels, wrong)
    assert set(noisy.tolist()) == set(range(10))


def test_images_are_shifted_by_at_most_a_pixel_in_every_direction():
    images = torch.zeros(500, 1, 8, 8)
    images[:, 0, 4, 4] = 1
    moved = shifted(images, Generator().manual_seed(0))
    places = {tuple(place.tolist()) for place in moved.nonzero()[:, 2:]}
    assert moved.shape == images.shape
    assert bool((moved.sum((1, 2, 3)) == 1).all())
    assert places == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_the_demonstration_trains_on_1200_digits_of_which_120_are_wrong():
    trained = digits(seed=0, epochs=1)
    assert trained.batches().num_samples == 1200
    assert int(trained.wrong.sum()) == 120
    assert trained.test.num_samples == 597
    assert not trained.module.training
    told = losses(trained.problem(), trained.test).mean()
    assert float(told) < math.log(10)
    untrained = replace(trained, module=conv_net(0)).problem()
    assert float(told) < float(losses(untrained, trained.test).mean())


def test_decisions_are_applied_to_a_run(run: Run, tmp_path: Path):
    assert run("labels", "mine.py", "--out", "run", "--method", "loss")[0] == 0
    (tmp_path / "d.csv").write_text("position,decision,label\n0,relabel,1\n5,drop,\n")
    code, out, err = run("apply", "run", "d.csv")
    assert code == 0, err
    assert "29 of 30 samples stay" in out
    (tmp_path / "d.csv").write_text("position,decision,label\n0,relabel,cow\n")
    code, _, err = run("apply", "run", "d.csv")
    assert code == 2
    assert err.count("\n") == 1
    assert "cow" in err

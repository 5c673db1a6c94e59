import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from afterfit.cli import app

FACTORY = """
import torch
from torch import nn
from afterfit import Batches, Trained

def factory():
    y = torch.arange(30) % 2
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) + 3 * y[:, None]
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        net.bias.copy_(torch.tensor([3.0, -3.0]))
    return Trained(net, Batches((x, y), ids=[f"scan[/b] {i} [red]" for i in range(30)]))
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Call ``afterfit influence`` here: exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        (tmp_path / "mine.py").write_text(FACTORY)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["afterfit", "influence", *words])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        for console in (app.console, app.errors):
            monkeypatch.setattr(console, "_width", 300)
        with pytest.raises(SystemExit) as ended:
            app.main()
        code = ended.value.code
        return (int(code) if code else 0, *capsys.readouterr())

    return call


def test_help_names_every_option_and_method(run: Run):
    code, out, _ = run("--help")
    assert code == 0
    for word in ("--query", "--method", "--top", "--checkpoint", "--damping", "--out"):
        assert word in out
    for method in ("gex", "influence-function", "ekfac", "hybrid", "datainf", "graddot", "tracin"):
        assert method in out


def test_a_run_writes_its_files_and_goes_on(run: Run, tmp_path: Path):
    words = ("mine.py", "--method", "influence-function", "--query", "0,2-3", "--top", "2")
    code, out, _ = run(*words, "--out", "here")
    assert code == 0, out
    assert "scan[/b] 0 [red]" in out
    assert "report: here/report.html" in out
    table = pd.read_csv(tmp_path / "here" / "explained.csv")
    assert table["query"].nunique() == 3
    code, again, told = run(*words, "--out", "here")
    assert (code, again) == (0, out)
    assert "scoring" not in told


def test_checkpoints_are_read_without_unpickling(run: Run, tmp_path: Path):
    state = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    torch.save(state, tmp_path / "first.pt")
    code, out, _ = run("mine.py", "--method", "tracin", "--checkpoint", "first.pt")
    assert (code, "proponent" in out) == (0, True)
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    code, _, told = run("mine.py", "--method", "tracin", "--checkpoint", "broken.pt")
    assert code == 2
    assert "broken.pt cannot be read as a state dict" in told
    assert "Traceback" not in told


WRONG = {
    "--method is 'magic', expected gex": ("--method", "magic"),
    "--query is '1;2', expected positions such as 0,3,7": ("--query", "1;2"),
    "--query is '-1', expected positions": ("--query=-1",),
    "expected positions from 0 to 29": ("--method", "graddot", "--query", "30"),
    "--top is 0, expected at least 1": ("--top", "0"),
    "--damping is for influence-function and ekfac": ("--damping", "0.1"),
    "--members is for gex, and --method": ("--method", "graddot", "--members", "3"),
    "--method tracin has no --checkpoint": ("--method", "tracin"),
    "damping is -1.0, expected": ("--method", "influence-function", "--damping", "-1"),
    "away.pt": ("--method", "tracin", "--checkpoint", "away.pt"),
}


@pytest.mark.parametrize("told", WRONG)
def test_wrong_input_is_told_in_one_line(told: str, run: Run):
    code, _, err = run("mine.py", *WRONG[told])
    assert code == 2
    assert told in err
    assert "Traceback" not in err

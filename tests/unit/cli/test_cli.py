"""The command line as a user meets it: what it writes, and how it refuses."""

import subprocess
import sys

import pytest

from afterfit.cli import app

GOOD = """
import torch
from torch import nn
import afterfit as af

def factory():
    torch.manual_seed(0)
    y = torch.arange(40) % 2
    x = torch.randn(40, 2) + 3 * y[:, None]
    return af.Trained(nn.Linear(2, 2), (x, y), epochs=40{extra})
"""

SHUFFLING = "torch.utils.data.DataLoader([*zip(x, y)], shuffle=True)"


def run(tmp_path, monkeypatch, capsys, text: str, *options: str) -> tuple[int, str]:
    """Call the command line in this process; its exit code, and what it printed."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["afterfit", "labels", str(file), "--out", out, *options])
    monkeypatch.setattr("warnings.showwarning", None)
    monkeypatch.setattr(app.errors, "_width", 400)
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0), "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--method", "gex", "--members", "4"),
        ("--method", "loss"),
        ("--method", "margin", "--cut", "otsu"),
        ("--method", "gradient-norm", "--cut", "budget:5"),
    ],
)
def test_a_factory_becomes_a_report(tmp_path, monkeypatch, capsys, options):
    code, told = run(tmp_path, monkeypatch, capsys, GOOD.format(extra=""), *options)
    assert code == 0, told
    assert (tmp_path / "out" / "report.html").exists()
    assert "most suspicious" in told


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (GOOD.format(extra=""), ("--cut", "median"), "--cut is 'median'"),
        (GOOD.format(extra=""), ("--method", "magic"), "--method is 'magic'"),
        (
            GOOD.format(extra=""),
            ("--method", "gex", "--learning-rate", "hot"),
            "--learning-rate is 'hot'",
        ),
        (GOOD.format(extra=""), ("--method", "margin", "--cut", "fdr:0.1"), "probabilities"),
        ("x = 1", (), "has no function 'factory'"),
        ("def factory():\n    return 3", (), "returned a int"),
        ("def factory():\n    return 1 / 0", (), "line 2: ZeroDivisionError"),
        (GOOD.format(extra=", likelihood=nn.CrossEntropyLoss()"), (), "reduction='mean'"),
        (GOOD.replace("% 2\n", "% 3\n").format(extra=""), (), "labels range from 0 to 2"),
        (
            GOOD.replace(
                "(x, y)", "torch.utils.data.DataLoader([*zip(x, y)], shuffle=True)"
            ).format(extra=""),
            (),
            "shuffles",
        ),
        (GOOD.replace("3 * y", "float('nan') * y").format(extra=""), (), "nan"),
    ],
)
def test_wrong_input_gets_one_line(tmp_path, monkeypatch, capsys, text, options, expected):
    code, told = run(tmp_path, monkeypatch, capsys, text, *options)
    assert code == 2
    assert expected in told
    assert "Traceback" not in told


def test_a_missing_file_ends_without_a_traceback():
    command = [sys.executable, "-m", "afterfit", "labels", "nowhere.py"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "nowhere.py does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr

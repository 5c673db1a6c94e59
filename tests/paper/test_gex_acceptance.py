"""The acceptance bounds of GEX, on MNIST from the folder in ``AFTERFIT_DATA``; minutes a part.

AFTERFIT_DATA=DATA pytest -m slow tests/paper
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "gex" / "acceptance.py"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["A", "B", "sources", "circles"])
def test_the_bounds_of_a_protocol_hold(part):
    folder = os.environ.get("AFTERFIT_DATA")
    if folder is None and part != "circles":
        pytest.skip("needs MNIST: set AFTERFIT_DATA to a folder that holds mnist/mnist_train.npz")
    command = [sys.executable, str(SCRIPT), "--part", part, "--data", folder or "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("shown")]
    assert len(lines) >= 3
    assert [line for line in lines if not line.startswith("holds")] == []

"""The examples run from the command line, as their first lines say, and find what they planted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["labels_table", "labels_images", "labels_text"])
def test_an_example_finds_the_labels_that_it_made_wrong(name, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "AFTERFIT_DATA"}
    command = ["labels", str(EXAMPLES / f"{name}.py"), "--out", str(tmp_path), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "afterfit", *command],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["average_precision"] > 0.7
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "scores.csv").read_text().count("\n") == result["samples"] + 1

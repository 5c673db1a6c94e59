"""Decisions of a review become labels and positions, or one clear error and nothing written."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from afterfit.cli import app
from afterfit.workflows import apply_decisions

HEAD = "position,decision,label\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a label run leaves, of four samples and three classes."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "scores.csv").write_text(
        'index,id,given,suggested\n2,c,0,1\n0,007,0,1\n3,"<b>,""d""",1,0\n1,NA,1,1\n'
    )
    (folder / "result.json").write_text(json.dumps({"classes": ["cat", "dog", "eel"]}))
    return folder


def decided(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "decisions.csv"
    path.write_text(text)
    return path


def test_decisions_make_a_cleaned_data_set(run: Path, tmp_path: Path):
    path = decided(tmp_path, HEAD + "3,drop,\n2,relabel,2\n0,keep,\n")
    applied = apply_decisions(run, path)
    assert applied.counts == {"keep": 1, "relabel": 1, "drop": 1}
    labels = pd.read_csv(run / "labels.csv", dtype=str, keep_default_na=False)
    assert labels.columns.tolist() == ["position", "id", "label"]
    assert labels["id"].tolist() == ["007", "NA", "c", '<b>,"d"']
    assert labels["label"].tolist() == ["0", "1", "2", "1"]
    assert (run / "kept.csv").read_text() == "position\n0\n1\n2\n"
    pd.testing.assert_frame_equal(labels, applied.labels)


def test_further_columns_and_a_byte_order_mark_are_no_hindrance(run: Path, tmp_path: Path):
    path = decided(tmp_path, "\ufeffdecision,label,note,position\r\nrelabel,1,sure,0\r\n")
    assert apply_decisions(run, path).labels["label"].tolist() == ["1", "1", "0", "1"]


BAD = {
    "": "is empty",
    HEAD: "has no rows",
    "position,label\n0,1\n": "has no column decision",
    HEAD + "4,keep,\n": "position '4' is not in the run, expected 0 to 3",
    HEAD + "-1,keep,\n": "position '-1' is not in the run",
    HEAD + "one,keep,\n": "position 'one' is not in the run",
    HEAD + "1,keep,\n1,drop,\n": "position 1 stands there twice",
    HEAD + "1,erase,\n": "decision 'erase' for position 1",
    HEAD + "1,relabel,3\n": "label '3' for position 1 is none of the run's",
    HEAD + "1,relabel,\n": "label '' for position 1",
    HEAD + '1,"keep\n': "cannot be read as CSV",
}


@pytest.mark.parametrize(("text", "reason"), BAD.items())
def test_bad_decisions_are_refused_and_nothing_is_written(
    text: str, reason: str, run: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=reason):
        apply_decisions(run, decided(tmp_path, text))
    assert {path.name for path in run.iterdir()} == {"scores.csv", "result.json"}


def test_what_is_missing_is_named(run: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv does not exist"):
        apply_decisions(run, tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="expected a folder that 'afterfit labels' wrote"):
        apply_decisions(tmp_path, decided(tmp_path, HEAD + "0,keep,\n"))


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["afterfit", "apply", *arguments])
    monkeypatch.setattr("warnings.showwarning", None)
    monkeypatch.setattr(app.errors, "_width", 400)
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0), "".join(capsys.readouterr())


def test_the_command_tells_what_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = decided(tmp_path, HEAD + "3,drop,\n")
    code, told = command(monkeypatch, capsys, str(run), str(path))
    assert code == 0
    assert "keep 0, relabel 0, drop 1; 3 of 4 samples stay" in told


def test_the_command_fails_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = decided(tmp_path, HEAD + "9,drop,\n")
    code, told = command(monkeypatch, capsys, str(run), str(path))
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1

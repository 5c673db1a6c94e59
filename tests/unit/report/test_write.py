import os

import pandas as pd
import pytest

from afterfit.report import write_table_atomic, write_text_atomic


class Broken(pd.DataFrame):
    """A table that fails in the middle of its own writing."""

    def to_csv(self, file, **_):
        file.write("half")
        raise OSError("disk is full")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk is full"):
        write_table_atomic(path, Broken())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.csv"]


def test_a_failed_rename_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no rename")

    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no rename"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "report.html"
    for text in ("first \u2013\n", "second\r\n"):
        write_text_atomic(path, text)
        assert path.read_bytes() == text.encode()


def test_a_table_comes_back_from_its_file(tmp_path):
    table = pd.DataFrame({"id": [3, 1], "score": [0.5, float("nan")], "name": ["a,b", 'c"d']})
    write_table_atomic(tmp_path / "scores.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores.csv"), table)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a directory, expected an existing one"):
        write_text_atomic(tmp_path / "none" / "report.html", "text")

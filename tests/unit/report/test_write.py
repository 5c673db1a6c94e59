import os

import pandas as pd
import pytest

from afterfit.report import write_table_atomic, write_text_atomic


def test_text_is_read_back_as_it_was(tmp_path):
    text = "one\ntwo\r\nthree ± ℓ\n"
    write_text_atomic(tmp_path / "page.html", text)
    assert (tmp_path / "page.html").read_bytes() == text.encode()


def test_a_path_may_be_a_string(tmp_path):
    write_text_atomic(str(tmp_path / "page.html"), "text")
    assert (tmp_path / "page.html").read_text() == "text"


def test_a_table_is_read_back_as_it_was(tmp_path):
    table = pd.DataFrame({"index": [3, 1], "given": ["cat, dog", "µ"], "score": [0.1, 1 / 3]})
    write_table_atomic(tmp_path / "scores.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores.csv"), table)


class FailsHalfway(pd.DataFrame):
    def to_csv(self, file, **_):
        file.write("half of it")
        raise OSError("disk full")


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_table_atomic(path, FailsHalfway({"a": [1]}))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_keeps_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "lone surrogate \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_file_is_complete(tmp_path, monkeypatch):
    seen = []
    rename = os.replace

    def spy(source, target):
        seen.append((source.read_text(), target.exists()))
        rename(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_text_atomic(tmp_path / "page.html", "whole")
    assert seen == [("whole", False)]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_atomic(tmp_path / "page.html", "text")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        write_text_atomic(tmp_path / "nowhere" / "page.html", "text")

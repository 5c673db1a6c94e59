import json
from pathlib import Path

import pandas as pd
import pytest

from afterfit.workflows import apply_decisions

NAMES = ["cat", "<b>dog</b>", "NA"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run over five samples, the most suspicious first."""
    scores = pd.DataFrame(
        {
            "index": [3, 0, 4, 1, 2],
            "id": ["d", "a,\"'", "NA", "b", "=c()"],
            "given": [0, 1, 0, 2, 0],
            "suggested": [1, 0, 1, 2, 0],
        }
    )
    scores.to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "result.json").write_text(json.dumps({"classes": NAMES}))
    return tmp_path


def write(run: Path, *rows: str) -> Path:
    path = run / "decisions.csv"
    path.write_text("\n".join(["index,decision,label", *rows]) + "\n")
    return path


def test_decisions_become_labels_and_an_index(run: Path):
    cleaned = apply_decisions(run, write(run, "3,relabel,NA", "0,drop,", "4,keep,", "1,relabel,0"))
    labels = pd.read_csv(run / "labels.csv", keep_default_na=False)
    assert labels["index"].tolist() == [0, 1, 2, 3, 4]
    assert labels["id"].tolist() == ["a,\"'", "b", "=c()", "d", "NA"]
    assert labels["label"].tolist() == [1, 0, 0, 2, 0]
    assert labels["decision"].tolist() == ["drop", "relabel", "", "relabel", "keep"]
    assert pd.read_csv(run / "keep.csv")["index"].tolist() == [1, 2, 3, 4]
    assert cleaned.counts == {"keep": 1, "relabel": 2, "drop": 1}


def test_csv_and_json_say_the_same(run: Path):
    from_csv = apply_decisions(run, write(run, "3,relabel,<b>dog</b>", "2,drop,"))
    path = run / "decisions.json"
    rows = [
        {"index": 3, "decision": "relabel", "label": "<b>dog</b>"},
        {"index": 2, "decision": "drop", "label": ""},
    ]
    path.write_text(json.dumps(rows))
    pd.testing.assert_frame_equal(apply_decisions(run, path).labels, from_csv.labels)


def test_no_decision_leaves_every_label(run: Path):
    cleaned = apply_decisions(run, write(run))
    assert cleaned.labels["label"].equals(cleaned.labels["given"])
    assert len(cleaned.keep) == 5


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("5,keep,",), "decision 1: '5' is no position in the data, expected 0 to 4"),
        (("-1,keep,",), "'-1' is no position"),
        (("../x,keep,",), "'../x' is no position"),
        (("1,keep,", "1,drop,"), "decision 2: sample 1 is decided twice"),
        (("1,burn,",), "'burn' is no decision, expected keep, relabel, drop"),
        (("1,relabel,cow",), "'cow' is no class, expected one of cat, <b>dog</b>, NA, or a number"),
        (("1,relabel,3",), "'3' is no class"),
        (("1,relabel,",), "'' is no class"),
        (tuple(f"{i},drop," for i in range(5)), "drops all 5 samples"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(run: Path, rows, said: str):
    with pytest.raises(ValueError, match="decision") as refused:
        apply_decisions(run, write(run, *rows))
    assert said in str(refused.value)
    assert not (run / "labels.csv").exists()
    assert not (run / "keep.csv").exists()


def test_other_files_are_refused(run: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"scores.csv does not exist"):
        apply_decisions(tmp_path / "elsewhere", write(run))
    with pytest.raises(FileNotFoundError, match=r"away.csv does not exist"):
        apply_decisions(run, run / "away.csv")
    (run / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match=r"broken.json cannot be read"):
        apply_decisions(run, run / "broken.json")
    (run / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column index, decision"):
        apply_decisions(run, run / "other.csv")


def test_targets_that_are_numbers_take_a_number(run: Path):
    scores = pd.read_csv(run / "scores.csv", keep_default_na=False)
    scores.assign(given=scores["given"] + 0.5).to_csv(run / "scores.csv", index=False)
    cleaned = apply_decisions(run, write(run, "0,relabel,2.25"))
    assert cleaned.labels["label"][0] == 2.25
    with pytest.raises(ValueError, match="expected a number"):
        apply_decisions(run, write(run, "0,relabel,many"))

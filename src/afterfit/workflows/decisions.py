"""Decisions of a review, and the cleaned data set that follows from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd

from afterfit.report import write_table_atomic

WHAT = ("keep", "relabel", "drop")
_COLUMNS = ("position", "decision", "label")


@final
@dataclass(frozen=True)
class Applied:
    """What came of a review.

    Attributes
    ----------
    labels
        One row a sample in the order of the data: ``position``, ``id``, ``label`` after decisions.
    kept
        Column ``position``: the samples that were not dropped.
    counts
        How many samples each of keep, relabel and drop was decided for.
    """

    labels: pd.DataFrame
    kept: pd.DataFrame
    counts: dict[str, int]


def apply_decisions(run: Path | str, decisions: Path | str) -> Applied:
    """Write ``labels.csv`` and ``kept.csv`` into the folder of a label run.

    Samples without a decision keep their label and stay in. Nothing is written unless every
    decision is sound.

    Parameters
    ----------
    run
        Folder that :func:`run_labels` wrote.
    decisions
        CSV with the columns position, decision (keep, relabel or drop) and label (for relabel, as
        it stands in ``scores.csv``: for classes, the index), as the review saves it.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the decisions are empty, lack a column, or name a position, decision or label that the
        run does not have, or a position twice.
    """
    folder = Path(run)
    scores = _scores(folder)
    given = _read(Path(decisions), _COLUMNS, "the file that the review saves as decisions.csv")
    _check(given, scores, _labels(folder, scores), Path(decisions))
    told = given.set_index("position")
    labels = scores["given"].copy()
    corrected = told["label"][told["decision"] == "relabel"]
    labels.loc[corrected.index] = corrected
    dropped = told.index[told["decision"] == "drop"]
    order = [str(place) for place in range(len(scores))]
    table = pd.DataFrame(
        {"position": order, "id": scores["id"].loc[order], "label": labels.loc[order]}
    ).reset_index(drop=True)
    kept = table[["position"]][~table["position"].isin(dropped)].reset_index(drop=True)
    write_table_atomic(folder / "labels.csv", table)
    write_table_atomic(folder / "kept.csv", kept)
    counts = {what: int((told["decision"] == what).sum()) for what in WHAT}
    return Applied(table, kept, counts)


def _scores(folder: Path) -> pd.DataFrame:
    path = folder / "scores.csv"
    if not path.is_file():
        message = (
            f"{path} does not exist, expected a folder that 'afterfit labels' wrote: pass its --out"
        )
        raise FileNotFoundError(message)
    expected = "the table of a label run"
    return _read(path, ("index", "id", "given", "suggested"), expected).set_index("index")


def _read(path: Path, columns: tuple[str, ...], expected: str) -> pd.DataFrame:
    """A CSV as text, cell by cell as it stands."""
    if not path.is_file():
        message = f"{path} does not exist, expected {expected}"
        raise FileNotFoundError(message)
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        message = f"{path} is empty, expected {expected} with the columns {', '.join(columns)}"
        raise ValueError(message) from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
        message = f"{path} cannot be read as CSV ({error}), expected {expected}: save it again"
        raise ValueError(message) from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        message = (
            f"{path} has no column {', '.join(missing)}, expected {', '.join(columns)}: use "
            f"{expected}"
        )
        raise ValueError(message)
    if not len(table):
        message = f"{path} has no rows, expected {expected} with one row or more"
        raise ValueError(message)
    return table


def _labels(folder: Path, scores: pd.DataFrame) -> set[str]:
    """Labels that a sample may get, as they stand in the table."""
    known = set(scores["given"]) | set(scores["suggested"])
    result = folder / "result.json"
    if result.is_file():
        names = json.loads(result.read_text(encoding="utf-8")).get("classes", [])
        known |= {str(place) for place in range(len(names))}
    return known


def _check(decisions: pd.DataFrame, scores: pd.DataFrame, labels: set[str], path: Path) -> None:
    unknown = ~decisions["position"].isin(scores.index)
    if unknown.any():
        seen = decisions["position"][unknown].iloc[0]
        message = (
            f"{path}: position {seen!r} is not in the run, expected 0 to {len(scores) - 1}: apply "
            "decisions to the run they were made on"
        )
        raise ValueError(message)
    twice = decisions["position"].duplicated()
    if twice.any():
        message = (
            f"{path}: position {decisions['position'][twice].iloc[0]} stands there twice, expected "
            "one decision a sample: remove one"
        )
        raise ValueError(message)
    strange = ~decisions["decision"].isin(WHAT)
    if strange.any():
        first = decisions[strange].iloc[0]
        message = (
            f"{path}: decision {first['decision']!r} for position {first['position']}, expected "
            "keep, relabel or drop"
        )
        raise ValueError(message)
    wrong = (decisions["decision"] == "relabel") & ~decisions["label"].isin(labels)
    if wrong.any():
        first = decisions[wrong].iloc[0]
        message = (
            f"{path}: label {first['label']!r} for position {first['position']} is none of the "
            "run's, expected a label as in scores.csv (of a class, its index)"
        )
        raise ValueError(message)

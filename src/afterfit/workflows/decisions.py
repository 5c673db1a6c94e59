"""What a reviewer decided about suspicious labels, as a cleaned label file and an index."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd

from afterfit.report import write_table_atomic

DECISIONS = ("keep", "relabel", "drop")
"""Leave the label as it is, replace it, or take the sample out."""

_COLUMNS = ("index", "decision", "label")


@final
@dataclass(frozen=True)
class Cleaned:
    """Labels after a review.

    Attributes
    ----------
    labels
        One row a sample in the order of the data: ``index`` (its position), ``id``, ``given``,
        ``label`` (the one that holds now) and ``decision`` (empty where none was made).
    keep
        The column ``index``: positions of the samples that stay, in the order of the data.
    counts
        How many samples each of :data:`DECISIONS` was made for.
    """

    labels: pd.DataFrame
    keep: pd.DataFrame
    counts: dict[str, int]


def apply_decisions(run: Path, decisions: Path) -> Cleaned:
    """Write ``labels.csv`` and ``keep.csv`` into the folder of a run over labels.

    Parameters
    ----------
    run
        Folder that :func:`~afterfit.workflows.run_labels` wrote; its ``scores.csv`` is read.
    decisions
        CSV, or JSON as a list of objects, with ``index`` (position in the data), ``decision`` (one
        of :data:`DECISIONS`) and ``label`` (for relabel: the class by its name or its number;
        for targets that are numbers, the number).

    Raises
    ------
    FileNotFoundError
        If the run or the decisions are missing.
    ValueError
        If a position, a decision or a label is unknown, or a sample is decided twice. Nothing is
        written then.
    """
    scores = _scores(run)
    table = _read(decisions)
    names = _class_names(run)
    labels = scores[["index", "id", "given"]].assign(label=scores["given"], decision="")
    labels = labels.sort_values("index", ignore_index=True)
    for line, row in enumerate(table.to_dict("records"), start=1):
        where = f"{decisions}, decision {line}"
        index = _position(row["index"], len(labels), where)
        if labels.at[index, "decision"]:
            message = f"{where}: sample {index} is decided twice, expected once: leave one of them"
            raise ValueError(message)
        if row["decision"] not in DECISIONS:
            message = f"{where}: '{row['decision']}' is no decision, expected {_listed(DECISIONS)}"
            raise ValueError(message)
        labels.at[index, "decision"] = row["decision"]
        if row["decision"] == "relabel":
            labels.at[index, "label"] = _label(str(row["label"]), scores, names, where)
    keep = labels.loc[labels["decision"] != "drop", ["index"]].reset_index(drop=True)
    if keep.empty:
        message = f"{decisions} drops all {len(labels)} samples, expected at least one to stay"
        raise ValueError(message)
    write_table_atomic(run / "labels.csv", labels)
    write_table_atomic(run / "keep.csv", keep)
    counts = {name: int((labels["decision"] == name).sum()) for name in DECISIONS}
    return Cleaned(labels, keep, counts)


def _scores(run: Path) -> pd.DataFrame:
    path = run / "scores.csv"
    if not path.is_file():
        message = f"{path} does not exist, expected the folder that 'afterfit labels' wrote"
        raise FileNotFoundError(message)
    scores = pd.read_csv(path, keep_default_na=False, na_values={"confidence": [""]})
    missing = {"index", "id", "given", "suggested"} - set(scores)
    if missing or sorted(scores["index"]) != list(range(len(scores))):
        message = f"{path} is no table of 'afterfit labels', expected one row for each sample"
        raise ValueError(message)
    return scores


def _read(path: Path) -> pd.DataFrame:
    """Decisions with the columns index, decision and label as texts."""
    if not path.is_file():
        message = f"{path} does not exist, expected the decisions as CSV or JSON"
        raise FileNotFoundError(message)
    try:
        if path.suffix == ".json":
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # also broken JSON, CSV and UTF-8
        message = f"{path} cannot be read as decisions: {error}"
        raise ValueError(message) from None
    if "label" not in table:
        table = table.assign(label="")
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        message = f"{path} has no column {_listed(missing)}, expected {_listed(_COLUMNS)}"
        raise ValueError(message)
    return table


def _class_names(run: Path) -> list[str]:
    """Names of the classes, where the run knows them."""
    path = run / "result.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [str(name) for name in known.get("classes", [])]


def _position(text: Any, num: int, where: str) -> int:
    if not str(text).isdecimal() or int(text) >= num:
        message = f"{where}: '{text}' is no position in the data, expected 0 to {num - 1}"
        raise ValueError(message)
    return int(text)


def _label(text: str, scores: pd.DataFrame, names: list[str], where: str) -> Any:
    """The label that a text stands for: a class by name or number, or a number."""
    if pd.api.types.is_float_dtype(scores["given"]):
        try:
            return float(text)
        except ValueError:
            message = f"{where}: the label is '{text}', expected a number"
            raise ValueError(message) from None
    if not pd.api.types.is_integer_dtype(scores["given"]):
        message = f"{where}: these labels are no classes and no numbers: keep or drop the sample"
        raise ValueError(message)
    if names.count(text) == 1:
        return names.index(text)
    known = int(scores[["given", "suggested"]].max().max()) + 1
    classes = len(names) or known
    if text.isdecimal() and int(text) < classes:
        return int(text)
    told = _listed(names[:10]) + (", ..." if len(names) > 10 else "") if names else ""
    expected = f"one of {told}, or " if told else ""
    message = f"{where}: '{text}' is no class, expected {expected}a number from 0 to {classes - 1}"
    raise ValueError(message)


def _listed(words: Any) -> str:
    return ", ".join(words)

"""The page about the labels of a training set."""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from afterfit.report.page import MOST_ROWS, Card, Page, Section
from afterfit.report.plots import (
    class_confusion,
    inspection_curve_plot,
    rate_search_plot,
    score_histogram,
)
from afterfit.report.samples import number

MOST_UNNAMED = 200
"""Integer labels up to here count as classes even if they have no names."""

MOST_PARTS = 8
"""Of a label with many numbers, so many are shown."""

_FORMATS = {
    "Confidence": "{:.0%}", "Score": "{:.3g}", "Std. error": "{:.2g}", "Probably wrong": "{:.0%}",
}  # fmt: skip

_SPREAD = (
    "Each sample counts once. Two separate groups mean that the right and the wrong labels can be "
    "told apart; one group with a tail means that the threshold is a choice, and that the order "
    "matters more than the count. Counts are on a logarithmic scale."
)
_CONFUSION = (
    "Flagged samples, by the label in the data and the label that the networks suggest. A few "
    "strong cells point to classes that are mixed up as a rule."
)
_INSPECTION = (
    "Wrong labels found when samples are inspected from the largest score downwards. Only known "
    "here because the truth was given."
)
_SEARCH = (
    "The chosen rate is the one at which the scores fall most clearly into two groups, among those "
    "at which the networks still fit the data: their median loss stays below the dashed line. "
    "Hollow points are not allowed."
)
_SUSPECTS = Markup(
    'From the largest score downwards: <span class="given">label in the data</span> '
    '<span class="arrow">&rarr;</span> <span class="suggested">suggested label</span>.'
)
_NEXT = (
    "Look at the suspects from the top. Correct the labels that are wrong, leave rare but right "
    "samples in, and take out what nobody can name. Stop where most of what you see is right. Then "
    "train again, and compare on held-out data whose labels you trust."
)


def label_page(
    title: str,
    issues: pd.DataFrame,
    scores: NDArray[np.floating[Any]],
    threshold: float | None,
    *,
    samples: Sequence[str] = (),
    class_names: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    search: Mapping[str, Any] | None = None,
    truth: NDArray[np.bool_] | None = None,
    warnings: Sequence[str] = (),
    methods: str = "",
    citation: str = "",
) -> Page:
    """A report on the labels: distributions, suspects, table, and how to read them.

    Parameters
    ----------
    issues
        One row per sample, the most suspicious first, with the columns index, given, suggested,
        score, stderr, rank and is_issue; `id`, `confidence` and `p_wrong` are shown too where they
        are there.
    scores
        (N,), in the order of the data; large = suspicious.
    threshold
        Scores above it are flagged; None where nothing says where to cut.
    samples
        Fragments of HTML, as `sample_html` makes them, for the first rows of `issues`.
    class_names
        In the order of the class indices; empty where labels are no classes or have no names.
    search
        Arguments of `rate_search_plot`, where a learning rate was searched for.
    truth
        True where the label is known to be wrong, (N,), in the order of the data.
    facts, warnings, methods, citation
        As of a :class:`~afterfit.report.Page`.

    Raises
    ------
    ValueError
        If there are more samples than rows, or not as many truth values as scores.
    """
    if len(samples) > len(issues):
        message = (
            f"{len(samples)} samples for {len(issues)} rows of issues, expected at most one per "
            "row: pass the samples of the first rows, in their order"
        )
        raise ValueError(message)
    if truth is not None and len(truth) != len(scores):
        message = (
            f"truth holds {len(truth)} values and scores {len(scores)}, expected as many of both: "
            "pass one truth value per sample, in the order of the data"
        )
        raise ValueError(message)
    table = _table(issues.head(MOST_ROWS), class_names, truth)
    spread = score_histogram(scores, threshold, truth)
    sections = [Section("How the scores are spread", figure=spread, caption=_SPREAD)]
    sections += _pair(issues, scores, class_names, truth)
    if len(issues):
        sections.append(
            Section(
                "The suspects",
                text=_SUSPECTS,
                cards=_cards(table, samples),
                table=table,
                formats=_FORMATS,
                marked=issues["is_issue"].tolist(),
                rest="scores.csv",
                left_out=len(issues) - len(table),
            )
        )
    sections.append(Section("How to read this", terms=_terms(table, threshold)))
    if search is not None:
        figure = rate_search_plot(**search)
        sections.append(Section("How the learning rate was chosen", figure=figure, caption=_SEARCH))
    flagged = int(issues["is_issue"].sum())
    lead = _lead(len(scores), flagged, threshold)
    return Page(title, lead, sections, facts, warnings, methods, citation)


def _lead(num: int, flagged: int, threshold: float | None) -> Markup:
    if threshold is None:
        told = (
            "<strong>Ranked list only</strong>: {:,} labels in the order in which they are "
            "suspicious, and no count of wrong ones, for the reason below."
        )
        return Markup(told).format(num)
    if not flagged:
        return Markup("None of {:,} labels stands out as wrong.").format(num)
    told = "<strong>{:,} of {:,} labels</strong> ({:.1%}) look wrong."
    return Markup(told).format(flagged, num, flagged / num)


def _pair(
    issues: pd.DataFrame, scores: NDArray[Any], class_names: Sequence[str], truth: Any
) -> list[Section]:
    """The pictures that there are the numbers for, side by side."""
    sections = []
    flagged = issues[issues["is_issue"].astype(bool)]
    names = _class_names(issues, class_names)
    if len(flagged) and names:
        figure = class_confusion(flagged["given"], flagged["suggested"], names)
        title = "From which label to which"
        sections.append(Section(title, figure=figure, caption=_CONFUSION, row="pair"))
    if truth is not None and truth.any():
        found = np.cumsum(truth[np.argsort(-scores, kind="stable")])
        found = np.concatenate([[0.0], found / found[-1]])
        inspected = np.linspace(0, 1, len(found))
        figure = inspection_curve_plot(inspected, found, float(truth.mean()))
        title = "How much inspection finds"
        sections.append(Section(title, figure=figure, caption=_INSPECTION, row="pair"))
    return sections


def _class_names(issues: pd.DataFrame, given: Sequence[str]) -> list[str]:
    """Names of the classes if the labels are classes, else none."""
    labels = issues[["given", "suggested"]]
    if not all(pd.api.types.is_integer_dtype(kind) for kind in labels.dtypes):
        return []
    low, high = int(labels.min().min()), int(labels.max().max())
    if low < 0 or (given and high >= len(given)):
        return []
    if given:
        return [str(name) for name in given]
    return [str(place) for place in range(high + 1)] if high < MOST_UNNAMED else []


def _table(issues: pd.DataFrame, class_names: Sequence[str], truth: Any) -> pd.DataFrame:
    """The suspects as the page shows them, without columns of which nothing is known."""
    names = [str(name) for name in class_names]
    shown = {
        "Rank": issues["rank"],
        "Sample": issues["id" if "id" in issues else "index"].map(str),
        "Given": [_label(label, names) for label in issues["given"].tolist()],
        "Suggested": [_label(label, names) for label in issues["suggested"].tolist()],
        "Confidence": issues.get("confidence"),
        "Score": issues["score"].astype(float),
        "Std. error": issues["stderr"],
        "Flagged": issues["is_issue"].astype(bool),
        "Probably wrong": issues.get("p_wrong"),
    }
    known = {
        name: column for name, column in shown.items()
        if column is not None and not (isinstance(column, pd.Series) and column.isna().all())
    }  # fmt: skip
    if truth is not None:
        known["In truth"] = ["wrong" if truth[int(place)] else "right" for place in issues["index"]]
    return pd.DataFrame(known, index=issues.index)


def _cards(table: pd.DataFrame, samples: Sequence[str]) -> list[Card]:
    return [
        Card(sample, row["Given"], row["Suggested"], _notes(row))
        for sample, row in zip(samples, table.to_dict("records"), strict=False)
    ]


def _notes(row: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """What stands below a sample."""
    told = {name: _FORMATS[name].format(row[name]) for name in _FORMATS if name in row}
    error = f" ± {told['Std. error']}" if np.isfinite(row.get("Std. error", np.nan)) else ""
    notes = [
        (told["Score"] + error, "score and its standard error"),
        (f"#{row['Rank']}", "rank"),
        (f"sample {row['Sample']}", ""),
    ]
    if np.isfinite(row.get("Probably wrong", np.nan)):
        notes.append((f"{told['Probably wrong']} wrong", "probability that the label is wrong"))
    return notes + ([(f"truly {row['In truth']}", "")] if "In truth" in row else [])


def _terms(table: pd.DataFrame, threshold: float | None) -> list[tuple[str, str]]:
    """How to read the columns that there are."""
    flagged = "No label is, since nothing says where to cut."
    if threshold is not None:
        flagged = f"The score lies above {threshold:.3g}, the threshold of this report."
    suggested = "What the networks expect for the sample, knowing the rest of the data."
    if "Confidence" in table:
        suggested += " Confidence is the probability that they give it."
    terms = {
        "Score": "How suspicious the label is; the method below says in which unit. Low, and the "
        "other samples imply the label anyway; large scores belong to wrong labels, to ambiguous "
        "samples, and to rare but right ones.",
        "Probably wrong": "The probability that the label is wrong, as wrong labels that were "
        "planted on purpose show it on this network and these data.",
        "Std. error": "How far the score moves when the analysis is repeated, as far as that is "
        "known; the network itself is given, so a full repetition would move scores more. Ranks of "
        "samples whose scores differ by less than their errors are interchangeable.",
        "Flagged": flagged,
        "Suggested": suggested,
    }
    return [*((n, told) for n, told in terms.items() if n in table), ("What to do next", _NEXT)]


@singledispatch
def _label(value: Any, names: Sequence[str]) -> str:
    """A label as a person reads it: the name of its class if it has one, else its value."""
    del names
    return number(value)


@_label.register(int)
@_label.register(np.integer)
def _(value: int, names: Sequence[str]) -> str:
    return names[value] if 0 <= value < len(names) else str(value)


@_label.register(tuple)
@_label.register(list)
def _(value: Sequence[Any], names: Sequence[str]) -> str:
    del names
    more = ", ..." if len(value) > MOST_PARTS else ""
    return "(" + ", ".join(number(part) for part in value[:MOST_PARTS]) + more + ")"

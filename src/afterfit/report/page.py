"""A report as one file of HTML that asks for nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from afterfit.report.plots import (
    class_confusion,
    inspection_curve_plot,
    rate_search_plot,
    score_histogram,
)
from afterfit.report.result import LabelPage
from afterfit.report.samples import number

MOST_ROWS = 1000
"""Rows in the table of a page; the CSV beside it holds all of them."""

MOST_UNNAMED = 200
"""Integer labels up to here count as classes even if they have no names."""

MOST_PARTS = 8
"""Of a label with many numbers, so many are shown."""


@dataclass(frozen=True)
class Row:
    """One sample as the page shows it: texts, and numbers to sort by."""

    rank: int
    name: str
    given: str
    suggested: str
    confidence: str
    score: str
    stderr: str
    score_value: float
    is_issue: bool
    p_wrong: str
    p_value: float
    wrong: str
    sample: Markup | None


def label_page(page: LabelPage) -> str:
    """The page as HTML: facts, distributions, suspects, table, and how to read them.

    Styles, pictures and the small script stand inside it, and its content policy forbids it to
    load anything. It is readable without JavaScript, in light and dark, and on paper. The same
    input gives the same text.
    """
    environment = Environment(
        loader=PackageLoader("afterfit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _source(environment, "labels.js")
    digest = hashlib.sha256(script.encode()).digest()
    flagged = int(page.issues["is_issue"].sum())
    num_rows = min(len(page.issues), MOST_ROWS)
    rows = _rows(page, num_rows)
    return environment.get_template("labels.html.j2").render(
        page=page,
        rows=rows,
        flagged=flagged,
        hidden_rows=len(page.issues) - num_rows,
        has_confidence=any(row.confidence for row in rows),
        has_stderr=any(row.stderr for row in rows),
        has_probability=any(row.p_wrong for row in rows),
        has_truth=page.truth is not None,
        figures=_figures(page),
        paragraphs=[part.strip() for part in page.methods.split("\n\n") if part.strip()],
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
        style=Markup(_source(environment, "labels.css")),
    )


def _source(environment: Environment, name: str) -> str:
    """A template file as it stands, without rendering."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _figures(page: LabelPage) -> dict[str, Markup]:
    """The pictures that this page has the numbers for."""
    figures = {"histogram": score_histogram(page.scores, page.threshold, page.truth)}
    if page.search is not None:
        figures["search"] = rate_search_plot(**page.search)
    if page.truth is not None and page.truth.any():
        found = np.cumsum(page.truth[np.argsort(-page.scores, kind="stable")])
        found = np.concatenate([[0.0], found / found[-1]])
        inspected = np.linspace(0, 1, len(found))
        figures["inspection"] = inspection_curve_plot(inspected, found, float(page.truth.mean()))
    issues = page.issues[page.issues["is_issue"].astype(bool)]
    names = _class_names(page)
    if len(issues) and names:
        figures["confusion"] = class_confusion(issues["given"], issues["suggested"], names)
    return {name: Markup(figure) for name, figure in figures.items()}


def _class_names(page: LabelPage) -> list[str]:
    """Names of the classes if the labels are classes, else none."""
    labels = page.issues[["given", "suggested"]]
    if not all(pd.api.types.is_integer_dtype(kind) for kind in labels.dtypes):
        return []
    low, high = int(labels.min().min()), int(labels.max().max())
    if low < 0 or (page.class_names and high >= len(page.class_names)):
        return []
    if page.class_names:
        return [str(name) for name in page.class_names]
    return [str(place) for place in range(high + 1)] if high < MOST_UNNAMED else []


def _rows(page: LabelPage, num: int) -> list[Row]:
    names = [str(name) for name in page.class_names]
    samples = [Markup(sample) for sample in page.samples]
    return [
        _row(record, names, page.truth, samples[place] if place < len(samples) else None)
        for place, record in enumerate(page.issues.head(num).to_dict("records"))
    ]


def _row(record: dict[Any, Any], names: Sequence[str], truth: Any, sample: Markup | None) -> Row:
    stderr = float(record["stderr"])
    confidence = float(record.get("confidence", np.nan))
    probability = float(record.get("p_wrong", np.nan))
    return Row(
        rank=int(record["rank"]),
        name=str(record.get("id", record["index"])),
        given=_label(record["given"], names),
        suggested=_label(record["suggested"], names),
        confidence=f"{confidence:.0%}" if np.isfinite(confidence) else "",
        score=f"{float(record['score']):.3g}",
        stderr=f"{stderr:.2g}" if np.isfinite(stderr) else "",
        score_value=float(record["score"]),
        is_issue=bool(record["is_issue"]),
        p_wrong=f"{probability:.0%}" if np.isfinite(probability) else "",
        p_value=probability if np.isfinite(probability) else -1.0,
        wrong="" if truth is None else ("wrong" if truth[int(record["index"])] else "right"),
        sample=sample,
    )


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

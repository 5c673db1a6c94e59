"""A report as one file of HTML that asks for nothing from elsewhere: facts, then sections."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, final

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MOST_ROWS = 1000
"""Rows of a table on a page; the CSV beside it holds all of them."""

UNKNOWN = "\N{EN DASH}"


@final
@dataclass(frozen=True)
class Card:
    """A sample to look at.

    Attributes
    ----------
    sample
        HTML as :func:`~afterfit.report.sample_html` makes it; it stands in the page as it is.
    given, suggested
        What it is called, and what it should be called.
    notes
        Short texts below, each with what it means, shown on pointing; the meaning may be empty.
    """

    sample: str
    given: str
    suggested: str
    notes: Sequence[tuple[str, str]] = ()


@final
@dataclass(frozen=True)
class Section:
    """A heading with any of: a text, a picture with its caption, samples, a table, terms.

    Attributes
    ----------
    text
        Escaped, unless it is ``Markup``.
    figure
        Inline SVG, as the functions of this package return it.
    cards
        Samples of the first rows of the table.
    table
        Shown as it is; numbers by `formats`, or with four digits.
    formats
        Format of the numbers of a column, by its name.
    marked
        Which rows are flagged: the table can then be filtered and sorted. Empty for a plain one.
    rest, left_out
        Where the rows are that the page leaves out, and how many the table lacks already.
    terms
        Words and what they mean.
    row
        Neighboring sections of the same row of the page, which is not empty, stand side by side.
    """

    title: str
    text: str = ""
    figure: str = ""
    caption: str = ""
    cards: Sequence[Card] = ()
    table: pd.DataFrame | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    marked: Sequence[bool] = ()
    rest: str = "the CSV beside this page"
    left_out: int = 0
    terms: Sequence[tuple[str, str]] = ()
    row: str = ""


@final
@dataclass(frozen=True)
class Page:
    """What a page says, from the top.

    Attributes
    ----------
    lead
        The answer in one sentence; escaped, unless it is ``Markup``.
    warnings
        What a reader must know before believing it.
    facts
        Names and values, in order.
    methods, citation
        How it was made, blank lines between paragraphs, and what to cite.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    methods: str = ""
    citation: str = ""


def page_html(page: Page) -> str:
    """The page as HTML.

    Styles, pictures and, where a table can be filtered, the small script stand inside it; its
    content policy forbids it to load anything, and all text is escaped. It is readable without
    JavaScript, in light and dark, and on paper. The same input gives the same text.
    """
    environment = Environment(
        loader=PackageLoader("afterfit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filtered = any(len(part.marked) for part in page.sections)
    script = _source(environment, "filter.js") if filtered else ""
    rows = groupby(enumerate(page.sections), lambda pair: pair[1].row or pair[0])
    return environment.get_template("page.html.j2").render(
        page=page,
        places=[[_shown(part) for _, part in beside] for _, beside in rows],
        paragraphs=[part.strip() for part in page.methods.split("\n\n") if part.strip()],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(_source(environment, "page.css")),
    )


def _source(environment: Environment, name: str) -> str:
    """A template file as it stands, without rendering."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _shown(part: Section) -> dict[str, Any]:
    """A section as the template takes it."""
    shown = {**vars(part), "figure": Markup(part.figure), "filtered": len(part.marked) > 0}
    if part.table is None:
        return {**shown, "heads": [], "rows": None, "hidden": 0}
    numeric = [_is_numeric(kind) for kind in part.table.dtypes]
    formats = [part.formats.get(str(name), "{:.4g}") for name in part.table.columns]
    rows = []
    for place, record in enumerate(part.table.head(MOST_ROWS).itertuples(index=False)):
        cells = [_cell(*pair) for pair in zip(record, formats, strict=True)]
        rows.append(
            {
                "cells": [
                    (text, right, key) for (text, key), right in zip(cells, numeric, strict=True)
                ],
                "text": " ".join(text for text, _ in cells),
                "marked": bool(part.marked[place]) if len(part.marked) else False,
            }
        )
    cards = [(_as_markup(card), row) for card, row in zip(part.cards, rows, strict=False)]
    heads = list(zip(map(str, part.table.columns), numeric, strict=True))
    hidden = len(part.table) - len(rows) + part.left_out
    return {**shown, "heads": heads, "rows": rows, "hidden": hidden, "cards": cards}


def _as_markup(card: Card) -> dict[str, Any]:
    return {**vars(card), "sample": Markup(card.sample)}


def _is_numeric(kind: Any) -> bool:
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _cell(value: Any, style: str) -> tuple[str, float | None]:
    """A value as text, and what it is sorted by where that is not the text."""
    if isinstance(value, (bool, np.bool_)):
        return ("yes" if value else "no"), None
    if isinstance(value, (float, np.floating)):
        return (UNKNOWN, -1.0) if np.isnan(value) else (style.format(value), float(value))
    return str(value), None

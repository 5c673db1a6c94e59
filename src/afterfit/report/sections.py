"""A page of sections: facts, then pictures and tables with what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MOST_ROWS = 200
"""Rows of a table on a page; the CSV beside it holds all of them."""


@final
@dataclass(frozen=True)
class Section:
    """A heading with any of: a text, a picture with its caption, a table.

    Attributes
    ----------
    figure
        Inline SVG, as the functions of this package return it.
    table
        Shown as it is; numbers with four digits.
    """

    title: str
    text: str = ""
    figure: str = ""
    caption: str = ""
    table: pd.DataFrame | None = None


@final
@dataclass(frozen=True)
class Page:
    """What a page says, from the top.

    Attributes
    ----------
    lead
        The answer in one sentence.
    warnings
        What a reader must know before believing it.
    facts
        Names and values, in order.
    methods, citation
        How it was made, and what to cite.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    methods: str = ""
    citation: str = ""


def section_page(page: Page) -> str:
    """The page as HTML, with styles and pictures inside it and no script.

    Its content policy forbids it to load anything; all text is escaped. The same input gives the
    same text.
    """
    environment = Environment(
        loader=PackageLoader("afterfit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style = environment.loader.get_source(environment, "labels.css")[0]
    return environment.get_template("sections.html.j2").render(
        page=page,
        sections=[
            {"section": part, "figure": Markup(part.figure), "table": _rows(part.table)}
            for part in page.sections
        ],
        style=Markup(style),
    )


def _rows(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """Heads and cells of a table as texts; which columns are numbers."""
    if table is None:
        return None
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    shown = table.head(MOST_ROWS)
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    return {
        "heads": list(zip(map(str, table.columns), numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in rows],
        "hidden": len(table) - len(shown),
    }


def _cell(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return "\N{EN DASH}" if np.isnan(value) else f"{value:.4g}"
    return str(value)

import re

import numpy as np
import pandas as pd

from afterfit.report import Page, Section, page_html, share_plot
from afterfit.report.page import MOST_ROWS

TABLE = pd.DataFrame({"measure": ["a<b>", "c"], "value": [1 / 3, np.nan], "exact": [True, False]})
PAGE = Page(
    title="Sharp & flat <net>",
    lead="It is <sharp>.",
    sections=[
        Section("Shares", figure=share_plot(["w"], [1.0], "Shares", "share"), caption="A & B"),
        Section("Numbers", text="All of them.", table=TABLE),
    ],
    facts=[("N", "12")],
    warnings=["one <parameter> is zero"],
    methods="As published.",
    citation="Kim 2023",
)


def test_text_is_escaped_and_pictures_are_not():
    page = page_html(PAGE)
    assert "<net>" not in page
    assert "<b>" not in page
    assert "Sharp &amp; flat &lt;net&gt;" in page
    assert "one &lt;parameter&gt; is zero" in page
    assert page.count("<svg") == 1


def test_the_page_loads_nothing_and_runs_nothing():
    page = page_html(PAGE)
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_cells_are_numbers_with_four_digits_and_words():
    page = page_html(PAGE)
    assert '<td class="right">0.3333</td>' in page
    assert '<td class="right">\N{EN DASH}</td>' in page
    assert "<td>no</td>" in page or '<td class="right">no</td>' in page


def test_a_long_table_says_how_much_it_leaves_out():
    long = pd.DataFrame({"k": range(MOST_ROWS + 7)})
    page = page_html(Page("t", "l", [Section("s", table=long)]))
    assert "7 more rows" in page
    assert page.count("<tr>") == MOST_ROWS + 1


def test_the_same_page_gives_the_same_text():
    assert page_html(PAGE) == page_html(PAGE)

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from afterfit.report import LabelPage, label_page, sample_html
from afterfit.report.page import MOST_ROWS

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "input", "img", "br"}


def issues_of(scores, given, suggested):
    order = np.argsort(-scores, kind="stable")
    num = len(scores)
    table = {
        "index": np.arange(num),
        "id": np.arange(num) + 500,
        "given": given,
        "suggested": suggested,
        "confidence": np.where(np.arange(num) % 3 == 0, np.nan, 0.75),
        "score": scores,
        "stderr": np.where(np.arange(num) % 2 == 0, np.nan, 0.25),
        "is_issue": scores > 1,
        "significant": scores > 0.5,
    }
    ranked = pd.DataFrame(table).iloc[order].reset_index(drop=True)
    return ranked.assign(rank=np.arange(1, num + 1))


def page_of(num=30, **changes):
    rng = np.random.default_rng(0)
    scores = rng.exponential(size=num)
    labels = rng.integers(0, 3, (2, num))
    page = LabelPage(
        title="Labels",
        issues=issues_of(scores, *labels),
        scores=scores,
        threshold=1.0,
        samples=[sample_html("a text")] * 5,
        class_names=["cat", "dog", "fox"],
        facts=[("Samples", str(num))],
        search={
            "rates": [0.1, 0.2, 0.4],
            "separability": [0.6, 0.8, np.nan],
            "median_loss": [0.1, 0.2, np.nan],
            "cap": 0.5,
            "chosen": 0.2,
        },
        truth=scores > 1.5,
        warnings=["Few members."],
        methods="First part.\n\nSecond part.",
    )
    return dataclasses.replace(page, **changes)


class Tree(HTMLParser):
    """Start tags, and a complaint where an end tag closes what is not open."""

    def __init__(self):
        HTMLParser.__init__(self)
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tree_of(page):
    tree = Tree()
    tree.feed(label_page(page))
    tree.close()
    return tree


def cells(html):
    """The cells of the table of suspects, row by row."""
    body = html.split("<tbody>")[-1].split("</tbody>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


BARE = {"samples": [], "class_names": [], "facts": [], "search": None, "truth": None}


@pytest.mark.parametrize("changes", [{}, BARE, {"threshold": 1e9, "truth": None}])
def test_every_tag_is_closed_and_every_id_stands_once(changes):
    tree = tree_of(page_of(**changes))
    assert tree.open == []
    ids = [attrs["id"] for _, attrs in tree.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_asks_for_nothing_from_elsewhere():
    for tag, attrs in tree_of(page_of()).tags:
        assert tag not in {"link", "iframe", "base"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    html = label_page(page_of())
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_every_picture_parses_as_xml():
    pictures = re.findall(r"<svg.*?</svg>", label_page(page_of()), flags=re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_the_same_input_gives_the_same_page():
    assert label_page(page_of()) == label_page(page_of())


@pytest.mark.parametrize(
    "changes",
    [
        {"title": HOSTILE},
        {"class_names": [HOSTILE, "dog", "fox"]},
        {"facts": [(HOSTILE, HOSTILE)]},
        {"warnings": [HOSTILE]},
        {"methods": HOSTILE},
        {"citation": HOSTILE},
        {"samples": [sample_html(HOSTILE), sample_html({HOSTILE: HOSTILE})]},
        {"issues": page_of().issues.assign(id=HOSTILE)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_text_of_the_user_never_becomes_markup(changes):
    html = label_page(page_of(**{"search": None, "truth": None, **changes}))
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(1)" in html


def test_what_is_not_known_is_shown_as_a_dash():
    row = cells(
        label_page(page_of(samples=[], issues=issues_of(np.array([3.0, 2.0]), [0, 1], [1, 0])))
    )[0]
    assert row[:8] == ["1", "500", "cat", "dog", "\u2013", "3", "\u2013", "yes"]


def test_a_class_without_a_name_is_shown_by_its_number():
    page = page_of(samples=[], issues=issues_of(np.array([3.0, 2.0]), [0, 7], [1, -1]))
    shown = [row[2:4] for row in cells(label_page(page))]
    assert shown == [["cat", "dog"], ["7", "-1"]]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([1.23456, 2.0], "1.235"),
        ([(0.123456, 2.0), (1.0, 3.0)], "(0.1235, 2)"),
        ([(1,) * 9, (2,) * 9], "(1, 1, 1, 1, 1, 1, 1, 1, ...)"),
        (["a & b", "c"], "a &amp; b"),
    ],
)
def test_labels_that_are_no_classes_are_shown_as_they_are(given, text):
    page = page_of(issues=issues_of(np.array([3.0, 2.0]), given, given), samples=[])
    html = label_page(page)
    assert cells(html)[0][2] == text
    assert "From which label" not in html


def test_long_tables_say_where_the_rest_is():
    html = label_page(page_of(num=MOST_ROWS + 234, **BARE))
    assert len(cells(html)) == MOST_ROWS
    assert "the other 234 are in <code>scores.csv</code>" in html
    assert "scores.csv" not in label_page(page_of(**BARE))


def test_rows_stand_in_the_order_of_their_rank():
    assert [int(row[0]) for row in cells(label_page(page_of()))] == list(range(1, 31))


def test_each_card_shows_its_sample():
    html = label_page(page_of(samples=[sample_html(f"text {k}") for k in range(7)]))
    cards = re.findall(r'<li class="card".*?</li>', html, flags=re.DOTALL)
    issues = page_of().issues
    assert len(cards) == 7
    for place, card in enumerate(cards):
        assert f">text {place}<" in card
        assert f"sample {issues['id'][place]}<" in card
        assert (">significant<" in card) == bool(issues["significant"][place])


def test_truth_goes_with_the_index_of_the_sample():
    page = page_of()
    for row, index in zip(cells(label_page(page)), page.issues["index"], strict=True):
        assert row[-1] == ("wrong" if page.truth[index] else "right")


def test_a_table_without_a_column_is_refused():
    issues = page_of().issues.drop(columns=["rank"])
    with pytest.raises(ValueError, match="add rank"):
        page_of(issues=issues)


def test_more_samples_than_rows_are_refused():
    with pytest.raises(ValueError, match="31 samples for 30 rows"):
        page_of(samples=["x"] * 31)


def test_truth_of_another_length_is_refused():
    with pytest.raises(ValueError, match="truth holds 3 values and scores 30"):
        page_of(truth=np.array([True, False, True]))

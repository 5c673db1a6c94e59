import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from afterfit.report import label_page, page_html, sample_html
from afterfit.report.page import MOST_ROWS


def table(scores, threshold, given=None, suggested=None):
    """Issues as the workflow makes them, the most suspicious first."""
    num = len(scores)
    frame = pd.DataFrame(
        {
            "index": np.arange(num),
            "given": np.zeros(num, dtype=int) if given is None else given,
            "suggested": np.ones(num, dtype=int) if suggested is None else suggested,
            "score": scores,
            "stderr": 0.1 * scores,
            "is_issue": scores > (np.inf if threshold is None else threshold),
        }
    )
    frame = frame.sort_values("score", ascending=False, ignore_index=True)
    return frame.assign(rank=np.arange(1, num + 1))


def page(**changes):
    scores = np.array([0.1, 9.0, 0.2, 4.0, 0.0])
    full = dict(
        title="Labels of the animals",
        issues=table(scores, 2.0),
        scores=scores,
        threshold=2.0,
        samples=[sample_html("first"), sample_html("second"), sample_html("third")],
        class_names=["cat", "dog"],
        facts=[("Members", "32")],
        search={
            "rates": [0.1, 0.2],
            "separability": [0.7, 0.8],
            "median_loss": [0.1, 0.2],
            "cap": 1.0,
            "chosen": 0.2,
        },
        truth=np.array([False, True, False, True, False]),
        warnings=["Read the list from the top."],
        methods="One way.\n\nAnd another.",
        citation="Doe (2024)",
    )
    return full | changes


def bare(**changes):
    """A page without the slower pictures, for what they have no part in."""
    return page(**{"search": None, "truth": None} | changes)


def html_of(arguments):
    return page_html(label_page(**arguments))


@pytest.fixture(scope="module")
def html():
    """The full page, made once."""
    return html_of(page())


class Reader(HTMLParser):
    """Tags that a browser sees, checked for being closed, and the rows of the table."""

    void = frozenset({"meta", "input", "img", "path", "use", "rect", "br"})

    def __init__(self, html):
        HTMLParser.__init__(self)
        self.tags, self.open, self.ids, self.addresses, self.handlers = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.handlers += [name for name in values if name.startswith("on")]
        self.addresses += [values[name] for name in ("src", "href", "action") if name in values]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def rows_of(html):
    body = html.split("<tbody>")[-1].split("</tbody>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def test_every_tag_is_closed_and_every_id_stands_once(html):
    read = Reader(html)
    assert len(read.ids) == len(set(read.ids))


def test_the_page_loads_nothing():
    html = html_of(page(samples=[sample_html(np.eye(4))]))
    assert Reader(html).addresses
    assert all(address.startswith("data:image/png") for address in Reader(html).addresses)
    assert not re.search(r"@import|url\((?!#)|<link|<iframe|fetch\(|XMLHttp", html)
    assert "default-src 'none'" in html


def test_the_content_policy_allows_exactly_the_script_of_the_page(html):
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_the_same_input_gives_the_same_page(html):
    assert html_of(page()) == html


def test_the_page_says_how_many_labels_look_wrong(html):
    assert "2 of 5 labels" in html
    assert "(40.0%)" in html


@pytest.mark.parametrize(
    "text",
    ["Labels of the animals", "Members", "32", "Read the list from the top.", "One way.",
     "And another.", "Doe (2024)", "first", "second", "third"],
)  # fmt: skip
def test_everything_handed_over_stands_in_the_page(text, html):
    assert text in html


def test_the_table_has_the_names_of_the_classes_and_the_order_of_the_scores(html):
    rows = rows_of(html)
    assert [row[:6] for row in rows] == [
        ["1", "1", "cat", "dog", "9", "0.9"],
        ["2", "3", "cat", "dog", "4", "0.4"],
        ["3", "2", "cat", "dog", "0.2", "0.02"],
        ["4", "0", "cat", "dog", "0.1", "0.01"],
        ["5", "4", "cat", "dog", "0", "0"],
    ]
    assert [row[6] for row in rows] == ["yes", "yes", "no", "no", "no"]
    assert [row[-1] for row in rows] == ["wrong", "wrong", "right", "right", "right"]


def test_each_card_holds_the_sample_of_its_row(html):
    cards = html.split('<li class="card"')[1:]
    assert [re.search("first|second|third", card).group() for card in cards] == [
        "first", "second", "third",
    ]  # fmt: skip
    assert [re.search(r"#(\d+)<", card).group(1) for card in cards] == ["1", "2", "3"]


@pytest.mark.parametrize("place", ["title", "facts", "warnings", "methods", "citation", "names"])
def test_markup_from_outside_is_shown_as_text(place):
    evil = "<script>alert('x')</script>"
    changes = {
        "title": {"title": evil},
        "facts": {"facts": [(evil, evil)]},
        "warnings": {"warnings": [evil]},
        "methods": {"methods": evil},
        "citation": {"citation": evil},
        "names": {"class_names": [evil, '" onmouseover="alert(1)']},
    }[place]
    html = html_of(bare(**changes))
    read = Reader(html)
    assert read.tags.count("script") == html.count("<script") == 1
    assert read.handlers == []


def test_ids_of_samples_are_shown_as_text():
    issues = page()["issues"].assign(id=["<b>a</b>", "b", "c", "d", "e"])
    html = html_of(bare(issues=issues))
    assert "<b>a</b>" not in html
    assert "&lt;b&gt;a&lt;/b&gt;" in html


def test_confidence_is_shown_where_it_is_known(html):
    issues = page()["issues"].assign(confidence=[0.93, np.nan, 0.5, 0.5, 0.5])
    assert "93%" in html_of(bare(issues=issues))
    assert "Confidence" not in html


def test_scores_without_errors_have_no_column_for_them():
    html = html_of(bare(issues=page()["issues"].assign(stderr=np.nan)))
    assert "Std. error" not in html
    assert "&plusmn;" not in html
    assert "nan" not in html.lower()


def test_without_flagged_samples_the_page_says_so():
    scores = np.ones(4)
    html = page_html(label_page("Quiet", table(scores, 1.0), scores, 1.0))
    Reader(html)
    assert "None of 4 labels stands out as wrong." in html
    assert len(rows_of(html)) == 4
    assert "From which label to which" not in html


def test_without_a_threshold_the_page_is_a_ranked_list_only():
    scores = page()["scores"]
    html = html_of(page(issues=table(scores, None), threshold=None))
    Reader(html)
    assert "Ranked list only" in html
    assert "5 labels in the order in which they" in html
    assert "look wrong" not in html
    assert "stands out as wrong" not in html
    assert "No label is, since nothing says where to cut." in html
    assert "Read the list from the top." in html  # the caution that says why
    assert "From which label to which" not in html
    assert [row[6] for row in rows_of(html)] == ["no"] * 5
    assert "5 scores, without a threshold." in html


def test_probabilities_are_shown_where_they_are_known(html):
    issues = page()["issues"].assign(p_wrong=[0.97, 0.62, np.nan, 0.04, 0.0])
    shown = html_of(bare(issues=issues))
    Reader(shown)
    assert [row[7] for row in rows_of(shown)] == ["97%", "62%", "\u2013", "4%", "0%"]
    assert "97% wrong" in shown
    assert "Probably wrong" not in html
    unknown = html_of(bare(issues=page()["issues"].assign(p_wrong=np.nan)))
    assert "Probably wrong" not in unknown


def test_only_what_was_handed_over_has_a_section():
    html = html_of(bare(methods="", citation="", samples=[]))
    Reader(html)
    for heading in ("learning rate was chosen", "inspection finds", ">Method<", 'gallery">'):
        assert heading not in html


@pytest.mark.parametrize(
    ("given", "shown"),
    [([0.25, 1.5, 2, 3, 4], "1.5"), ([(0, 1)] * 5, "(0, 1)"), (["<cat>"] * 5, "&lt;cat&gt;")],
    ids=["number", "tuple", "text"],
)
def test_labels_that_are_no_classes_are_shown_by_value(given, shown):
    scores = page()["scores"]
    issues = table(scores, 2.0, given=given, suggested=given)
    html = html_of(bare(issues=issues, class_names=[]))
    assert rows_of(html)[0][2] == shown
    assert "From which label to which" not in html


def test_classes_without_names_are_numbered():
    html = html_of(bare(class_names=[]))
    assert rows_of(html)[0][2:4] == ["0", "1"]
    assert "From which label to which" in html


def test_a_label_beyond_the_names_is_shown_by_value():
    assert rows_of(html_of(bare(class_names=["cat"])))[0][2:4] == ["cat", "1"]


def test_a_very_long_list_is_cut_and_the_rest_counted():
    scores = np.linspace(1, 2, MOST_ROWS + 7)
    html = page_html(label_page("Long", table(scores, 0.5), scores, 0.5))
    assert len(rows_of(html)) == MOST_ROWS
    assert "7 more rows are in scores.csv" in html


def test_more_samples_than_rows_are_refused():
    with pytest.raises(ValueError, match="6 samples for 5 rows"):
        html_of(page(samples=["x"] * 6))


def test_truth_of_another_length_is_refused():
    with pytest.raises(ValueError, match="truth holds 3 values and scores 5"):
        html_of(page(truth=np.zeros(3, dtype=bool)))

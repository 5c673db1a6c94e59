import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from afterfit.report import (
    class_confusion,
    inspection_curve_plot,
    rate_search_plot,
    score_histogram,
)

SCORES = np.random.default_rng(0).exponential(size=200) - 0.1
DRAWN = {
    "histogram": lambda: score_histogram(SCORES, 1.0),
    "histogram with truth": lambda: score_histogram(SCORES, 1.0, SCORES > 1.2),
    "histogram of equal scores": lambda: score_histogram(np.zeros(5), 0.0),
    "inspection": lambda: inspection_curve_plot([0, 0.1, 1], [0, 0.8, 1], 0.1),
    "search": lambda: rate_search_plot([0.2, 0.1], [0.8, np.nan], [0.3, np.nan], 1.0, 0.2),
    "search without a cap": lambda: rate_search_plot([0.1], [0.8], [0.3], np.inf, 0.1),
    "confusion": lambda: class_confusion([0, 0, 1], [1, 1, 2], ["a < b", "c & d", "$x$"]),
    "confusion of many": lambda: class_confusion([0, 80], [99, 3], [str(k) for k in range(100)]),
}
every_plot = pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())


@every_plot
def test_a_plot_is_xml_with_a_title_and_a_description(draw):
    root = ElementTree.fromstring(draw())
    names = [child.tag.split("}")[1] for child in root[:2]]
    assert names == ["title", "desc"]
    assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"


@every_plot
def test_ids_are_unique_and_every_reference_meets_one(draw):
    drawing = draw()
    ids = re.findall(r'\bid="([^"]+)"', drawing)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawing)) <= set(ids)


@every_plot
def test_the_same_numbers_give_the_same_drawing(draw):
    assert draw() == draw()


@every_plot
def test_drawing_leaves_the_settings_of_matplotlib(draw):
    before = dict(matplotlib.rcParams)
    draw()
    assert dict(matplotlib.rcParams) == before


def test_different_plots_share_no_id():
    ids = [set(re.findall(r'\bid="([^"]+)"', draw())) for draw in DRAWN.values()]
    assert sum(len(some) for some in ids) == len(set().union(*ids))


def test_the_description_counts_the_scores_above_the_threshold():
    assert "2 of 4 scores lie above the threshold 1." in score_histogram([0, 1, 2, 3], 1.0)


def test_the_description_names_the_most_frequent_change():
    assert "2 times, is from cat to dog" in class_confusion([0, 0, 1], [1, 1, 0], ["cat", "dog"])

import re
from functools import cache
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from afterfit.report import (
    Band,
    additivity_plot,
    band_plot,
    class_confusion,
    ego_graph_plot,
    inspection_curve_plot,
    movement_plot,
    rate_search_plot,
    reliability_plot,
    rounds_plot,
    score_histogram,
    share_plot,
)
from afterfit.report.plots import MOST_CLASSES

SVG = "{http://www.w3.org/2000/svg}"
DRAWN = np.random.default_rng(0)
SCORES = DRAWN.exponential(size=300)
TRUTH = SCORES > 2.5
RATES = [0.1, 0.001, 0.01]
NAMES = ["cat", "dog", "cow"]

PLOTS = {
    "histogram": lambda: score_histogram(SCORES, 2.0),
    "histogram with truth": lambda: score_histogram(SCORES, 2.0, TRUTH),
    "inspection": lambda: inspection_curve_plot([0, 0.5, 1], [0, 0.9, 1]),
    "inspection with best": lambda: inspection_curve_plot([0, 0.5, 1], [0, 0.9, 1], 0.2),
    "search": lambda: rate_search_plot(RATES, [0.7, 0.6, 0.8], [3.0, 0.1, 0.2], 0.5, 0.01),
    "confusion": lambda: class_confusion([0, 0, 1], [1, 1, 2], NAMES),
    "reliability": lambda: reliability_plot({"MAP": ([0.2, np.nan, 0.9], [0.1, np.nan, 0.7])}),
    "shares": lambda: share_plot(NAMES, [1.0, 3.0, 0.0], "Sharpness", "share"),
    "bands": lambda: band_plot(
        [0, 1, 2],
        {
            "Euclidean": {"as trained": Band([0, 1, 0], [-1, 0, -1], [1, 2, 1])},
            "connectivity": {"as trained": Band([0, 1, 0], [-1, 0, -1], [1, 2, 1])},
        },
        ([0.5], [0.2]),
    ),
    "movement": lambda: movement_plot(NAMES, {"layer": [0, 4, 0.1], "node": [1e-9, 2, 0.3]}),
    "additivity": lambda: additivity_plot(
        {"neighbors": ([0, -1], [0.5, -1]), "distant": ([0, 1], [0, 1])}
    ),
    "ego graph": lambda: ego_graph_plot(
        [[0, 0], [1, 0], [0, 1]], [[0, 1], [1, 2]], [-0.5, 0.1], [0, 1, 1], NAMES, [0, 1]
    ),
    "rounds": lambda: rounds_plot({"accuracy": {"test": [0.8, 0.9]}, "loss": {"test": [1.0, 0.8]}}),
}
ONCE = {name: cache(plot) for name, plot in PLOTS.items()}
every_plot = pytest.mark.parametrize("plot", ONCE.values(), ids=ONCE)


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def ids(svg):
    return [node.get("id") for node in ElementTree.fromstring(svg).iter() if node.get("id")]


@every_plot
def test_a_plot_is_one_svg_element_with_a_title_and_a_description(plot):
    root = ElementTree.fromstring(plot())
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    named = [root.find(f".//*[@id='{name}']") for name in root.get("aria-labelledby").split()]
    assert [node.tag for node in named] == [f"{SVG}title", f"{SVG}desc"]
    assert all(node.text for node in named)


@pytest.mark.parametrize("name", PLOTS)
def test_the_same_numbers_give_the_same_plot(name):
    assert PLOTS[name]() == ONCE[name]()


@every_plot
def test_no_label_is_markup_of_another_language(plot):
    assert not [text for text in texts(plot()) if text and ("$" in text or "\\" in text)]


@every_plot
def test_a_plot_refers_only_to_ids_of_its_own(plot):
    svg = plot()
    found = ids(svg)
    assert len(found) == len(set(found))
    used = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
    assert set(used) <= set(found)


def test_plots_in_one_page_share_no_id():
    found = [name for plot in ONCE.values() for name in ids(plot())]
    assert len(found) == len(set(found))


@every_plot
def test_a_plot_asks_for_nothing_from_elsewhere(plot):
    names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", plot())
    assert "http" not in names
    assert "<metadata" not in names
    assert "<style" not in names
    assert "<script" not in names


@every_plot
def test_ink_is_the_text_color_of_the_page(plot):
    svg = plot()
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#000000" not in svg


def test_drawing_leaves_the_settings_of_matplotlib():
    before = dict(mpl.rcParams)
    PLOTS["confusion"]()
    assert dict(mpl.rcParams) == before


def test_histogram_names_its_threshold_and_what_lies_above():
    svg = score_histogram(np.array([0.0, 1.0, 4.0, 9.0]), 2.5)
    assert "threshold 2.5" in texts(svg)
    assert "2 of 4 scores lie above the threshold 2.5." in svg


def test_histogram_tells_right_and_wrong_labels_apart_only_with_the_truth():
    assert {"right label", "wrong label"} <= set(texts(score_histogram(SCORES, 2.0, TRUTH)))
    assert "wrong label" not in texts(score_histogram(SCORES, 2.0))


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([1.0, 1.0, 1.0], 1.0),
        ([0.0, 0.0], 0.0),
        ([-2.0, -1.0, 3.0], 0.5),
        ([1e-12, 2e-12], 1.5e-12),
        ([0.0, 1e9], 1.0),
        ([0.1, 0.2], 50.0),
    ],
)
def test_histogram_takes_any_finite_scores(scores, threshold):
    assert ElementTree.fromstring(score_histogram(np.array(scores), threshold)) is not None


def test_inspection_curve_says_what_a_tenth_finds():
    svg = inspection_curve_plot([0, 0.1, 1], [0, 0.75, 1])
    assert "Inspecting a tenth of the samples finds 75% of the wrong labels." in svg


def test_a_long_inspection_curve_stays_small():
    curve = np.linspace(0, 1, 100_001)
    assert len(inspection_curve_plot(curve, np.sqrt(curve))) < 60_000


def test_search_names_the_chosen_rate_and_takes_the_rates_in_any_order():
    sorted_plot = rate_search_plot([1e-3, 1e-2, 1e-1], [0.6, 0.8, 0.7], [0.1, 0.2, 3.0], 0.5, 0.01)
    assert ONCE["search"]() == sorted_plot
    assert "chosen: 0.01" in texts(sorted_plot)


@pytest.mark.parametrize("cap", [0.5, np.inf, 0.0])
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_rates_that_diverged_leave_no_trace(lost, cap):
    svg = rate_search_plot([0.1, 0.2, 9.0], [0.6, 0.7, np.nan], [0.1, 0.2, lost], cap, 0.1)
    assert "nan" not in svg.lower().replace("nanosecond", "")
    assert "highest loss allowed" in texts(svg) or cap != 0.5


def test_confusion_counts_each_change():
    svg = class_confusion([0, 0, 1], [1, 1, 2], NAMES)
    assert {"cat", "dog", "cow", "2", "1"} <= set(texts(svg))
    assert "2 times, is from cat to dog" in svg


def test_confusion_without_issues_is_empty():
    assert "0 issues" in class_confusion([], [], NAMES)


def test_confusion_of_many_classes_shows_those_with_the_most_issues():
    names = [f"class {place}" for place in range(100)]
    svg = class_confusion([98] * 5 + [3], [99] * 5 + [4], names)
    shown = [text for text in texts(svg) if text.startswith("class")]
    assert len(shown) == 2 * MOST_CLASSES
    assert {"class 98", "class 99", "class 3", "class 4"} <= set(shown)


def test_class_names_are_text_and_no_markup():
    names = ["<script>alert(1)</script>", '" onload="x', "正常"]
    svg = class_confusion([0, 1], [1, 2], names)
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("onload") is None
    assert "正常" in texts(svg)

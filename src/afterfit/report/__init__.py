"""Pages, plots and files for people: arrays, strings and tables in, text out."""

from afterfit.report.curves import Band, band_plot, movement_plot, reliability_plot, share_plot
from afterfit.report.edges import additivity_plot, ego_graph_plot, rounds_plot
from afterfit.report.labels import label_page
from afterfit.report.page import Card, Page, Section, page_html
from afterfit.report.plots import (
    class_confusion,
    inspection_curve_plot,
    rate_search_plot,
    score_histogram,
)
from afterfit.report.review import review_html
from afterfit.report.samples import image_html, row_html, sample_html, text_html
from afterfit.report.write import write_table_atomic, write_text_atomic

__all__ = [
    "Band",
    "Card",
    "Page",
    "Section",
    "additivity_plot",
    "band_plot",
    "class_confusion",
    "ego_graph_plot",
    "image_html",
    "inspection_curve_plot",
    "label_page",
    "movement_plot",
    "page_html",
    "rate_search_plot",
    "reliability_plot",
    "review_html",
    "rounds_plot",
    "row_html",
    "sample_html",
    "score_histogram",
    "share_plot",
    "text_html",
    "write_table_atomic",
    "write_text_atomic",
]

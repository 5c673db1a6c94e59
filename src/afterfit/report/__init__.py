"""Pages, plots and files for people: arrays, strings and tables in, text out."""

from afterfit.report.page import label_page
from afterfit.report.plots import (
    class_confusion,
    inspection_curve_plot,
    rate_search_plot,
    score_histogram,
)
from afterfit.report.result import LabelPage
from afterfit.report.samples import image_html, row_html, sample_html, text_html
from afterfit.report.write import write_table_atomic, write_text_atomic

__all__ = [
    "LabelPage",
    "class_confusion",
    "image_html",
    "inspection_curve_plot",
    "label_page",
    "rate_search_plot",
    "row_html",
    "sample_html",
    "score_histogram",
    "text_html",
    "write_table_atomic",
    "write_text_atomic",
]

"""Figures as SVG that can stand in a page beside others, in light and in dark."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the text color of the page; becomes `currentColor`."""

CLEAN = "#0072b2"
WRONG = "#d55e00"
"""Blue and vermilion of Okabe and Ito, which color-blind readers can tell apart."""

IN_PAGE = {
    INK: "currentColor",
    CLEAN: f"var(--clean, {CLEAN})",
    WRONG: f"var(--wrong, {WRONG})",
}
"""What the colors become, so that a page can choose lighter ones for the dark."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "afterfit",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
}
PIXELS_PER_POINT = 4 / 3
"""So that text of 11 points is as large as the page says, unless the window is too narrow."""

BASE = (
    "width: 100%; font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', "
    "Arial, sans-serif; stroke-linejoin: round; stroke-linecap: butt"
)


@contextmanager
def styled(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, drawn in our style and outside pyplot's state."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure


def inline_svg(figure: Figure, title: str, description: str) -> str:
    """The figure as one `<svg>` element with a title and a description for screen readers.

    Ids are prefixed with a digest of the drawing and its title, so that different figures share
    no id in one page. The same figure always gives the same text. Call it inside `styled`.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The reader's fonts draw the text: a glyph that ours lack is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", drawing, flags=re.DOTALL)

    prefix = "f" + hashlib.sha256((title + drawing).encode()).hexdigest()[:10] + "-"
    opening, rest = drawing.split(">", 1)
    box = opening.split('viewBox="')[1].split('"')[0]
    width = round(float(box.split()[2]) * PIXELS_PER_POINT)
    head = (
        f'<svg class="plot" role="img" aria-labelledby="{prefix}title {prefix}desc" '
        f'viewBox="{box}" style="max-width: {width}px; {BASE}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">\n'
        f'<title id="{prefix}title">{escape(title)}</title>\n'
        f'<desc id="{prefix}desc">{escape(description)}</desc>'
    )
    body = re.sub(r"<[^<>]+>", lambda tag: _in_page(tag.group(), prefix), rest)
    return head + body.rstrip() + "\n"


def _in_page(tag: str, prefix: str) -> str:
    """A tag with ids of its own, the text color of the page and its font."""
    for color, named in IN_PAGE.items():
        tag = tag.replace(color, named)
    tag = tag.replace("url(#", f"url(#{prefix}")
    tag = re.sub(r'\b(id="|href="#)', rf"\g<1>{prefix}", tag)
    return re.sub(r'font-family: [^;"]*;? ?', "", tag)

"""Samples as fragments of HTML, for people to look at."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import matplotlib.image
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

LONGEST_SIDE = 256
"""Pixels; larger images are averaged down so that a report stays small."""

SHOWN_COLUMNS = 24
SHOWN_CHARACTERS = 400


def image_html(pixels: ArrayLike) -> str:
    """An image as a PNG inside an `<img>` tag.

    Parameters
    ----------
    pixels
        H x W, H x W x channels or channels x H x W with 1, 3 or 4 channels. Integers are taken as
        0 to 255, numbers in [0, 1] as they are; anything else is stretched from its smallest to
        its largest value, and NaN shown as the smallest.

    Examples
    --------
    >>> print(image_html(np.zeros((2, 2)))[:32])
    <img class="sample-image" src="d
    """
    array = np.asarray(pixels)
    channels_last = _channels_last(array)
    if channels_last is None:
        msg = (
            f"pixels have shape {array.shape}, expected H x W, H x W x C or C x H x W with C one "
            "of 1, 3, 4: pick the channels to show"
        )
        raise ValueError(msg)
    height, width = channels_last.shape[:2]
    small = _averaged_down(_bytes(channels_last))
    file = io.BytesIO()
    matplotlib.image.imsave(file, small, format="png", metadata={"Software": "afterfit"})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Markup(
        '<img class="sample-image" src="data:image/png;base64,{}" alt="{} x {} pixels">'
    ).format(data, height, width)


def image_bytes(sample: Any) -> NDArray[np.uint8] | None:
    """Pixels as :func:`image_html` shows them, H x W x (3 or 4); None for what is no image."""
    if not isinstance(sample, np.ndarray) or sample.ndim < 2:
        return None
    channels_last = _channels_last(sample)
    return None if channels_last is None else _averaged_down(_bytes(channels_last))


def text_html(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """A text, escaped and cut after `limit` characters.

    Examples
    --------
    >>> print(text_html("a < b and so on", limit=5))
    <p class="sample-text">a &lt; b<span class="sample-more"> ... 10 more characters</span></p>
    """
    more = len(text) - limit
    rest = _more(more, "characters") if more > 0 else ""
    return Markup('<p class="sample-text">{}{}</p>').format(text[:limit], rest)


def row_html(
    values: Sequence[Any],
    column_names: Sequence[str],
    highlights: Sequence[str] = (),
    limit: int = SHOWN_COLUMNS,
) -> str:
    """One row of a table, a line for each column; those named in `highlights` stand out.

    Examples
    --------
    >>> "<td>1.5</td>" in row_html([1.5], ["height"])
    True
    """
    if len(values) != len(column_names):
        msg = (
            f"{len(values)} values for {len(column_names)} column names, expected as many of both: "
            "name every value"
        )
        raise ValueError(msg)
    line = Markup('<tr{}><th scope="row">{}</th><td>{}</td></tr>')
    mark = Markup(' class="sample-highlight"')
    lines = [
        line.format(mark if name in highlights else "", name, number(value))
        for name, value in list(zip(column_names, values, strict=True))[:limit]
    ]
    more = len(values) - limit
    rest = Markup('<tr><td colspan="2">{}</td></tr>').format(_more(more, "columns"))
    return Markup('<table class="sample-row">{}{}</table>').format(
        Markup("").join(lines), rest if more > 0 else ""
    )


@singledispatch
def sample_html(sample: Any) -> str:
    """A sample as HTML, by its type.

    Strings become text, arrays of two or three axes images, arrays of one axis and mappings rows
    of a table. Of anything else the `repr` is shown. Register a function for your own type with
    `sample_html.register`; it returns markup and must escape what it does not know.
    """
    text = repr(sample)
    more = len(text) - SHOWN_CHARACTERS
    rest = _more(more, "characters") if more > 0 else ""
    return Markup('<pre class="sample-repr">{}{}</pre>').format(text[:SHOWN_CHARACTERS], rest)


@sample_html.register
def _(sample: str) -> str:
    return text_html(sample)


@sample_html.register
def _(sample: np.ndarray) -> str:
    if sample.ndim == 1:
        return row_html(sample.tolist(), [str(place) for place in range(len(sample))])
    if _channels_last(sample) is not None:
        return image_html(sample)
    text = f"array of shape {sample.shape}, {sample.dtype}"
    return Markup('<pre class="sample-repr">{}</pre>').format(text)


@sample_html.register
def _(sample: Mapping) -> str:
    return row_html(list(sample.values()), [str(name) for name in sample])


@singledispatch
def number(value: Any) -> str:
    """A value as short text: floats with four significant digits."""
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."


@number.register
def _(value: float) -> str:
    return f"{value:.4g}"


@number.register
def _(value: np.floating) -> str:
    return f"{float(value):.4g}"


def _more(num: int, what: str) -> Markup:
    return Markup('<span class="sample-more"> ... {} more {}</span>').format(num, escape(what))


def _channels_last(array: NDArray) -> NDArray | None:
    """The array as H x W x (3 or 4), or None if it is no image."""
    channels = (1, 3, 4)
    if array.dtype.kind not in "buif" or 0 in array.shape:
        return None
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and array.shape[0] in channels and array.shape[2] not in channels:
        array = np.moveaxis(array, 0, 2)
    elif array.ndim != 3 or array.shape[2] not in channels:
        return None
    return array.repeat(3, axis=2) if array.shape[2] == 1 else array


def _bytes(array: NDArray) -> NDArray[np.uint8]:
    """Values as 0 to 255."""
    if array.dtype.kind in "iu":
        return array.clip(0, 255).astype(np.uint8)
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low < 0 or high > 1:
        values = (values - low) / (high - low or 1.0)
    values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(values * 255).clip(0, 255).astype(np.uint8)


def _averaged_down(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean over squares of pixels, as large as needed to keep the longest side short."""
    height, width, channels = array.shape
    step = -(-max(height, width) // LONGEST_SIDE)
    tall, wide = min(step, height), min(step, width)
    rows, columns = height // tall, width // wide
    blocks = array[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide, channels)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)

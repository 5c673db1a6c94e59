"""The page on which flagged labels are kept, corrected or dropped; decisions leave it as a file."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from afterfit.report.samples import image_bytes, number
from afterfit.report.thumbnails import ACROSS, packed

MOST_CHARACTERS = 600
"""Of a text that is shown; the data set holds all of it."""

MOST_COLUMNS = 12


def review_html(
    title: str,
    run: str,
    issues: pd.DataFrame,
    samples: Sequence[Any],
    *,
    class_names: Sequence[str] = (),
    p_wrong: Sequence[float] = (),
) -> str:
    """The review as one file of HTML that loads nothing.

    Parameters
    ----------
    run
        By which the browser keeps decisions: the same for the same network and data.
    issues
        One row per sample to review, with the columns index, id, given, suggested, score, is_issue
        and p_wrong.
    samples
        What a reviewer sees, one a row: an image, a text, a mapping of columns, or anything else.
    class_names
        In the order of the class indices; empty where labels are no classes or have no names.
    p_wrong
        Of all samples of the data: what the slider counts. NaN where it is not known.

    Raises
    ------
    ValueError
        If there are not as many samples as rows.
    """
    if len(samples) != len(issues):
        message = (
            f"{len(samples)} samples for {len(issues)} rows of issues, expected as many of both: "
            "pass one sample per row, in their order"
        )
        raise ValueError(message)
    environment = Environment(
        loader=PackageLoader("afterfit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "review.js")[0]
    style = environment.loader.get_source(environment, "review.css")[0]
    return environment.get_template("review.html.j2").render(
        title=title,
        data=Markup(_inert(_data(run, issues, samples, class_names, p_wrong))),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
    )


def _inert(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(
    run: str,
    issues: pd.DataFrame,
    samples: Sequence[Any],
    class_names: Sequence[str],
    p_wrong: Sequence[float],
) -> dict[str, Any]:
    images, looks = [], []
    for sample in samples:
        pixels = image_bytes(sample)
        if pixels is None:
            looks.append(_look(sample))
        else:
            looks.append(len(images))
            images.append(pixels)
    sheets = packed(images)
    columns = ("index", "id", "given", "suggested", "score", "is_issue", "p_wrong")
    rows = zip(*(issues[name].tolist() for name in columns), looks, strict=True)
    return {
        "run": run,
        "classes": _classes(issues, class_names),
        "sheets": list(sheets.addresses),
        "side": sheets.side,
        "across": ACROSS,
        "counts": _counts(np.asarray(p_wrong, dtype=float)),
        "items": [
            [int(place), str(name), str(given), str(suggested), _known(score), int(flagged),
             _known(p), look]
            for place, name, given, suggested, score, flagged, p, look in rows
        ],
    }  # fmt: skip


def _classes(issues: pd.DataFrame, class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Each label that can be chosen, as it stands in the tables, and its name."""
    if class_names:
        return [(str(place), str(name)) for place, name in enumerate(class_names)]
    labels = pd.concat([issues["given"], issues["suggested"]])
    if not pd.api.types.is_integer_dtype(labels):
        return []
    return [(str(label), str(label)) for label in sorted(set(labels.tolist()))]


def _counts(p_wrong: NDArray[Any]) -> list[tuple[int, float]]:
    """At each percent: how many labels are at least so probably wrong, and how many are right."""
    known = p_wrong[np.isfinite(p_wrong)]
    if not len(known):
        return []
    above = [known[known >= percent / 100] for percent in range(101)]
    return [(len(part), round(float((1 - part).sum()), 2)) for part in above]


def _known(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _look(sample: Any) -> str | list[tuple[str, str]]:
    """A sample that is no image, as text or as lines of (name, value)."""
    if isinstance(sample, Mapping):
        return [(str(n), number(v)) for n, v in list(sample.items())[:MOST_COLUMNS]]
    if isinstance(sample, np.ndarray) and sample.ndim == 1:
        return [(str(n), number(v)) for n, v in enumerate(sample[:MOST_COLUMNS].tolist())]
    if isinstance(sample, np.ndarray):
        return f"array of shape {sample.shape}, {sample.dtype}"
    text = sample if isinstance(sample, str) else repr(sample)
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " ..."

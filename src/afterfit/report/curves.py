"""Pictures of uncertainty and sharpness; each function returns one inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from afterfit.report.svg import CLEAN, INK, WRONG, inline_svg, styled

MOST_BARS = 24
"""A bar plot shows the largest values, at most so many."""

_LINES = (CLEAN, WRONG, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")
"""Colors of Okabe and Ito."""


def reliability_plot(bins: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> str:
    """How often predictions of a given confidence are right; the diagonal is perfect.

    Parameters
    ----------
    bins
        For each predictor, the mean confidence and the accuracy of its bins; NaN for empty ones.
    """
    gaps = {
        name: float(np.nanmax(np.abs(np.subtract(*map(np.asarray, pair)))))
        for name, pair in bins.items()
    }
    widest = ", ".join(f"{name} {gap:.3f}" for name, gap in gaps.items())
    with styled(5.2, 4.4) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=1, linestyle=":", label="perfect")
        for color, (name, (confidence, accuracy)) in zip(_LINES, bins.items(), strict=False):
            known = np.isfinite(np.asarray(confidence))
            axes.plot(
                np.asarray(confidence)[known], np.asarray(accuracy)[known], color=color,
                marker="o", markersize=4, linewidth=1.5, label=name,
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
        axes.legend(loc="upper left")
        return inline_svg(figure, "Reliability", f"Widest gap to the diagonal: {widest}.")


def share_plot(names: Sequence[str], values: ArrayLike, title: str, label: str) -> str:
    """One bar for each name, the largest on top.

    Parameters
    ----------
    values
        One number of at least 0 for each name.
    title, label
        Of the picture and of its axis.
    """
    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(-numbers, kind="stable")[:MOST_BARS]
    largest, total = names[int(order[0])], float(numbers.sum())
    share = float(numbers[order[0]]) / total if total else 0.0
    hidden = len(names) - len(order)
    description = f"The largest is {largest} with {share:.0%} of the sum."
    description += f" {hidden} smaller ones are not shown." if hidden else ""
    with styled(10.2, 0.9 + 0.27 * len(order)) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(order))
        axes.barh(places, numbers[order], color=CLEAN, alpha=0.75, height=0.7)
        axes.set_yticks(places, [names[int(i)] for i in order], fontsize=9)
        axes.set(ylim=(len(order) - 0.4, -0.6), xlabel=label)
        axes.tick_params(axis="y", length=0)
        return inline_svg(figure, title, description)


@final
@dataclass(frozen=True)
class Band:
    """A curve with the region around it: what one predictor says over one input."""

    mean: ArrayLike
    low: ArrayLike
    high: ArrayLike


def band_plot(
    places: ArrayLike,
    panels: Mapping[str, Mapping[str, Band]],
    points: tuple[ArrayLike, ArrayLike] | None = None,
) -> str:
    """Bands of several networks over one input, a panel for each way of making them.

    Parameters
    ----------
    places
        The input, (G,).
    panels
        For each panel its bands by the name of the network.
    points
        Inputs and targets of the training data.
    """
    spread = {
        name: float(max(np.ptp([np.mean(np.subtract(b.high, b.low)) for b in bands.values()]), 0.0))
        for name, bands in panels.items()
    }
    description = "Mean widths of the bands differ by " + ", ".join(
        f"{value:.3g} ({name})" for name, value in spread.items()
    )
    with styled(10.2, 3.4) as figure:
        for axes, (name, bands) in zip(
            np.atleast_1d(np.asarray(figure.subplots(1, len(panels), sharey=True))),
            panels.items(),
            strict=True,
        ):
            _draw_bands(axes, np.asarray(places), bands, points)
            axes.set_title(name)
        axes = figure.axes[0]
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return inline_svg(figure, "Predictions of the same function", description + ".")


def _draw_bands(
    axes: Axes,
    places: np.ndarray,
    bands: Mapping[str, Band],
    points: tuple[ArrayLike, ArrayLike] | None,
) -> None:
    for color, (name, band) in zip(_LINES, bands.items(), strict=False):
        low, high = np.asarray(band.low), np.asarray(band.high)
        axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(places, np.asarray(band.mean), color=color, linewidth=1.3, label=name)
    if points is not None:
        axes.scatter(np.asarray(points[0]), np.asarray(points[1]), s=9, color=INK, zorder=3)


ROUNDING = 1e-16
"""Relative changes below it are drawn there."""


def movement_plot(names: Sequence[str], moves: Mapping[str, ArrayLike]) -> str:
    """How far each measure moves while the function stays the same, on a logarithmic scale.

    Parameters
    ----------
    names
        The measures.
    moves
        For each change of the network, how far each measure moved relative to itself, (names).
    """
    table = np.maximum(
        [np.asarray(values, dtype=np.float64) for values in moves.values()], ROUNDING
    )
    worst = table.max(0)
    description = (
        f"{names[int(worst.argmax())]} moves most, by {worst.max():.3g} of itself; "
        f"{names[int(worst.argmin())]} least, by {worst.min():.3g}."
    )
    with styled(10.2, 1.5 + 0.34 * len(names)) as figure:
        axes = figure.add_subplot()
        for color, (change, values) in zip(_LINES, zip(moves, table, strict=True), strict=False):
            axes.scatter(values, range(len(names)), color=color, s=34, alpha=0.85, label=change)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_plain)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(names)), list(names))
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="change relative to the value")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=4)
        return inline_svg(figure, "What moves though the function stays", description)


def _plain(value: float, _position: object) -> str:
    return f"{value:g}"

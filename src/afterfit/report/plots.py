"""The pictures of a report; each function returns one inline SVG."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from afterfit.report.svg import CLEAN, INK, WRONG, inline_svg, styled

MOST_CLASSES = 20
"""A confusion plot shows the classes with the most issues, at most so many."""

MOST_RATES = 10
"""Learning rates that are named on an axis; of more, every second or third."""


def score_histogram(
    scores: ArrayLike,
    threshold: float | None,
    truth: ArrayLike | None = None,
    num_bins: int = 60,
) -> str:
    """How many samples have which score, on axes that show the few large scores too.

    Parameters
    ----------
    scores
        One per sample, large = suspicious; placed by their square root if none is negative, as
        squares are, and as they are otherwise.
    threshold
        Scores above it are issues; None where nothing says where to cut.
    truth
        True where the label is known to be wrong, when it is known.
    """
    numbers = np.asarray(scores, dtype=np.float64)
    squares = not len(numbers) or numbers.min() >= 0
    place = _signed_sqrt if squares else _unchanged
    values = place(numbers)
    limit = np.inf if threshold is None else threshold
    cut = float(place(np.array([limit], dtype=np.float64))[0])
    edges = _edges(values if threshold is None else np.append(values, cut), num_bins)
    wrong = None if truth is None else np.asarray(truth, dtype=bool)
    above = int(np.sum(values > cut))
    description = f"{above} of {len(values)} scores lie above the threshold {limit:.3g}."
    if threshold is None:
        description = f"{len(values)} scores, without a threshold."

    with styled(10.2, 3.2) as figure:
        axes = figure.add_subplot()
        if wrong is None:
            usual = "label" if threshold is None else "label looks right"
            _filled(axes, values[values <= cut], edges, CLEAN, usual)
            if threshold is not None:
                _filled(axes, values[values > cut], edges, WRONG, "issue")
        else:
            _filled(axes, values[~wrong], edges, CLEAN, "right label")
            _filled(axes, values[wrong], edges, WRONG, "wrong label")
            description += f" {int(wrong.sum())} labels are known to be wrong."
        if threshold is not None:
            _threshold_line(axes, cut, threshold)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if squares:
            _square_root_ticks(axes, edges)
        axes.set_xlabel("score (square-root scale)" if squares else "score")
        axes.set_ylabel("samples")
        figure.legend(loc="outside upper right", ncols=2, borderpad=0)
        return inline_svg(figure, "Distribution of the scores", description)


def _unchanged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values


def inspection_curve_plot(
    fraction_inspected: ArrayLike, fraction_found: ArrayLike, prevalence: float | None = None
) -> str:
    """What share of the wrong labels is found by inspecting what share of the samples.

    Parameters
    ----------
    fraction_inspected, fraction_found
        A curve from (0, 0) to (1, 1), samples with the largest scores first.
    prevalence
        Share of wrong labels; with it, the best possible curve is drawn too.
    """
    inspected, found = np.asarray(fraction_inspected), np.asarray(fraction_found)
    tenth = float(np.interp(0.1, inspected, found))
    description = f"Inspecting a tenth of the samples finds {tenth:.0%} of the wrong labels."
    with styled(4.6, 3.4) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=1, linestyle=":", label="chance")
        if prevalence:
            best = [0, prevalence, 1], [0, 1, 1]
            axes.plot(*best, color=INK, alpha=0.5, linewidth=1, linestyle="--", label="best")
        keep = _corners(len(inspected))
        axes.plot(inspected[keep], found[keep], color=CLEAN, linewidth=2, label="by score")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel("samples inspected")
        axes.set_ylabel("wrong labels found")
        axes.legend(loc="lower right")
        return inline_svg(figure, "Wrong labels found by inspection", description)


def rate_search_plot(
    rates: ArrayLike, separability: ArrayLike, median_loss: ArrayLike, cap: float, chosen: float
) -> str:
    """How the learning rate was chosen: the clearest separation while the loss stays low.

    Parameters
    ----------
    rates
        The learning rates that were tried.
    separability
        Share of the variance that two groups of scores explain; NaN where training diverged.
    median_loss
        Median training loss of the members, in nats; NaN where training diverged.
    cap
        Rates whose median loss lies above it are not allowed.
    chosen
        The learning rate that was used.
    """
    order = np.argsort(np.asarray(rates, dtype=np.float64))
    rate, share, loss = (
        np.asarray(values, dtype=np.float64)[order] for values in (rates, separability, median_loss)
    )
    allowed = loss <= cap
    description = f"{len(rate)} learning rates were tried, {chosen:.3g} was chosen."
    with styled(10.2, 4.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _marked(upper, rate, share, allowed)
        upper.set_ylabel("separability")
        _marked(lower, rate, loss, allowed)
        _cap_line(lower, cap)
        lower.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="median loss (nats)")
        for axis in (lower.xaxis, lower.yaxis):
            axis.set_major_formatter(_plain)
            axis.set_minor_formatter(NullFormatter())
        every = -(-len(rate) // MOST_RATES)
        lower.set_xticks(rate[::every], [f"{value:.3g}" for value in rate[::every]])
        for axes in (upper, lower):
            axes.axvline(chosen, color=WRONG, linewidth=1.5)
        upper.annotate(
            f"chosen: {chosen:.3g}", (chosen, 1), (4, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=9, color=WRONG,
        )  # fmt: skip
        return inline_svg(figure, "Search for the learning rate", description)


def class_confusion(given: ArrayLike, suggested: ArrayLike, class_names: Sequence[str]) -> str:
    """How many issues go from which given class to which suggested one.

    Parameters
    ----------
    given, suggested
        Class indices of the issues only.
    class_names
        The name of each class; when there are many, those with the most issues are shown.
    """
    counts, shown = _counts(np.asarray(given), np.asarray(suggested), len(class_names))
    names = [_short(str(class_names[place])) for place in shown]
    description = f"{counts.sum()} issues among {len(names)} of {len(class_names)} classes."
    if counts.any():
        row, column = np.unravel_index(counts.argmax(), counts.shape)
        description += (
            f" The most frequent change, {counts[row, column]} times, is from {names[row]} to "
            f"{names[column]}."
        )
    side = 1.7 + 0.34 * len(names)
    with styled(max(side, 3.2), max(side - 0.3, 2.9)) as figure:
        axes = figure.add_subplot()
        largest = max(int(counts.max()), 1)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                _cell(axes, row, column, int(count), largest)
        places = range(len(names))
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, names)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        axes.tick_params(length=0)
        axes.set_xlabel("suggested")
        axes.set_ylabel("given")
        return inline_svg(figure, "Issues by given and suggested class", description)


def _signed_sqrt(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.sqrt(np.abs(values))


def _edges(values: NDArray[np.float64], num_bins: int) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    low = min(low, 0.0)
    return np.linspace(low, high if high > low else low + 1.0, num_bins + 1)


def _filled(
    axes: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], color: str, label: str
) -> None:
    counts, _ = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=color, alpha=0.55, linewidth=0, label=label)
    axes.stairs(counts, edges, color=color, linewidth=1.2)


def _threshold_line(axes: Axes, place: float, threshold: float) -> None:
    axes.axvline(place, color=INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"threshold {threshold:.3g}", (place, 1), (4, 2), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=9,
    )  # fmt: skip


def _square_root_ticks(axes: Axes, edges: NDArray[np.float64]) -> None:
    """Ticks at round scores, on an axis of their square roots."""
    low, high = np.sign(edges[[0, -1]]) * edges[[0, -1]] ** 2
    ticks = np.asarray(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(low, high))
    ticks = np.concatenate([ticks, [ticks[ticks > 0].min() / 5]]) if (ticks > 0).any() else ticks
    ticks = np.sort(ticks[(ticks >= low) & (ticks <= high)])
    axes.set_xticks(_signed_sqrt(ticks), [f"{tick:.3g}" for tick in ticks])
    axes.set_xlim(edges[0], edges[-1])


def _marked(
    axes: Axes, rate: NDArray[np.float64], values: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> None:
    """A curve whose marks are hollow where the rate is not allowed."""
    known = np.isfinite(values)
    axes.plot(rate[known], values[known], color=CLEAN, linewidth=1.2)
    for keep, face in ((known & allowed, CLEAN), (known & ~allowed, "none")):
        axes.scatter(rate[keep], values[keep], s=26, facecolor=face, edgecolor=CLEAN, zorder=3)


def _cap_line(axes: Axes, cap: float) -> None:
    if not 0 < cap < np.inf:
        return
    axes.axhline(cap, color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        "highest loss allowed", (0.005, cap), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=9,
    )  # fmt: skip


def _counts(
    given: NDArray, suggested: NDArray, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Counts of given by suggested class, and which classes they are."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (given.astype(np.int64), suggested.astype(np.int64)), 1)
    involved = counts.sum(axis=0) + counts.sum(axis=1)
    shown = np.sort(np.argsort(-involved, kind="stable")[:MOST_CLASSES])
    return counts[np.ix_(shown, shown)], shown


def _cell(axes: Axes, row: int, column: int, count: int, largest: int) -> None:
    strength = 0.12 + 0.88 * count / largest
    axes.fill_between(
        [column - 0.48, column + 0.48], row - 0.48, row + 0.48, color=CLEAN, alpha=strength,
        linewidth=0,
    )  # fmt: skip
    color = "white" if strength > 0.5 else INK
    axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=color)


def _corners(num: int, most: int = 400) -> NDArray[np.intp]:
    """At most so many places of a long curve, both ends among them."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(np.intp))


def _percent(value: float, _position: object) -> str:
    return f"{value:.0%}"


def _plain(value: float, _position: object) -> str:
    return f"{value:g}"


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 2] + ".."

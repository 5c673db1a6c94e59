"""Pictures of a graph's edges; each function returns one inline SVG."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from afterfit.report.svg import CLEAN, INK, WRONG, inline_svg, styled


def additivity_plot(kinds: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> str:
    """Influence of pairs of edges against the sum of their members'; the diagonal is additive.

    Parameters
    ----------
    kinds
        For each kind of pair, such as ``"neighbors"`` and ``"distant"``, the sums and the
        influences of the pairs.
    """
    gaps = {n: float(np.abs(np.subtract(*map(np.asarray, p))).max()) for n, p in kinds.items()}
    description = "Largest gap to the diagonal: " + ", ".join(
        f"{name} {gap:.3g}" for name, gap in gaps.items()
    )
    everything = np.concatenate([np.ravel(part) for pair in kinds.values() for part in pair])
    ends = [float(everything.min()), float(everything.max())]
    with styled(5.2, 4.4) as figure:
        axes = figure.add_subplot()
        axes.plot(ends, ends, color=INK, alpha=0.5, linewidth=1, linestyle=":")
        for color, (name, (sums, groups)) in zip((WRONG, CLEAN), kinds.items(), strict=False):
            axes.scatter(np.asarray(sums), np.asarray(groups), s=16, color=color, label=name)
        axes.set(xlabel="sum of the two influences", ylabel="influence of the pair")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.legend(loc="upper left")
        return inline_svg(figure, "Pairs of edges", description + ".")


def ego_graph_plot(
    positions: ArrayLike,
    edges: ArrayLike,
    scores: ArrayLike,
    classes: ArrayLike,
    names: Sequence[str],
    centers: Sequence[int],
) -> str:
    """A part of the graph around its worst edges.

    Parameters
    ----------
    positions
        Of the nodes, (V, 2).
    edges
        Pairs of places in `positions`, (E, 2).
    scores
        One for each edge; those below 0 hurt and are drawn thick.
    classes, names
        Class of each node, by which it is colored, and what it is called.
    centers
        Nodes that are named.
    """
    places, pairs = np.asarray(positions, dtype=np.float64), np.asarray(edges)
    weight, kind = np.asarray(scores, dtype=np.float64), np.asarray(classes)
    harmful = weight < 0
    description = f"{int(harmful.sum())} of {len(pairs)} edges raise the target loss."
    widest = float(np.abs(weight).max()) or 1.0
    palette = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
    with styled(6.4, 5.2) as figure:
        axes = figure.add_subplot()
        for (u, v), score in zip(pairs, weight, strict=True):
            color, width = (WRONG, 1 + 3 * abs(score) / widest) if score < 0 else (INK, 0.7)
            alpha = 0.95 if score < 0 else 0.3
            axes.plot(*places[[u, v]].T, color=color, linewidth=width, alpha=alpha, zorder=1)
        colors = [palette[int(k) % len(palette)] for k in kind]
        axes.scatter(*places.T, s=42, c=colors, zorder=2, edgecolor="white", linewidth=0.6)
        for node in centers:
            axes.annotate(
                names[node], tuple(places[node]), (4, 4), textcoords="offset points", fontsize=8
            )
        axes.set_axis_off()
        return inline_svg(figure, "Around the worst edges", description)


def rounds_plot(series: Mapping[str, Mapping[str, ArrayLike]]) -> str:
    """Curves over the rounds of a rectification, a panel for each quantity.

    Parameters
    ----------
    series
        For each quantity, its curves by name, one value a round, the first before any removal.
    """
    description = "; ".join(
        f"{name} of {quantity}: {float(np.asarray(v)[0]):.4g} to {float(np.asarray(v)[-1]):.4g}"
        for quantity, curves in series.items()
        for name, v in curves.items()
    )
    with styled(10.2, 3.2) as figure:
        panels = np.atleast_1d(np.asarray(figure.subplots(1, len(series))))
        for axes, (quantity, curves) in zip(panels, series.items(), strict=True):
            for color, (name, values) in zip(
                (CLEAN, WRONG, "#009e73"), curves.items(), strict=False
            ):
                numbers = np.asarray(values, dtype=np.float64)
                axes.plot(range(len(numbers)), numbers, color=color, linewidth=1.6, label=name)
            axes.set(xlabel="round", ylabel=quantity)
            axes.legend(loc="best")
        return inline_svg(figure, "Rounds", description + ".")

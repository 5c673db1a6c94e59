"""Where linear and non-linear influence disagree, and which of them retraining says was right."""

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import binomtest, rankdata, spearmanr
from torch import Tensor

_FEWEST = 3


@final
@dataclass(frozen=True)
class Linearity:
    """How far two kinds of influence agree, and who was right where they did not.

    Attributes
    ----------
    table
        One row for each sample, the largest disagreement first: ``linear``, ``nonlinear`` and
        ``true`` score, their shares of samples below (0 to 1), ``disagreement`` of the first two,
        and ``closer``: which of them lies nearer to the truth.
    agreement
        Rank correlation of linear and non-linear scores.
    linear, nonlinear
        Rank correlation of each with the truth, over all samples.
    nonlinear_closer
        Among the samples of largest disagreement, the share at which the non-linear score was
        closer, with its 95 % interval.
    interval
        Of that share (Clopper and Pearson 1934).
    """

    table: pd.DataFrame
    agreement: float
    linear: float
    nonlinear: float
    nonlinear_closer: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"linear and non-linear agree with rank correlation {self.agreement:.3f}; with the "
            f"truth {self.linear:.3f} (linear) and {self.nonlinear:.3f} (non-linear); where they "
            f"disagree most, non-linear was closer at {self.nonlinear_closer:.0%} "
            f"[{low:.0%}, {high:.0%}]"
        )


def linearity(
    linear: Float[Tensor, " N"],
    nonlinear: Float[Tensor, " N"],
    true: Float[Tensor, " N"],
    share: float = 0.1,
) -> Linearity:
    """Compare two scores of the same samples with what retraining says.

    Scales differ between methods, so that samples are compared by how many score less.

    Parameters
    ----------
    linear, nonlinear
        Such as the influence function's and GEX's: a row of scores, self-influence, or the sum over
        queries.
    true
        The effect of leaving each sample out: from :func:`~afterfit.evaluate.subset_effects` of
        retrainings, or from leave-one-out.
    share
        Of the samples, those of largest disagreement, among which it is counted who was closer.
    """
    columns = {"linear": linear, "nonlinear": nonlinear, "true": true}
    num = len(linear)
    for name, values in columns.items():
        if values.shape != linear.shape or not bool(torch.isfinite(values).all()):
            message = (
                f"{name} has shape {tuple(values.shape)} or values that are not finite, expected "
                f"{num} numbers, one for each sample"
            )
            raise ValueError(message)
    if num < _FEWEST or not 0 < share <= 1:
        message = (
            f"there are {num} samples and share is {share}, expected at least {_FEWEST} samples "
            "and a share between 0 and 1"
        )
        raise ValueError(message)
    table = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
    for name in columns:
        table[f"{name}_below"] = (rankdata(table[name]) - 1) / (num - 1)
    table["disagreement"] = (table["linear_below"] - table["nonlinear_below"]).abs()
    off = {n: (table[f"{n}_below"] - table["true_below"]).abs() for n in ("linear", "nonlinear")}
    table["closer"] = "neither"
    table.loc[off["linear"] < off["nonlinear"], "closer"] = "linear"
    table.loc[off["nonlinear"] < off["linear"], "closer"] = "nonlinear"
    table.index.name = "index"
    table = table.sort_values("disagreement", ascending=False, kind="stable")
    worst = table["closer"].head(max(1, round(share * num)))
    decided = int((worst != "neither").sum())
    won = int((worst == "nonlinear").sum())
    interval = (0.0, 1.0)
    if decided:
        found = binomtest(won, decided).proportion_ci()
        interval = (float(found.low), float(found.high))
    return Linearity(
        table,
        _correlation(table, "linear", "nonlinear"),
        _correlation(table, "linear", "true"),
        _correlation(table, "nonlinear", "true"),
        won / decided if decided else float("nan"),
        interval,
    )


def _correlation(table: pd.DataFrame, one: str, other: str) -> float:
    return float(spearmanr(table[one], table[other])[0])  # pyright: ignore[reportArgumentType]

"""What a report page is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COLUMNS = ("index", "given", "suggested", "score", "stderr", "rank", "is_issue")


@dataclass(frozen=True)
class LabelPage:
    """A report on the labels of a training set.

    Attributes
    ----------
    title
        Heading of the page.
    issues
        One row per sample, the most suspicious first, with the columns `COLUMNS`; `id`,
        `confidence` and `p_wrong` are shown too where they are there.
    scores
        (N,), in the order of the data; large = suspicious.
    threshold
        Scores above it are flagged; None where nothing says where to cut.
    samples
        Fragments of HTML, as `sample_html` makes them, for the first rows of `issues`. They stand
        in the page as they are.
    class_names
        In the order of the class indices; empty where labels are no classes or have no names.
    facts
        Name and value of what a reader should know first.
    search
        Arguments of `rate_search_plot`, where a learning rate was searched for.
    truth
        True where the label is known to be wrong, (N,), in the order of the data.
    warnings
        What a reader must know before believing the list, one sentence or two each.
    methods
        How the scores were made; blank lines part paragraphs.
    citation
        Of the method, for those who use the result in a publication.
    """

    title: str
    issues: pd.DataFrame
    scores: NDArray[np.floating[Any]]
    threshold: float | None
    samples: Sequence[str] = ()
    class_names: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    search: Mapping[str, Any] | None = None
    truth: NDArray[np.bool_] | None = None
    warnings: Sequence[str] = ()
    methods: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        """Refuse what would give a page that is wrong without looking wrong."""
        missing = [column for column in COLUMNS if column not in self.issues.columns]
        if missing:
            msg = (
                f"issues have the columns {list(self.issues.columns)}, expected {list(COLUMNS)}: "
                f"add {', '.join(missing)}"
            )
            raise ValueError(msg)
        if len(self.samples) > len(self.issues):
            msg = (
                f"{len(self.samples)} samples for {len(self.issues)} rows of issues, expected at "
                "most one per row: pass the samples of the first rows, in their order"
            )
            raise ValueError(msg)
        if self.truth is not None and len(self.truth) != len(self.scores):
            msg = (
                f"truth holds {len(self.truth)} values and scores {len(self.scores)}, expected as "
                "many of both: pass one truth value per sample, in the order of the data"
            )
            raise ValueError(msg)

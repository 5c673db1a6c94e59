"""What a reader must know before believing a list of wrong labels."""

import math

from afterfit.evaluate.threshold import Cut
from afterfit.workflows.label_scores import Found

RANKED_ONLY = "ranked list only"


def cautions_of(found: Found, cut: Cut | None) -> tuple[str, ...]:
    """What a reader must know before believing the list."""
    cautions = [] if found.evidence is None else list(found.evidence.cautions)
    if found.evidence is None and cut is None:
        cautions.append(
            f"These scores have no probabilities, {RANKED_ONLY}: use the default method, or pass a "
            "cut to decide."
        )
    if found.evidence is None and found.ensemble is not None:
        search, agreement = found.ensemble.search, found.ensemble.reliability()
        if search is not None and not search.found:
            cautions.append(
                "No learning rate kept the losses of the members under the cap: they may know too "
                "little for their losses to mean much."
            )
        if agreement < 0.8:
            cautions.append(
                f"Two halves of the ensemble agree only in part (reliability {agreement:.2f}): add "
                "members."
            )
    if cut is not None and math.isfinite(cut.separability) and cut.separability < 0.72:
        cautions.append(
            f"The scores do not fall into two clear groups (separability {cut.separability:.2f}; "
            "one group has about 0.65): read the list from the top, and do not trust the number of "
            "flagged samples."
        )
    return tuple(cautions)

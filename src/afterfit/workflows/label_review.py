"""The review beside a label report: every flagged sample, to be kept, corrected or dropped."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afterfit.problem.data import Batches
from afterfit.report import review_html, write_text_atomic
from afterfit.workflows.labels import LabelAnalysis
from afterfit.workflows.trained import Trained

BEYOND = 200
"""So many of the highest ranks are there to review, flagged or not."""

PAGE = "review.html"


def write_review(
    folder: Path, title: str, run: str, trained: Trained, train: Batches, analysis: LabelAnalysis
) -> Path:
    """Write the page on which the flagged samples are decided on, and say where it is.

    Parameters
    ----------
    run
        By which the browser keeps decisions.
    """
    issues = analysis.issues.reset_index()
    chosen = issues[issues["is_issue"] | (issues["rank"] <= BEYOND)]
    html = review_html(
        title,
        run,
        chosen,
        [look(trained, train, int(place)) for place in chosen["index"]],
        class_names=list(trained.classes),
        p_wrong=issues["p_wrong"].tolist(),
    )
    write_text_atomic(folder / PAGE, html)
    return folder / PAGE


def look(trained: Trained, train: Batches, index: int) -> Any:
    """What a reviewer sees of a sample."""
    if trained.show is not None:
        shown = trained.show(index)
        return shown.cpu().numpy() if isinstance(shown, Tensor) else shown
    inputs = train.fetch(torch.tensor([index])).inputs
    if isinstance(inputs, Tensor):
        return inputs[0].cpu().numpy()
    if isinstance(inputs, dict):
        return {name: _short(value[0]) for name, value in inputs.items()}
    return repr(inputs)


def _short(value: Any) -> Any:
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else str(array.tolist())[:200]

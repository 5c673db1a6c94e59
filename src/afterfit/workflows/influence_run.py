"""A run that names what predictions rest on: scores, a table, and a page with the samples."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from afterfit.influence.base import InfluenceMethod
from afterfit.influence.covariance import Scores
from afterfit.influence.gex import GEX
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import settings_key
from afterfit.problem.persample import losses
from afterfit.report import Card, Page, Section, sample_html
from afterfit.sampling.geometric import named
from afterfit.workflows.explain import explained, scores_with_errors
from afterfit.workflows.run import Run, inputs, write_run
from afterfit.workflows.trained import Trained

_log = logging.getLogger(__name__)

Show = Callable[[int], Any]


@final
@dataclass(frozen=True)
class Explanation:
    """What predictions rest on.

    Attributes
    ----------
    table
        As :func:`~afterfit.workflows.explain_prediction` gives it.
    scores
        Of all training samples, (Q, N), with standard errors.
    """

    table: pd.DataFrame
    scores: Scores


def run_influence(
    trained: Trained,
    folder: Path,
    queries: Sequence[int],
    method: InfluenceMethod,
    *,
    num: int = 5,
    name: str = "",
    title: str = "Influence",
    show_query: Show | None = None,
) -> Run[Explanation]:
    """Score all training samples for the chosen queries, and write a table and a page.

    The folder gets ``explained.csv`` and ``scores.safetensors``. A run that was killed goes on:
    scores that are there are read again, and GEX keeps its members in the folder.

    Parameters
    ----------
    queries
        Positions in the held-out data, or in the training data where there are none.
    num
        Proponents and opponents of each query.
    name
        What the method is called.
    show_query
        What a reader sees of the query at a position of its data; by default its input.

    Raises
    ------
    ValueError
        If a query is not there, or scores are not finite.
    """
    train, problem = trained.batches(), trained.problem()
    held_out = trained.held_out()
    source = train if held_out is None else held_out
    query = source.subset(_positions(queries, source))
    losses(problem, query)  # what is wrong with the queries is said before anything is scored
    called = name or type(method).__name__
    key = settings_key(problem, train.fingerprint(), query.fingerprint(), _name(method))
    scores = _kept(folder / "scores.safetensors", key)
    if scores is None:
        _log.info(
            f"scoring {train.num_samples:,} samples for {query.num_samples} queries: {called}"
        )
        scores = _scored(method, trained, folder, query)
        folder.mkdir(parents=True, exist_ok=True)
        _keep(folder / "scores.safetensors", scores, key)
    found = Explanation(explained(scores, train, query, num), scores)
    show = trained.show if held_out is None and show_query is None else show_query
    page = _page(title, called, trained, query, source, queries, found, show, method.reference)
    return write_run(
        folder,
        found,
        page,
        figures={"queries": list(map(int, queries)), "method": called, **_figures(found)},
        settings={
            "influence": {"method": repr(method), "num": num},
            "input": inputs(problem, train),
        },
        tables={"explained": found.table},
    )


def _positions(queries: Sequence[int], source: Batches) -> Tensor:
    wrong = [q for q in queries if not 0 <= q < source.num_samples]
    if wrong or not queries:
        message = (
            f"the queries are {list(queries)}, expected positions from 0 to "
            f"{source.num_samples - 1} in the held-out data, or in the training data without them"
        )
        raise ValueError(message)
    return torch.tensor(queries)


def _scored(method: InfluenceMethod, trained: Trained, folder: Path, query: Batches) -> Scores:
    problem, train = trained.problem(), trained.batches()
    if isinstance(method, GEX):
        influence = method.fit(problem, train, trained.stream(), folder)
    else:
        influence = method.fit(problem, train)
    scores = scores_with_errors(influence, query)
    if not bool(torch.isfinite(scores.value).all()):
        message = (
            "scores hold NaN or infinite values, expected numbers: raise the damping of the "
            "method, or look at the losses of the queries"
        )
        raise ValueError(message)
    return scores


def _keep(path: Path, scores: Scores, key: str) -> None:
    tensors = {"value": scores.value.contiguous(), "stderr": scores.stderr.contiguous()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"key": key})
    temporary.replace(path)


def _kept(path: Path, key: str) -> Scores | None:
    """Scores of the same network, data, queries and settings, or None where there are none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata().get("key") != key:
                return None
            return Scores(file.get_tensor("value"), file.get_tensor("stderr"))
    except SafetensorError:
        return None


def _name(method: InfluenceMethod) -> str:
    """All settings of a method; our own functions by their place, anything else by its content."""
    parts = [type(method).__qualname__]
    for name, value in vars(method).items():
        place = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        known = callable(value) and place.startswith("afterfit.") and "<" not in place
        parts.append(f"{name}={place if known else named(value)}")
    return " ".join(parts)


def _settings(method: InfluenceMethod) -> dict[str, Any]:
    """What a method was told, as far as that is plain."""
    plain = (int, float, str)
    return {name: value for name, value in vars(method).items() if isinstance(value, plain)}


def _figures(found: Explanation) -> dict[str, Any]:
    table = found.table
    certain = table["certain"].dropna()
    share = float(certain.mean()) if len(certain) else float("nan")
    return {"named": len(table), "share_certain": share}


def _page(
    title: str,
    called: str,
    trained: Trained,
    query: Batches,
    source: Batches,
    queries: Sequence[int],
    found: Explanation,
    show_query: Show | None,
    reference: str,
) -> Page:
    train, sections = trained.batches(), []
    for place, position in enumerate(queries):
        rows = found.table[found.table["query"] == query.ids[place]]
        target = _named(_target(query, place), trained)
        asked = Card(sample_html(_look(source, position, show_query)), target, "the query")
        cards = [
            Card(
                sample_html(_look(train, row["index"], trained.show)),
                _named(row["target"], trained),
                str(row["kind"]),
                _notes(row),
            )
            for row in rows.to_dict("records")
        ]
        sections.append(
            Section(
                f"Query {query.ids[place]}",
                text=f"Given: {target}. First the query, then what speaks for it and against it.",
                cards=[asked, *cards],
                table=rows.drop(columns=["query", "query_target"]),
                rest="explained.csv",
            )
        )
    terms = [
        ("Proponent", "Without this training sample the loss of the query would rise."),
        ("Opponent", "Without it the loss would fall: look at its label first."),
        ("Standard error", "Of the draws that the method makes; a dash where it makes none."),
    ]
    sections.append(Section("How to read this", terms=terms))
    return Page(
        title=title,
        lead=f"What {len(queries)} predictions rest on, of {train.num_samples:,} training samples.",
        sections=sections,
        facts=[("Method", called), ("Training samples", f"{train.num_samples:,}")],
        warnings=_cautions(found),
        methods="Scores rank training samples; that a prediction would change without one of them "
        "takes a training to know.",
        citation=reference,
    )


def _cautions(found: Explanation) -> list[str]:
    certain = found.table["certain"].dropna()
    if not len(certain) or float(certain.mean()) >= 0.5:
        return []
    return [
        f"{1 - float(certain.mean()):.0%} of the scores named here lie within two standard errors "
        "of zero: add members before you believe single samples."
    ]


def _notes(row: dict[Any, Any]) -> list[tuple[str, str]]:
    error = "" if row["stderr"] != row["stderr"] else f" ± {row['stderr']:.2g}"
    told = f"{row['score']:.3g}{error}"
    return [(told, "score and its standard error"), (f"sample {row['id']}", "")]


def _look(data: Batches, position: int, show: Show | None) -> Any:
    """What a reader sees of a sample."""
    if show is not None:
        shown = show(position)
        return shown.cpu().numpy() if isinstance(shown, Tensor) else shown
    read = data.fetch(torch.tensor([position])).inputs
    return read[0].cpu().numpy() if isinstance(read, Tensor) else f"sample {data.ids[position]}"


def _target(data: Batches, place: int) -> Any:
    return data.targets()[place].tolist()


def _named(label: Any, trained: Trained) -> str:
    if isinstance(label, int) and 0 <= label < len(trained.classes):
        return str(trained.classes[label])
    return f"{label:.4g}" if isinstance(label, float) else str(label)

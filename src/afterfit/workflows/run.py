"""What every run leaves: a folder with tables, numbers, settings and the page."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import pandas as pd

from afterfit.problem.data import Batches
from afterfit.problem.ensemble import fingerprint
from afterfit.problem.problem import Problem
from afterfit.report import Page, page_html, write_table_atomic, write_text_atomic

F = TypeVar("F")


@final
@dataclass(frozen=True)
class Run(Generic[F]):
    """A finished run.

    Attributes
    ----------
    found
        What was found out, to be asked further.
    folder
        Holds ``result.json``, ``run.toml``, ``report.html``, and the tables of the run as CSV.
    figures
        What ``result.json`` holds.
    """

    found: F
    folder: Path
    figures: Mapping[str, Any]

    @property
    def report(self) -> Path:
        """Where the page is."""
        return self.folder / "report.html"


def write_run(
    folder: Path,
    found: F,
    page: Page,
    *,
    figures: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
) -> Run[F]:
    """Write all that a run leaves, each file to a temporary name first, and say where it is.

    Parameters
    ----------
    figures
        Numbers and texts for ``result.json``; NaN and infinity become null.
    settings
        Sections of ``run.toml``: what one needs to run it again. Versions are added.
    tables
        By the names of their files, without ``.csv``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_table_atomic(folder / f"{name}.csv", table)
    write_text_atomic(folder / "result.json", json.dumps(_known(figures), indent=1))
    write_text_atomic(folder / "run.toml", _toml({**settings, "versions": _versions()}))
    write_text_atomic(folder / "report.html", page_html(page))
    return Run(found, folder, figures)


def inputs(problem: Problem, data: Batches) -> dict[str, Any]:
    """What a run was made from: hashes of the network and of the data, and how many samples."""
    return {
        "network": fingerprint(problem),
        "data": data.fingerprint(),
        "samples": data.num_samples,
    }


def _versions() -> dict[str, str]:
    ours = {name: version(name) for name in ("afterfit", "torch", "numpy")}
    return {"python": platform.python_version(), **ours}


def _known(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, Mapping):
        return {name: _known(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of plain values, functions by their names; None is left out."""
    lines = []
    for section, entries in sections.items():
        known = {name: value for name, value in entries.items() if value is not None}
        lines += [f"[{section}]", *(f"{n} = {_toml_value(v)}" for n, v in known.items()), ""]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(getattr(value, "__qualname__", value)), ensure_ascii=False)

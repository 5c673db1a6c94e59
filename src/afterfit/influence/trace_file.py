"""The file of a training trace: safetensors, and in its header whose they are."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from afterfit.problem.likelihood import NAMED, Likelihood

_FORMAT, _VERSION = "afterfit.TrainingTrace", "1"


def _description(likelihood: Any) -> dict[str, Any]:
    name = type(likelihood).__name__
    known = NAMED.get(name) is type(likelihood)
    return {"name": name, "fields": asdict(likelihood) if known else None}


def write(path: str | PathLike[str], columns: Mapping[str, Tensor], likelihood: Likelihood) -> None:
    """Write the columns to a temporary name, then rename it."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "likelihood": json.dumps(_description(likelihood)),
        "num_samples": str(len(columns["seen"])),
    }
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    save_file(dict(columns), str(temporary), metadata=header)
    temporary.replace(place)


def read(
    path: str | PathLike[str], likelihood: Likelihood | None
) -> tuple[dict[str, Tensor], Likelihood]:
    """Read the columns, and the likelihood unless it is given.

    Raises
    ------
    ValueError
        If the file is no trace, or of another likelihood than the one given.
    """
    if not Path(path).is_file():
        message = f"{path} is no file, expected one that TrainingTrace.save has written"
        raise ValueError(message)
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        message = f"{path} cannot be read ({error}), expected what TrainingTrace.save has written"
        raise ValueError(message) from error
    kind = header.get("format"), header.get("version")
    if kind != (_FORMAT, _VERSION) or "seen" not in columns:
        message = (
            f"{path} has format and version {kind}, expected {(_FORMAT, _VERSION)}: it is no "
            "training trace, or one of another version of afterfit"
        )
        raise ValueError(message)
    return columns, _likelihood(json.loads(header["likelihood"]), likelihood, path)


def _likelihood(
    found: dict[str, Any], given: Likelihood | None, path: str | PathLike[str]
) -> Likelihood:
    if given is not None:
        if _description(given) != found:
            message = (
                f"{path} was recorded with {found['name']} {found['fields'] or ''}, and {given!r} "
                "was given, expected the same"
            )
            raise ValueError(message)
        return given
    if found["fields"] is None or found["name"] not in NAMED:
        message = (
            f"{path} was recorded with {found['name']}, which no file can hold; pass it: "
            "TrainingTrace.load(path, likelihood)"
        )
        raise ValueError(message)
    return NAMED[found["name"]](**found["fields"])
